//! Files as other programs write them, whole and damaged: each imports with exact totals, or not at all.
//!
//! The totals are in this table, in docs/import.md, and computed by pandas from the same files.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tests::client::token;
use tests::fold::digits;
use tests::process::target_directory;
use tests::system::TestSystem;
use tests::verify::list_orders;

tests::stories![
    every_layout_imports_with_exact_totals,
    a_second_run_compares,
    a_dry_run_is_exact_and_changes_nothing,
    rejected_lines_can_be_corrected_and_imported
];

/// How a file is written.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    Utf8,
    Utf8Bom,
    Windows1252,
    Utf16,
    Gzip,
    /// Gzip without its last bytes.
    CutGzip,
}

impl Form {
    fn title(self) -> &'static str {
        match self {
            Form::Utf8 => "UTF-8",
            Form::Utf8Bom => "UTF-8 with BOM",
            Form::Windows1252 => "Windows-1252",
            Form::Utf16 => "UTF-16",
            Form::Gzip | Form::CutGzip => "gzip",
        }
    }

    fn bytes(self, text: &str) -> Vec<u8> {
        let gzip = || {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(text.as_bytes()).expect("the text is compressed");
            encoder.finish().expect("the text is compressed")
        };
        match self {
            Form::Utf8 => text.as_bytes().to_vec(),
            Form::Utf8Bom => [b"\xef\xbb\xbf", text.as_bytes()].concat(),
            Form::Windows1252 => text
                .chars()
                .map(|c| if c == '€' { 0x80 } else { u8::try_from(c).expect("a Western character") })
                .collect(),
            Form::Utf16 => std::iter::once(0xfeff).chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect(),
            Form::Gzip => gzip(),
            Form::CutGzip => {
                let all = gzip();
                all[..all.len() - 12].to_vec()
            }
        }
    }
}

/// A file, how it is imported, and what must come out.
struct File {
    /// Name of the file, and of its row in docs/import.md.
    name: &'static str,
    form: Form,
    /// The layout and the fault, as in docs/import.md.
    layout: &'static str,
    fault: &'static str,
    text: &'static str,
    arguments: &'static [&'static str],
    /// Columns, where they are not named like the fields.
    columns: &'static [(&'static str, &'static str)],
    /// Separator, decimal mark and separator of thousands.
    marks: (&'static str, &'static str, &'static str),
    /// Lines that cannot be read, and orders that must not be imported.
    skip: &'static [u64],
    refused: &'static [&'static str],
    /// Parts of stdout or stderr.
    says: &'static [&'static str],
    exit: i32,
    orders: u64,
    pieces: u64,
    totals: &'static [(&'static str, &'static str)],
}

/// A file without surprises, for the others to differ from.
const PLAIN: File = File {
    name: "plain.csv",
    form: Form::Utf8,
    layout: "Docket",
    fault: "",
    text: "order_ref,customer_ref,store_id,placed_at,sku,product_name,department,quantity,unit_price\n\
           plain-1,ada,7,2024-01-05T10:00:00Z,tea,Tea,FOOD,2,1.50\n\
           plain-1,ada,7,2024-01-05T10:00:00Z,cup,\"Cup, \"\"large\"\"\",HOME,1,12.00\n\
           plain-2,bob,8,2024-01-06T10:00:00Z,tea,Tea,FOOD,3,1.50\n",
    arguments: &[],
    columns: &[],
    marks: (",", ".", ","),
    skip: &[],
    refused: &[],
    says: &[],
    exit: 0,
    orders: 2,
    pieces: 6,
    totals: &[("USD", "19.50")],
};

const FILES: &[File] = &[
    PLAIN,
    File {
        name: "least.csv",
        layout: "required columns only",
        text: "quantity,order_ref,unit_price,sku\n1,least-1,5,tea\n2,least-1,0.25,cup\n",
        arguments: &["--customer", "walk-in"],
        orders: 1,
        pieces: 3,
        totals: &[("USD", "5.50")],
        ..PLAIN
    },
    File {
        name: "excel.csv",
        form: Form::Utf8Bom,
        layout: "Excel: `;`, decimal comma, CRLF",
        text: "order_ref;customer_ref;placed_at;sku;product_name;quantity;unit_price;Bemerkung\r\n\
               excel-1;ada;2024-01-05 10:00;tea;Grüner Tee;2;1.234,50;\r\n\
               excel-1;ada;2024-01-05 10:00;cup;Tasse;1;0,99;eilig\r\n;;;;;;;\r\n",
        arguments: &["--currency", "EUR", "--timezone", "Europe/Berlin"],
        marks: (";", ",", "."),
        says: &["Columns that are not imported: Bemerkung."],
        orders: 1,
        pieces: 3,
        totals: &[("EUR", "2469.99")],
        ..PLAIN
    },
    File {
        name: "german.txt",
        form: Form::Windows1252,
        layout: "own names: `;`, decimal comma, day first",
        text: "Auftrag;Kunde;Datum;Artikel;Bezeichnung;Menge;Preis\n\
               german-1;ada;05.01.2024 10:00;tea;Früchtetee;2;3,50 €\n\
               german-2;bob;06.01.2024 10:00;cup;Tasse;1;1.050,00 €\n",
        arguments: &[
            "--map",
            "order_ref=Auftrag,customer_ref=Kunde,placed_at=Datum,sku=Artikel",
            "--map",
            "product_name=Bezeichnung,quantity=Menge,unit_price=Preis",
            "--currency",
            "EUR",
            "--date-format",
            "%d.%m.%Y %H:%M",
            "--timezone",
            "Europe/Berlin",
        ],
        columns: &[("order_ref", "Auftrag"), ("quantity", "Menge"), ("unit_price", "Preis")],
        marks: (";", ",", "."),
        orders: 2,
        pieces: 3,
        totals: &[("EUR", "1057.00")],
        ..PLAIN
    },
    File {
        name: "unicode.txt",
        form: Form::Utf16,
        layout: "Excel's Unicode text: tabs",
        text: "order_ref\tcustomer_ref\tsku\tproduct_name\tquantity\tunit_price\n\
               unicode-1\tada\ttea\t緑茶\t4\t2.25\nunicode-1\tada\tcup\tČaša\t1\t7.00\n",
        marks: ("\t", ".", ","),
        orders: 1,
        pieces: 5,
        totals: &[("USD", "16.00")],
        ..PLAIN
    },
    File {
        name: "compressed",
        form: Form::Gzip,
        layout: "Docket, no name ending",
        text: "order_ref,customer_ref,sku,quantity,unit_price\ncompressed-1,ada,tea,1,1.25\n",
        orders: 1,
        pieces: 1,
        totals: &[("USD", "1.25")],
        ..PLAIN
    },
    File {
        name: "spread.csv",
        layout: "lines of an order apart",
        text: "order_ref,customer_ref,sku,quantity,unit_price\n\
               spread-1,ada,tea,1,1.00\nspread-2,bob,tea,2,1.00\nspread-1,ada,cup,1,9.00\nspread-2,bob,pot,1,20.00\n",
        orders: 2,
        pieces: 5,
        totals: &[("USD", "32.00")],
        ..PLAIN
    },
    File {
        name: "currencies.csv",
        layout: "currency column",
        text: "order_ref,customer_ref,currency,sku,quantity,unit_price\n\
               currencies-1,ada,EUR,tea,2,1.50\ncurrencies-2,ada,jpy,tea,3,200.00\ncurrencies-3,ada,,tea,1,$4.00\n",
        orders: 3,
        pieces: 6,
        totals: &[("EUR", "3.00"), ("JPY", "600"), ("USD", "4.00")],
        marks: (",", ".", ","),
        ..PLAIN
    },
    File {
        name: "statuses.csv",
        layout: "status column",
        text: "order_ref,customer_ref,status,sku,quantity,unit_price\n\
               statuses-1,ada,draft,tea,1,1.00\nstatuses-2,ada,Cancelled,tea,1,2.00\n\
               statuses-3,ada,shipped,tea,1,4.00\nstatuses-4,ada,test,tea,1,8.00\n",
        arguments: &["--status-map", "shipped=confirmed,test=skip"],
        refused: &["statuses-4"],
        says: &["1 confirmed, 1 draft, 1 cancelled, 1 skipped"],
        orders: 3,
        pieces: 3,
        totals: &[("USD", "7.00")],
        ..PLAIN
    },
    File {
        name: "numbers.ndjson",
        layout: "NDJSON with numbers",
        text: "{\"order_ref\": \"ndjson-1\", \"customer_ref\": 17, \"sku\": 4711, \"quantity\": 2, \"unit_price\": 2.55}\n\
               {\"order_ref\": \"ndjson-1\", \"customer_ref\": 17, \"sku\": \"cup\", \"quantity\": 1.0, \
               \"unit_price\": \"3.10\", \"color\": \"red\"}",
        says: &["Columns that are not imported: color."],
        orders: 1,
        pieces: 3,
        totals: &[("USD", "8.20")],
        ..PLAIN
    },
    File {
        name: "shopify.csv",
        layout: "Shopify",
        text: "Name,Email,Financial Status,Currency,Subtotal,Total,Created at,Lineitem quantity,Lineitem name,\
               Lineitem price,Lineitem sku,Notes,Cancelled at,Phone,Location,Source\n\
               #shopify-1,ada@example.com,paid,USD,31.50,36.50,2024-03-01 10:15:00 -0500,2,Mug,12.00,MUG-1,\
               \"Two lines,\nplease\",,4917000001,Berlin,web\n\
               #shopify-1,ada@example.com,,,,,2024-03-01 10:15:00 -0500,1,Spoon,7.50,SPOON-1,,,,,\n\
               #shopify-2,bob@example.com,pending,USD,5.00,5.00,2024-03-02 09:00:00 -0500,1,Cup,5.00,CUP-1,,,4917000002,,pos\n\
               #shopify-3,eve@example.com,refunded,USD,5.00,5.00,2024-03-02 09:30:00 -0500,1,Cup,5.00,CUP-1,,\
               2024-03-03 08:00:00 -0500,4917000003,,web\n",
        arguments: &["--preset", "shopify", "--map", "customer_ref=Phone"],
        columns: &[
            ("order_ref", "Name"),
            ("quantity", "Lineitem quantity"),
            ("unit_price", "Lineitem price"),
            ("currency", "Currency"),
        ],
        says: &["2 confirmed, 1 cancelled", "Columns that are not imported: Email, Subtotal, Total, Notes."],
        orders: 3,
        pieces: 5,
        totals: &[("USD", "41.50")],
        ..PLAIN
    },
    File {
        name: "woocommerce.csv",
        layout: "WooCommerce, one row per item",
        text: "order_id,order_number_formatted,date,status,order_total,order_currency,customer_id,billing_email,\
               item_name,item_sku,item_quantity,item_total\n\
               31,woo-31,2024-03-01 10:15:00,completed,34.50,EUR,8,ada@example.com,Mug,MUG-1,3,24.00\n\
               31,woo-31,2024-03-01 10:15:00,completed,34.50,EUR,8,ada@example.com,Spoon,SPOON-1,2,10.50\n\
               32,woo-32,2024-03-01 11:00:00,on-hold,8.00,EUR,9,bob@example.com,Mug,MUG-1,1,8.00\n",
        arguments: &["--preset", "woocommerce", "--timezone", "Europe/Berlin"],
        columns: &[
            ("order_ref", "order_number_formatted"),
            ("quantity", "item_quantity"),
            ("line_total", "item_total"),
            ("currency", "order_currency"),
        ],
        says: &["1 confirmed, 1 draft"],
        orders: 2,
        pieces: 6,
        totals: &[("EUR", "42.50")],
        ..PLAIN
    },
    File {
        name: "bad-line.csv",
        fault: "a quantity of 0, a price that is no number",
        text: "order_ref,customer_ref,sku,quantity,unit_price\n\
               bad-1,ada,tea,0,1.00\nbad-1,ada,cup,1,9.00\nbad-2,bob,tea,2,free\nbad-2,bob,cup,1,9.00\n\
               bad-3,bob,tea,2,1.00\n",
        refused: &["bad-1", "bad-2"],
        says: &[
            "line 2 (order bad-1): quantity: The quantity must be a whole number from 1 to 1000000.",
            "line 4 (order bad-2): unit_price: `free` is not a number.",
            "2 orders rejected, 4 lines rejected",
        ],
        exit: 3,
        orders: 1,
        pieces: 2,
        totals: &[("USD", "2.00")],
        ..PLAIN
    },
    File {
        name: "partial.csv",
        fault: "the same, with `--partial`",
        text: "order_ref,customer_ref,sku,quantity,unit_price\n\
               partial-1,ada,tea,0,1.00\npartial-1,ada,cup,1,9.00\npartial-2,bob,tea,2,free\npartial-2,bob,cup,1,9.00\n",
        arguments: &["--partial"],
        skip: &[2, 4],
        says: &["2 confirmed", "0 orders rejected, 2 lines rejected"],
        exit: 3,
        orders: 2,
        pieces: 2,
        totals: &[("USD", "18.00")],
        ..PLAIN
    },
    File {
        name: "quote.csv",
        fault: "a quote that does not end",
        text: "order_ref,customer_ref,sku,product_name,quantity,unit_price\n\
               quote-1,ada,tea,Tea,1,1.00\nquote-2,bob,tea,\"Tea,1,1.00\nquote-2,bob,cup,\"Cup\",3,2.00\n\
               quote-3,eve,tea,Tea,5,1.00\n",
        skip: &[3, 4],
        says: &["line 3 (order quote-2): A quote in line 3 does not end"],
        refused: &["quote-1", "quote-2", "quote-3"],
        exit: 3,
        orders: 0,
        pieces: 0,
        totals: &[],
        ..PLAIN
    },
    File {
        name: "fields.csv",
        fault: "a line with a field too many",
        text: "order_ref,customer_ref,sku,product_name,quantity,unit_price\n\
               fields-1,ada,tea,Tea,1,1.00\nfields-2,bob,tea,Tea,2,1.00\nfields-2,bob,cup,Cup, red,1,1.00\n\
               fields-2,bob,pot,Pot,1,1.00\nfields-3,eve,tea,Tea,5,1.00\n",
        skip: &[4],
        refused: &["fields-2"],
        says: &["line 4 (order fields-2): The line has 7 fields, and the header 6."],
        exit: 3,
        orders: 2,
        pieces: 6,
        totals: &[("USD", "6.00")],
        ..PLAIN
    },
    File {
        name: "cut.csv",
        fault: "no line break at the end",
        text: "order_ref,customer_ref,sku,quantity,unit_price\n\
               cut-1,ada,tea,1,1.00\ncut-2,bob,tea,2,1.00\ncut-2,bob,cup,2,1.5",
        refused: &["cut-2"],
        says: &["line 4 (order cut-2): The last line does not end with a line break", "--no-final-newline"],
        exit: 3,
        orders: 1,
        pieces: 1,
        totals: &[("USD", "1.00")],
        ..PLAIN
    },
    File {
        name: "sheets.csv",
        fault: "the same, with `--no-final-newline`",
        text: "order_ref,customer_ref,sku,quantity,unit_price\nsheets-1,ada,tea,1,1.00\nsheets-1,ada,cup,2,1.5",
        arguments: &["--no-final-newline"],
        orders: 1,
        pieces: 3,
        totals: &[("USD", "4.00")],
        ..PLAIN
    },
    File {
        name: "cut-spread.csv",
        fault: "no line break at the end, lines apart",
        text: "order_ref,customer_ref,sku,quantity,unit_price\n\
               apart-1,ada,tea,1,1.00\napart-2,bob,tea,2,1.00\napart-1,ada,cup,2,1.50",
        refused: &["apart-1", "apart-2"],
        says: &["Nothing was imported"],
        exit: 2,
        orders: 0,
        pieces: 0,
        totals: &[],
        ..PLAIN
    },
    File {
        name: "cut.csv.gz",
        form: Form::CutGzip,
        fault: "gzip that is cut",
        text: "order_ref,customer_ref,sku,quantity,unit_price\ncutgz-1,ada,tea,1,1.00\ncutgz-2,bob,tea,2,1.00\n",
        says: &["it is cut or damaged", "Nothing was imported"],
        exit: 2,
        orders: 0,
        pieces: 0,
        totals: &[],
        ..PLAIN
    },
    File {
        name: "thousands.csv",
        fault: "`1,500`: thousands or decimals",
        text: "order_ref;customer_ref;sku;quantity;unit_price\nthousands-1;ada;tea;1;1,500\n",
        refused: &["thousands-1"],
        marks: (";", ".", ","),
        says: &["`1,500` (line 2) can be read in two ways", "--decimal-mark comma"],
        exit: 2,
        orders: 0,
        pieces: 0,
        totals: &[],
        ..PLAIN
    },
    File {
        name: "marked.csv",
        fault: "the same, with `--decimal-mark dot`",
        text: "order_ref;customer_ref;sku;quantity;unit_price\nmarked-1;ada;tea;1;1,500\n",
        arguments: &["--decimal-mark", "dot"],
        marks: (";", ".", ","),
        orders: 1,
        pieces: 1,
        totals: &[("USD", "1500.00")],
        ..PLAIN
    },
    File {
        name: "dates.csv",
        fault: "a date that can be read in two ways",
        text: "order_ref,customer_ref,placed_at,sku,quantity,unit_price\ndates-1,ada,03/04/2024,tea,1,1.00\n",
        refused: &["dates-1"],
        says: &["line 2 (order dates-1): placed_at: `03/04/2024` is not a time", "--date-format '%d.%m.%Y"],
        exit: 3,
        orders: 0,
        pieces: 0,
        totals: &[],
        ..PLAIN
    },
    File {
        name: "customers.csv",
        fault: "lines that disagree about their order",
        text: "order_ref,customer_ref,sku,quantity,unit_price\n\
               customers-1,ada,tea,1,1.00\ncustomers-1,bob,cup,1,1.00\ncustomers-2,bob,cup,1,1.00\n",
        refused: &["customers-1"],
        says: &["line 3 (order customers-1): customer_ref: `bob` here, and `ada` in line 2."],
        exit: 3,
        orders: 1,
        pieces: 1,
        totals: &[("USD", "1.00")],
        ..PLAIN
    },
    File {
        name: "symbol.csv",
        fault: "a symbol of another currency",
        text: "order_ref,customer_ref,currency,sku,quantity,unit_price\nsymbol-1,ada,USD,tea,1,€1.00\n",
        refused: &["symbol-1"],
        says: &["`€` is not a symbol of the order's currency, USD."],
        exit: 3,
        orders: 0,
        pieces: 0,
        totals: &[],
        ..PLAIN
    },
];

impl File {
    fn write(&self, folder: &Path) -> PathBuf {
        let path = folder.join(self.name);
        std::fs::write(&path, self.form.bytes(self.text)).expect("the file is written");
        path
    }

    /// The ids of the orders that the file may create begin with this: `plain-`.
    fn prefix(&self) -> String {
        let bytes = self.text.as_bytes();
        let dash = (1..bytes.len() - 1)
            .find(|at| bytes[*at] == b'-' && bytes[at - 1].is_ascii_lowercase() && bytes[at + 1].is_ascii_digit())
            .expect("an order");
        let start = self.text[..dash].rfind(|c: char| !c.is_ascii_lowercase()).map_or(0, |at| at + 1);
        self.text[start..=dash].to_owned()
    }

    /// The row of docs/import.md.
    fn row(&self) -> String {
        let totals: Vec<_> = self.totals.iter().map(|(currency, total)| format!("{total} {currency}")).collect();
        let totals = if totals.is_empty() { "none".to_owned() } else { totals.join(", ") };
        let fault = if self.fault.is_empty() { "none" } else { self.fault };
        format!(
            "| `{}` | {} | {} | {fault} | {} | {} | {totals} | {} |",
            self.name,
            self.layout,
            self.form.title(),
            self.orders,
            self.pieces,
            self.exit
        )
    }

    fn case(&self, path: &Path) -> Value {
        let fields = ["order_ref", "currency", "quantity", "unit_price"];
        let mut columns: BTreeMap<_, _> = fields.iter().map(|field| (*field, *field)).collect();
        columns.extend(self.columns.iter().copied());
        let encoding = match self.form {
            Form::Utf8Bom => "utf-8-sig",
            Form::Windows1252 => "windows-1252",
            Form::Utf16 => "utf-16",
            _ => "utf-8",
        };
        let format = match self.form {
            Form::Gzip => "csv.gz",
            _ if self.name.ends_with("ndjson") => "ndjson",
            _ => "csv",
        };
        let (separator, decimal, thousands) = self.marks;
        let given = self.arguments.iter().position(|argument| *argument == "--currency");
        let currency = given.map_or("USD", |at| self.arguments[at + 1]);
        json!({"name": self.name, "path": path, "format": format, "separator": separator, "encoding": encoding,
            "decimal": decimal, "thousands": thousands, "skip": self.skip, "columns": columns, "refused": self.refused,
            "currency": currency})
    }

    /// The totals in the form of `import_totals.py`.
    fn expected(&self) -> Value {
        let totals: BTreeMap<_, _> = self
            .totals
            .iter()
            .map(|(currency, total)| {
                (*currency, if digits(currency) == 0 { format!("{total}.00") } else { (*total).to_owned() })
            })
            .collect();
        json!({"orders": self.orders, "pieces": self.pieces, "totals": totals})
    }
}

/// Computes the totals of the files with pandas.
fn pandas(cases: &[Value]) -> Value {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients");
    let python = target_directory().join("tools/python");
    assert!(python.join("pandas").is_dir(), "pandas is missing; install it with: tests/run install");
    let mut child = Command::new("python3")
        .arg(folder.join("import_totals.py"))
        .env("PYTHONPATH", python)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("Python starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(Value::from(cases.to_vec()).to_string().as_bytes()).expect("the cases are written");
    drop(stdin);
    let output = child.wait_with_output().expect("Python ends");
    assert!(output.status.success(), "import_totals.py failed");
    serde_json::from_slice(&output.stdout).expect("the totals are JSON")
}

/// Runs `docket import`. Returns the exit code, the summary and stderr.
async fn import(system: &TestSystem, path: &Path, arguments: &[&str]) -> (i32, Value, String) {
    let (url, staff) = (system.writer().base().to_owned(), token("import", "staff"));
    let path = path.to_str().expect("UTF-8");
    let common = ["import", path, "--url", &url, "--token", &staff, "--json"];
    let output = system.try_cli(&[&common[..], arguments].concat()).await;
    let summary = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap_or(-1), summary, errors)
}

/// Returns the totals of the orders whose ids begin with `prefix`, in the form of `import_totals.py`.
async fn stored(system: &TestSystem, prefix: &str) -> Value {
    system.settled().await;
    let (mut orders, mut pieces, mut totals) = (0, 0, BTreeMap::<String, u64>::new());
    for (id, order) in list_orders(system.reader(), "").await {
        if id.starts_with(prefix) {
            orders += 1;
            pieces += order["quantity"].as_u64().expect("a quantity");
            let text = order["total"].as_str().expect("a total");
            let hundredths = match text.split_once('.') {
                Some((whole, cents)) => format!("{whole}{cents}"),
                None => format!("{text}00"),
            };
            *totals.entry(order["currency"].as_str().expect("a currency").to_owned()).or_default() +=
                hundredths.parse::<u64>().expect("an amount");
        }
    }
    let totals: BTreeMap<_, _> =
        totals.iter().map(|(currency, sum)| (currency, format!("{}.{:02}", sum / 100, sum % 100))).collect();
    json!({"orders": orders, "pieces": pieces, "totals": totals})
}

/// Returns stderr, with the faults and differences as a user sees them.
fn said(summary: &Value, errors: &str) -> String {
    let lists = ["rejected", "differences"].into_iter().filter_map(|name| summary[name].as_array());
    let lines = lists.flatten().map(|fault| {
        let text = |name: &str| fault[name].as_str().unwrap_or_default().to_owned();
        format!("line {} (order {}): {}\n", fault["line"], text("order_ref"), text("reason"))
    });
    lines.collect::<String>() + errors
}

async fn every_layout_imports_with_exact_totals(system: TestSystem) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cases: Vec<Value> = FILES
        .iter()
        .filter(|file| !matches!(file.form, Form::CutGzip))
        .map(|file| file.case(&file.write(folder.path())))
        .collect();
    let independent = pandas(&cases);
    let prefixes: BTreeSet<String> = FILES.iter().map(File::prefix).collect();
    assert_eq!(prefixes.len(), FILES.len(), "each file has orders of its own");
    for file in FILES {
        let name = file.name;
        let path = file.write(folder.path());
        let (exit, summary, errors) = import(&system, &path, file.arguments).await;
        let said = said(&summary, &errors);
        assert_eq!(exit, file.exit, "{name}: {said}");
        for part in file.says {
            assert!(said.contains(part), "{name}: `{part}` is not in {said}");
        }
        let expected = file.expected();
        if file.form != Form::CutGzip {
            assert_eq!(independent[name], expected, "{name} by pandas");
        }
        assert_eq!(stored(&system, &file.prefix()).await, expected, "{name}: {said}");
        // A second run finds everything there, and rejects the same.
        let (exit, again, errors) = import(&system, &path, file.arguments).await;
        assert_eq!(exit, file.exit, "{name}, again: {errors}");
        assert_eq!(again["rejected"], summary["rejected"], "{name}, again");
        if !summary.is_null() {
            assert_eq!(
                (&again["already_there"], &again["different"]),
                (&json!(file.orders), &json!(0)),
                "{name}, again"
            );
        }
        assert_eq!(stored(&system, &file.prefix()).await, expected, "{name}, again");
    }
    let order = system.get("/v1/orders/german-1").send().await.expect(200).json();
    assert_eq!(order["placed_at"], "2024-01-05T09:00:00Z", "{order}");
    assert_eq!(order["lines"][0]["name"], "Früchtetee", "{order}");
    let order = system.get("/v1/orders/shopify-1").send().await.expect(200).json();
    assert_eq!(
        (&order["placed_at"], &order["status"]),
        (&json!("2024-03-01T15:15:00Z"), &json!("confirmed")),
        "{order}"
    );
    assert_eq!(order["attributes"], json!({"store_id": "Berlin", "source": "web"}), "{order}");
    let order = system.get("/v1/orders/shopify-3").send().await.expect(200).json();
    assert_eq!(order["status"], "cancelled", "{order}");
    let order = system.get("/v1/orders/woo-31").send().await.expect(200).json();
    assert_eq!(order["lines"][1]["unit_price"], "5.25", "{order}");
}

/// Every file of this test is a row of docs/import.md.
#[test]
fn the_table_of_files_is_in_the_documentation() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/import.md");
    let text = std::fs::read_to_string(path).expect("docs/import.md");
    let missing: Vec<String> = FILES.iter().map(File::row).filter(|row| !text.contains(row)).collect();
    assert!(missing.is_empty(), "docs/import.md must have these rows:\n{}", missing.join("\n"));
}

async fn a_second_run_compares(system: TestSystem) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let write = |name: &str, lines: &[&str]| {
        let header = "order_ref,customer_ref,placed_at,status,sku,product_name,quantity,unit_price";
        let path = folder.path().join(name);
        std::fs::write(&path, format!("{header}\n{}\n", lines.join("\n"))).expect("the file is written");
        path
    };
    let at = "2024-01-05T10:00:00Z";
    let first = write(
        "first.csv",
        &[
            &format!("again-1,ada,{at},confirmed,tea,Tea,2,1.50"),
            &format!("again-2,ada,{at},draft,tea,Tea,2,1.50"),
            &format!("again-2,ada,{at},draft,cup,Cup,1,9.00"),
            &format!("again-3,ada,{at},confirmed,tea,Tea,1,1.00"),
        ],
    );
    let (exit, summary, errors) = import(&system, &first, &[]).await;
    assert_eq!((exit, &summary["confirmed"], &summary["left_draft"]), (0, &json!(2), &json!(1)), "{errors}");
    let head = system.settled().await;
    let second = write(
        "second.csv",
        &[
            &format!("again-1,ada,{at},confirmed,tea,Green tea,3,1.75"),
            &format!("again-2,ada,{at},confirmed,tea,Tea,5,1.50"),
            &format!("again-2,ada,{at},confirmed,pot,Pot,1,20.00"),
            "again-3,ada,2024-01-05T12:00:00Z,confirmed,tea,Tea,1,1.00",
        ],
    );
    let (exit, summary, errors) = import(&system, &second, &[]).await;
    let said = said(&summary, &errors);
    assert_eq!((exit, &summary["different"]), (3, &json!(3)), "{said}");
    for part in [
        "line 2 (order again-1): SKU tea: the quantity is 2 in the stored order, and 3 in the import.",
        "line 2 (order again-1): SKU tea: the unit price is 1.50 in the stored order, and 1.75 in the import.",
        "line 2 (order again-1): SKU tea: the name is Tea in the stored order, and Green tea in the import.",
        "line 3 (order again-2): SKU tea: the quantity is 2 in the stored order, and 5 in the import.",
        "line 4 (order again-2): SKU pot is not in the stored order.",
        "line 3 (order again-2): SKU cup is in the stored order only.",
        "line 3 (order again-2): The status is draft in the stored order, and confirmed in the import.",
        "line 5 (order again-3): The time is 2024-01-05T10:00:00Z in the stored order, and 2024-01-05T12:00:00Z in the import.",
    ] {
        assert!(said.contains(part), "`{part}` is not in {said}");
    }
    assert_eq!(system.settled().await, head, "a comparison must add nothing");
    let (exit, summary, errors) = import(&system, &second, &["--update"]).await;
    assert_eq!((exit, &summary["different"], &summary["updated"]), (3, &json!(2), &json!(1)), "{errors}");
    system.settled().await;
    let order = system.get("/v1/orders/again-2").send().await.expect(200).json();
    assert_eq!((&order["status"], &order["total"]), (&json!("confirmed"), &json!("27.50")), "{order}");
    let order = system.get("/v1/orders/again-1").send().await.expect(200).json();
    assert_eq!(order["total"], "3.00", "a confirmed order must not change: {order}");
}

async fn a_dry_run_is_exact_and_changes_nothing(system: TestSystem) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("dry.csv");
    let lines = [
        "order_ref,customer_ref,sku,quantity,unit_price",
        "dry-1,ada,tea,2,1.50",
        "dry-2,ada,tea,0,1.50",
        "dry-3,a\u{200b}da,tea,1,1.50",
        "dry-4,ada,tea,1,1.50",
        "dry-4,ada,tea,1,1.75",
        "dry-5,ada,tea,1,1.505",
        "dry-6,ada,tea,1,abc",
    ];
    std::fs::write(&path, lines.join("\n") + "\n").expect("the file is written");
    let head = system.settled().await;
    let (exit, dry, errors) = import(&system, &path, &["--dry-run"]).await;
    assert_eq!((exit, &dry["dry_run"]), (3, &json!(true)), "{errors}");
    assert!(errors.contains("Dry run, nothing was changed."), "{errors}");
    assert_eq!(system.settled().await, head, "a dry run must add nothing");
    let (_, real, _) = import(&system, &path, &[]).await;
    for name in ["confirmed", "rejected_orders", "rejected_lines", "already_there", "rejected"] {
        assert_eq!(dry[name], real[name], "{name}: {dry} {real}");
    }
    assert_eq!((&real["confirmed"], &real["rejected_orders"]), (&json!(1), &json!(5)), "{real}");
    system.settled().await;
    system.get("/v1/orders/dry-2").send().await.expect(404);
    // Against the store that the real run has filled.
    let head = system.settled().await;
    let (_, dry, _) = import(&system, &path, &["--dry-run", "--partial"]).await;
    assert_eq!(system.settled().await, head, "a dry run must add nothing");
    let (_, real, _) = import(&system, &path, &["--partial"]).await;
    for name in ["confirmed", "left_draft", "rejected_orders", "rejected_lines", "already_there", "rejected"] {
        assert_eq!(dry[name], real[name], "{name}: {dry} {real}");
    }
    // Orders without a good line are empty drafts: dry-2, dry-5 and dry-6. The customer of dry-3 is not valid.
    assert_eq!((&real["left_draft"], &real["rejected_orders"]), (&json!(3), &json!(1)), "{real}");
    // Lines of one request see each other. Every kind of command is checked.
    let lines = [
        json!({"type": "create_order", "order_id": "dry-9", "customer_id": "ada"}),
        json!({"type": "create_order", "order_id": "dry-9", "customer_id": "ada"}),
        json!({"type": "add_item", "order_id": "dry-9", "sku": "tea", "quantity": 2, "unit_price": "1.00"}),
        json!({"type": "confirm_order", "order_id": "dry-9"}),
        json!({"type": "add_item", "order_id": "dry-9", "sku": "tea", "quantity": 2, "unit_price": "1.00"}),
    ];
    let body: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let head = system.settled().await;
    let answer = system.post("/v1/commands?dry_run=true").body("application/x-ndjson", body.clone()).send().await;
    let text = |answer: &tests::client::Answer| String::from_utf8_lossy(&answer.body).into_owned();
    let dry = text(&answer.expect(200));
    assert_eq!(system.settled().await, head, "a dry run must add nothing");
    let real = text(&system.post("/v1/commands").body("application/x-ndjson", body).send().await.expect(200));
    let statuses = |text: &str| -> Vec<(Value, Value)> {
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        lines.map(|line| (line["status"].clone(), line["version"].clone())).collect()
    };
    assert_eq!(statuses(&dry), statuses(&real));
    let answer = system.post("/v1/commands?dryrun=true").body("application/x-ndjson", String::new()).send().await;
    answer.expect(400);
    // A comparison would show the orders of other customers.
    let line = json!({"type": "import_order", "order_id": "dry-9", "customer_id": "eve"}).to_string();
    let request = system.post("/v1/commands").body("application/x-ndjson", line).token(&token("eve", "customer"));
    let line = request.send().await.expect(200).json();
    assert_eq!((&line["status"], &line["problem"]["type"]), (&json!(403), &json!("/problems/forbidden")), "{line}");
    assert!(line.get("created_at").is_none(), "{line}");
}

async fn rejected_lines_can_be_corrected_and_imported(system: TestSystem) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (path, rejects) = (folder.path().join("orders.csv"), folder.path().join("rejects.csv"));
    let text = "order_ref;customer_ref;sku;product_name;quantity;unit_price;note\n\
                fix-1;ada;tea;Tee, grün;1;1,50;\nfix-2;ada;tea;Tee;0;1,50;\"a;b\"\nfix-2;ada;cup;Tasse;1;9,00;\n";
    std::fs::write(&path, text).expect("the file is written");
    let option = ["--rejects", rejects.to_str().expect("UTF-8")];
    let (exit, summary, errors) = import(&system, &path, &option).await;
    assert_eq!((exit, &summary["rejected_lines"]), (3, &json!(2)), "{errors}");
    let written = std::fs::read_to_string(&rejects).expect("the file is there");
    assert_eq!(
        written,
        "order_ref;customer_ref;sku;product_name;quantity;unit_price;note;reason\n\
         fix-2;ada;tea;Tee;0;1,50;\"a;b\";quantity: The quantity must be a whole number from 1 to 1000000.\n\
         fix-2;ada;cup;Tasse;1;9,00;;The order was rejected because of another line.\n"
    );
    let corrected = folder.path().join("corrected.csv");
    std::fs::write(&corrected, written.replace(";0;", ";2;")).expect("the file is written");
    let (exit, summary, errors) = import(&system, &corrected, &option).await;
    assert_eq!((exit, &summary["confirmed"]), (0, &json!(1)), "{errors}");
    system.settled().await;
    let order = system.get("/v1/orders/fix-2").send().await.expect(200).json();
    assert_eq!(order["total"], "12.00", "{order}");
    // From a pipe.
    let (url, staff) = (system.writer().base().to_owned(), token("import", "staff"));
    let mut command = system.command(&["import", "-", "--url", &url, "--token", &staff, "--json"]);
    command.stdin(std::fs::File::open(&path).expect("the file is there"));
    let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output().await.expect("docket runs");
    let summary: Value = serde_json::from_slice(&output.stdout).expect("a summary");
    assert_eq!((&summary["already_there"], &summary["rejected_orders"]), (&json!(1), &json!(1)), "{summary}");
    let input = import(&system, &path, &["--rejects", path.to_str().expect("UTF-8")]).await;
    assert!(input.0 == 2 && input.2.contains("is the file to import"), "{}", input.2);
}
