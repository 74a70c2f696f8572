//! Rules of the architecture: which crate may depend on which, no dependency cycles between files, and no business
//! terms in the engine.
//!
//! Each check reads the current sources, so the commit that breaks a rule fails. Known violations are in lists of
//! exceptions. An exception that is no longer needed fails too, so the lists can only shrink.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// The workspace crates that each crate may depend on. Dependencies that only tests need are not checked.
const ALLOWED_DEPENDENCIES: &[(&str, &[&str])] = &[
    ("kernel", &[]),
    ("platform", &["kernel"]),
    ("event-store", &["kernel", "platform"]),
    ("projection-engine", &["kernel", "event-store"]),
    ("push", &["kernel", "event-store", "projection-engine", "platform"]),
    ("testkit", &["kernel", "event-store"]),
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

/// Business terms. The engine must not use them in names.
const BUSINESS_TERMS: &[&str] = &[
    "order", "orders", "sku", "payment", "payments", "product", "products", "sale", "sales", "checkout", "refund",
    "shipment",
];

/// Engine files that use a business term in another meaning.
const BUSINESS_EXCEPTIONS: &[(&str, &str)] = &[
    // `order` is part of "byte order mark" here.
    ("platform/body.rs", "order"),
];

/// Groups of files that still depend on each other in a cycle; the files are sorted by name.
const CYCLE_EXCEPTIONS: &[&[&str]] = &[];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace folder").to_owned()
}

/// A crate of the workspace: its name, its folder, and the workspace crates that it is built from.
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
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    packages
        .map(|package| Crate {
            name: text(&package["name"]),
            folder: Path::new(&text(&package["manifest_path"])).parent().expect("a folder of the manifest").to_owned(),
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

/// The workspace crates that the example contexts may depend on. Each example is a crate below `examples/`.
const EXAMPLES: &[&str] =
    &["server", "kernel", "event-store", "projection-engine", "push", "command-engine", "platform"];

/// Returns the dependencies that no rule allows.
fn forbidden_dependencies(crates: &[Crate]) -> Vec<String> {
    let mut wrong = Vec::new();
    let examples = root().join("examples").canonicalize().expect("the examples folder exists");
    for Crate { name, uses, folder } in crates {
        let listed = ALLOWED_DEPENDENCIES.iter().find(|(known, _)| known == name).map(|(_, allowed)| *allowed);
        match listed.or_else(|| folder.starts_with(&examples).then_some(EXAMPLES)) {
            None => wrong.push(format!("{name} is not in ALLOWED_DEPENDENCIES: add it in tests/it/architecture.rs")),
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

/// Returns the Rust files in a crate's `src` by their path relative to it, without the code that only tests compile.
fn sources(folder: &Path) -> BTreeMap<String, String> {
    fn add(folder: &Path, src: &Path, found: &mut BTreeMap<String, String>) {
        let Ok(entries) = std::fs::read_dir(folder) else { return };
        for path in entries.map(|entry| entry.expect("a readable entry").path()) {
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

/// Returns a source without its comments.
fn code(source: &str) -> String {
    let lines = source.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.map(|line| line.split(" // ").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// Returns the file of a module: `a::b` is `a/b.rs`, or the file of the longest prefix of the module's path.
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

/// Returns the modules in the `crate::…` paths of a source.
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

/// Returns the groups of files that depend on each other in a cycle.
fn cycles(files: &BTreeMap<String, String>) -> Vec<Vec<String>> {
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
            let cycle = reached.iter().filter(|other| reach[*other].contains(file));
            found.insert(cycle.map(|&other| other.to_owned()).collect::<Vec<_>>());
        }
    }
    found.into_iter().collect()
}

/// Returns the business terms in the names of a source. `order by` is excluded, because it is SQL.
fn business_terms(source: &str) -> BTreeSet<String> {
    let code = code(source).replace("order by", "").replace("preserve_order", "");
    let names = code.split(|c: char| !c.is_alphanumeric() && c != '_');
    let words = names.flat_map(words_of).map(|word| word.to_lowercase());
    words.filter(|word| BUSINESS_TERMS.contains(&word.as_str())).collect()
}

/// Splits a name into words: `order_id`, `OrderId` and `ORDER_ID` have the same words.
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
fn crates_have_only_allowed_dependencies() {
    assert_eq!(forbidden_dependencies(&crates()), Vec::<String>::new());
}

#[test]
fn the_engine_depends_only_on_itself() {
    let engine = root().join("engine");
    let crates = crates();
    let inside = |name: &str| crates.iter().any(|known| known.name == name && known.folder.starts_with(&engine));
    for one in crates.iter().filter(|one| one.folder.starts_with(&engine)) {
        let outside: Vec<_> = one.uses.iter().filter(|used| !inside(used)).collect();
        assert!(outside.is_empty(), "{} depends on {outside:?}", one.name);
    }
}

#[test]
fn the_files_of_a_crate_have_no_dependency_cycles() {
    let mut found = BTreeSet::new();
    for Crate { name, folder, .. } in crates() {
        let in_crate = |cycle: Vec<String>| cycle.into_iter().map(|file| format!("{name}/{file}")).collect::<Vec<_>>();
        found.extend(cycles(&sources(&folder)).into_iter().map(in_crate));
    }
    let excepted: BTreeSet<Vec<String>> =
        CYCLE_EXCEPTIONS.iter().map(|cycle| cycle.iter().map(|&file| file.to_owned()).collect()).collect();
    assert_eq!(found, excepted);
}

#[test]
fn the_engine_uses_no_business_terms() {
    let engine = root().join("engine");
    let mut found = BTreeSet::new();
    for Crate { name, folder, .. } in crates().into_iter().filter(|one| one.folder.starts_with(&engine)) {
        for (file, source) in sources(&folder) {
            found.extend(business_terms(&source).into_iter().map(|word| (format!("{name}/{file}"), word)));
        }
    }
    let excepted = BUSINESS_EXCEPTIONS.iter().map(|&(file, word)| (file.to_owned(), word.to_owned()));
    assert_eq!(found, excepted.collect());
}

#[test]
fn the_checks_find_planted_violations() {
    let planted = |name: &str, uses: &[&str]| Crate {
        name: name.into(),
        folder: PathBuf::new(),
        uses: uses.iter().map(|&used| used.to_owned()).collect(),
    };
    let crates = [planted("kernel", &["domain"]), planted("extra", &[]), planted("domain", &["kernel"])];
    assert_eq!(
        forbidden_dependencies(&crates),
        ["kernel -> domain", "extra is not in ALLOWED_DEPENDENCIES: add it in tests/it/architecture.rs"]
    );

    let source = "// An order by its customer.\nlet rows = \"select 1 order by id\";\nstruct OrderId; // order\nfn in_order() {}\nuse std::sync::atomic::Ordering;";
    assert_eq!(business_terms(source).into_iter().collect::<Vec<_>>(), ["order"]);
    assert!(business_terms("use std::cmp::Ordering; // an order\n// an order").is_empty());
    assert_eq!(business_terms("const PAYMENTS_MAX: u8 = 1;").into_iter().collect::<Vec<_>>(), ["payments"]);

    let files =
        |files: &[(&str, &str)]| files.iter().map(|&(file, source)| (file.to_owned(), source.to_owned())).collect();
    let cycle = files(&[
        ("a.rs", "use crate::b::thing;"),
        ("b.rs", "use crate::{c, d::Other};"),
        ("c.rs", "fn f() { crate::a::thing() }"),
        ("d.rs", "// use crate::a;\nuse other_crate::a;"),
    ]);
    assert_eq!(cycles(&cycle), [["a.rs", "b.rs", "c.rs"]]);
    assert!(cycles(&files(&[("a.rs", "use crate::a::b::thing;"), ("a/b.rs", "")])).is_empty());
}
