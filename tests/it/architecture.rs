//! The house keeps its shape: which crate may use which, no circle between files, and an engine that knows no business.
//!
//! Each check reads the sources as they are, so it fails on the commit that breaks a rule. What is not yet as it must be is
//! in a list of exceptions; an exception that is not needed any more fails too, so the lists only shrink.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Which crates of ours a crate may depend on, besides those that only its tests need.
const ARROWS: &[(&str, &[&str])] = &[
    ("kernel", &[]),
    ("platform", &[]),
    ("event-store", &["kernel", "platform"]),
    ("projection-engine", &["kernel", "event-store"]),
    ("push", &["kernel", "event-store", "projection-engine", "platform"]),
    ("command-engine", &["kernel", "event-store", "platform"]),
    ("domain", &["kernel"]),
    ("projections", &["domain", "kernel", "event-store", "projection-engine"]),
    ("write-side", &["domain", "kernel", "event-store", "platform", "command-engine"]),
    ("read-side", &["projections", "domain", "kernel", "event-store", "projection-engine", "push", "platform"]),
    (
        "server",
        &[
            "write-side",
            "read-side",
            "projections",
            "kernel",
            "event-store",
            "projection-engine",
            "push",
            "command-engine",
            "platform",
        ],
    ),
    ("toy", &["server", "kernel", "event-store", "projection-engine", "push", "command-engine", "platform"]),
    ("tests", &[]),
    ("bench", &["tests"]),
];

/// Words of the business. The engine may not name anything by them.
const BUSINESS: &[&str] = &[
    "order", "orders", "sku", "payment", "payments", "product", "products", "sale", "sales", "checkout", "refund",
    "shipment",
];

/// Engine files that name something by a word of the business which means something else there.
const BUSINESS_EXCEPTIONS: &[(&str, &str)] = &[
    // The byte order mark.
    ("platform/body.rs", "order"),
];

/// Files that still use each other in a circle, in the order of their names.
const CIRCLE_EXCEPTIONS: &[&[&str]] = &[];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

/// A crate of the workspace: its name, its folder, and the crates of the workspace that it is built from.
struct Crate {
    name: String,
    folder: PathBuf,
    uses: Vec<String>,
}

fn crates() -> Vec<Crate> {
    let cargo = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    let metadata: Value = serde_json::from_slice(&cargo.stdout).expect("cargo metadata is JSON");
    let packages = metadata["packages"].as_array().expect("packages").iter();
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    packages
        .map(|package| Crate {
            name: text(&package["name"]),
            folder: Path::new(&text(&package["manifest_path"])).parent().expect("a folder").to_owned(),
            uses: package["dependencies"]
                .as_array()
                .expect("dependencies")
                .iter()
                .filter(|used| used["path"].is_string() && used["kind"] != "dev")
                .map(|used| text(&used["name"]))
                .collect(),
        })
        .collect()
}

/// Contexts that are written from outside, each in a crate below `examples/`.
const EXAMPLES: &[&str] =
    &["server", "kernel", "event-store", "projection-engine", "push", "command-engine", "platform"];

/// Arrows that no rule allows.
fn wrong_arrows(crates: &[Crate]) -> Vec<String> {
    let mut wrong = Vec::new();
    let examples = root().join("examples").canonicalize().expect("the folder of examples");
    for Crate { name, uses, folder } in crates {
        let listed = ARROWS.iter().find(|(known, _)| known == name).map(|(_, allowed)| *allowed);
        match listed.or_else(|| folder.starts_with(&examples).then_some(EXAMPLES)) {
            None => wrong.push(format!("{name} is in no list of arrows: add it to ARROWS in tests/it/architecture.rs")),
            Some(allowed) => {
                wrong.extend(
                    uses.iter()
                        .filter(|used| !allowed.contains(&used.as_str()))
                        .map(|used| format!("{name} -> {used}")),
                );
            }
        }
    }
    wrong
}

/// The Rust files of a crate's `src`, by their path from it, without what only tests compile.
fn sources(folder: &Path) -> BTreeMap<String, String> {
    fn add(folder: &Path, src: &Path, found: &mut BTreeMap<String, String>) {
        let Ok(entries) = std::fs::read_dir(folder) else { return };
        for path in entries.map(|entry| entry.expect("an entry").path()) {
            if path.is_dir() {
                add(&path, src, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).expect("a source file");
                let tests = ["\n#[cfg(test)]\nmod ", "\n#[cfg(test)]\npub(crate) mod "];
                let end = tests.iter().filter_map(|tests| text.find(tests)).min().unwrap_or(text.len());
                let text = text[..end].to_owned();
                found.insert(path.strip_prefix(src).expect("in src").display().to_string(), text);
            }
        }
    }
    let mut found = BTreeMap::new();
    add(&folder.join("src"), &folder.join("src"), &mut found);
    found
}

/// A source without its comments.
fn code(source: &str) -> String {
    let lines = source.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.map(|line| line.split(" // ").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// The file of a module: `a::b` is `a/b.rs`, or the longest beginning of it that is a file.
fn file_of<'a>(module: &str, files: &'a BTreeMap<String, String>) -> Option<&'a str> {
    let mut parts: Vec<&str> = module.split("::").collect();
    while !parts.is_empty() {
        let path = format!("{}.rs", parts.join("/"));
        if let Some((known, _)) = files.get_key_value(&path) {
            return Some(known);
        }
        parts.pop();
    }
    None
}

/// The modules that `crate::…` paths of a source name.
fn modules(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in source.match_indices("crate::") {
        if source[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_' || before == '$') {
            continue;
        }
        let rest = &source[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => {
                let group = group.split('}').next().unwrap_or_default();
                found.extend(group.split(',').map(|one| one.trim().to_owned()));
            }
            None => {
                let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':').unwrap_or(rest.len());
                found.push(rest[..end].trim_end_matches(':').to_owned());
            }
        }
    }
    found
}

/// Groups of files that use each other in a circle.
fn circles(files: &BTreeMap<String, String>) -> Vec<Vec<String>> {
    let uses: BTreeMap<&str, BTreeSet<&str>> = files
        .iter()
        .map(|(file, source)| {
            let code = code(source);
            let used = modules(&code);
            let used = used.iter().filter_map(|module| file_of(module, files)).filter(|used| used != file);
            (file.as_str(), used.collect())
        })
        .collect();
    let reachable = |from: &str| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
        while let Some(file) = next.pop() {
            for used in uses.get(file).into_iter().flatten() {
                if seen.insert(*used) {
                    next.push(used);
                }
            }
        }
        seen
    };
    let reach: BTreeMap<&str, BTreeSet<&str>> = uses.keys().map(|file| (*file, reachable(file))).collect();
    let mut found = BTreeSet::new();
    for (file, reached) in &reach {
        if reached.contains(file) {
            let circle = reached.iter().filter(|other| reach[*other].contains(file));
            found.insert(circle.map(|&other| other.to_owned()).collect::<Vec<_>>());
        }
    }
    found.into_iter().collect()
}

/// Words of the business by which a source names something. `order by` is SQL's.
fn business_words(source: &str) -> BTreeSet<String> {
    let code = code(source).replace("order by", "").replace("preserve_order", "");
    let names = code.split(|c: char| !c.is_alphanumeric() && c != '_');
    let words = names.flat_map(words_of).map(|word| word.to_lowercase());
    words.filter(|word| BUSINESS.contains(&word.as_str())).collect()
}

/// The words of a name: `order_id`, `OrderId` and `ORDER_ID` have the same.
fn words_of(name: &str) -> Vec<&str> {
    if !name.contains(char::is_lowercase) {
        return name.split('_').collect();
    }
    let mut words = Vec::new();
    for part in name.split('_') {
        let mut begin = 0;
        for (at, _) in part.char_indices().filter(|(at, c)| *at > 0 && c.is_uppercase()) {
            words.push(&part[begin..at]);
            begin = at;
        }
        words.push(&part[begin..]);
    }
    words
}

#[test]
fn crates_depend_on_each_other_only_along_the_arrows() {
    assert_eq!(wrong_arrows(&crates()), Vec::<String>::new());
}

#[test]
fn the_engine_depends_on_nothing_outside_of_it() {
    let engine = root().join("engine");
    let crates = crates();
    let inside = |name: &str| crates.iter().any(|known| known.name == name && known.folder.starts_with(&engine));
    for one in crates.iter().filter(|one| one.folder.starts_with(&engine)) {
        let outside: Vec<_> = one.uses.iter().filter(|used| !inside(used)).collect();
        assert!(outside.is_empty(), "{} depends on {outside:?}", one.name);
    }
}

#[test]
fn no_files_of_a_crate_use_each_other_in_a_circle() {
    let mut found = BTreeSet::new();
    for Crate { name, folder, .. } in crates() {
        let in_crate =
            |circle: Vec<String>| circle.into_iter().map(|file| format!("{name}/{file}")).collect::<Vec<_>>();
        found.extend(circles(&sources(&folder)).into_iter().map(in_crate));
    }
    let excepted: BTreeSet<Vec<String>> =
        CIRCLE_EXCEPTIONS.iter().map(|circle| circle.iter().map(|&file| file.to_owned()).collect()).collect();
    assert_eq!(found, excepted);
}

#[test]
fn the_engine_names_nothing_by_a_word_of_the_business() {
    let engine = root().join("engine");
    let mut found = BTreeSet::new();
    for Crate { name, folder, .. } in crates().into_iter().filter(|one| one.folder.starts_with(&engine)) {
        for (file, source) in sources(&folder) {
            found.extend(business_words(&source).into_iter().map(|word| (format!("{name}/{file}"), word)));
        }
    }
    let excepted = BUSINESS_EXCEPTIONS.iter().map(|&(file, word)| (file.to_owned(), word.to_owned()));
    assert_eq!(found, excepted.collect());
}

#[test]
fn what_the_checks_look_for_is_found() {
    let planted = |name: &str, uses: &[&str]| Crate {
        name: name.into(),
        folder: PathBuf::new(),
        uses: uses.iter().map(|&used| used.to_owned()).collect(),
    };
    let crates = [planted("kernel", &["domain"]), planted("extra", &[]), planted("domain", &["kernel"])];
    assert_eq!(
        wrong_arrows(&crates),
        ["kernel -> domain", "extra is in no list of arrows: add it to ARROWS in tests/it/architecture.rs"]
    );

    let source = "// An order by its customer.\nlet rows = \"select 1 order by id\";\nstruct OrderId; // order\nfn in_order() {}\nuse std::sync::atomic::Ordering;";
    assert_eq!(business_words(source).into_iter().collect::<Vec<_>>(), ["order"]);
    assert!(business_words("use std::cmp::Ordering; // an order\n// an order").is_empty());
    assert_eq!(business_words("const PAYMENTS_MAX: u8 = 1;").into_iter().collect::<Vec<_>>(), ["payments"]);

    let files =
        |files: &[(&str, &str)]| files.iter().map(|&(file, source)| (file.to_owned(), source.to_owned())).collect();
    let circle = files(&[
        ("a.rs", "use crate::b::thing;"),
        ("b.rs", "use crate::{c, d::Other};"),
        ("c.rs", "fn f() { crate::a::thing() }"),
        ("d.rs", "// use crate::a;\nuse other_crate::a;"),
    ]);
    assert_eq!(circles(&circle), [["a.rs", "b.rs", "c.rs"]]);
    assert!(circles(&files(&[("a.rs", "use crate::a::b::thing;"), ("a/b.rs", "")])).is_empty());
}
