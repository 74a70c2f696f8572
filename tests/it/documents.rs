//! Checks that the files, functions and tests that the documents name exist.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Documents that describe the current state. Decisions and the changelog describe the past.
const PAGES: &[&str] = &[
    "README.md",
    "CONTRIBUTING.md",
    "STYLE.md",
    "SECURITY.md",
    "docs/architecture.md",
    "docs/compare.md",
    "docs/extending.md",
    "docs/glossary.md",
    "docs/identity.md",
    "docs/invariants.md",
    "docs/jetstream.md",
    "docs/metrics.md",
    "docs/operations.md",
    "docs/push.md",
    "docs/reliability.md",
    "docs/settings.md",
    "docs/use-from-your-app.md",
    "clients/python/README.md",
    "clients/typescript/README.md",
    "examples/shop/README.md",
    "bench/README.md",
    "deploy/README.md",
    "migrations/README.md",
];
/// Folders without sources of this repository.
const EXCLUDED_FOLDERS: &[&str] = &["target", ".git", "node_modules", "data"];

struct Tree {
    /// Path of every file, relative to the root.
    files: BTreeSet<String>,
    /// All Rust sources, concatenated.
    sources: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

impl Tree {
    fn read() -> Self {
        let mut tree = Self { files: BTreeSet::new(), sources: String::new() };
        tree.add(&root(), "");
        tree
    }

    fn add(&mut self, folder: &Path, prefix: &str) {
        for entry in std::fs::read_dir(folder).expect("a readable folder").flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}/{name}") };
            if entry.path().is_dir() {
                if !EXCLUDED_FOLDERS.contains(&name.as_str()) {
                    self.add(&entry.path(), &path);
                }
                continue;
            }
            if name.ends_with(".rs") {
                self.sources += &std::fs::read_to_string(entry.path()).expect("a readable source");
            }
            self.files.insert(path);
        }
    }

    /// Returns the text of every file whose path equals or ends with `path`.
    fn named(&self, path: &str) -> Option<String> {
        let ends = |file: &&String| file.strip_suffix(path).is_some_and(|rest| rest.is_empty() || rest.ends_with('/'));
        let files: Vec<_> = self.files.iter().filter(ends).collect();
        let text = files.iter().map(|file| std::fs::read_to_string(root().join(file)).unwrap_or_default());
        (!files.is_empty()).then(|| text.collect())
    }

    /// Returns what is wrong with a code span; `None` if it is correct, or does not name a file or function.
    fn fault(&self, span: &str) -> Option<String> {
        let is_path = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
        if let Some((path, names)) = span.split_once(".rs::") {
            let path = format!("{path}.rs");
            let Some(text) = self.named(&path) else { return Some(format!("the file {path} does not exist")) };
            let missing = names.split("::").map(identifier).find(|name| !has_word(&text, name));
            return missing.map(|name| format!("{path} does not contain {name}"));
        }
        if span.ends_with(".rs") && span.chars().all(is_path) {
            return self.named(span).is_none().then(|| format!("the file {span} does not exist"));
        }
        // A type and its function, such as `Store::append`.
        let (kind, function) = span.split_once("::")?;
        let is_name = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        let function = function.split('(').next().unwrap_or_default();
        if !is_name(kind) || !is_name(function) || KEYWORDS.contains(&kind) {
            return None;
        }
        let missing = [kind, function].into_iter().find(|name| !has_word(&self.sources, name));
        missing.map(|name| format!("no source contains {name}"))
    }
}

/// First parts of paths that belong to other crates.
const KEYWORDS: &[&str] = &["std", "tokio", "serde", "axum"];

fn identifier(name: &str) -> &str {
    name.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or_default()
}

/// Whether a text contains a whole word: `append` is in `fn append(`, but not in `appended`.
fn has_word(text: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.match_indices(word)
        .any(|(at, _)| !text[..at].ends_with(is_part) && !text[at + word.len()..].starts_with(is_part))
}

/// Returns the code spans of a page, without its code blocks.
fn spans(page: &str) -> Vec<&str> {
    let outside: Vec<&str> = page.split("```").step_by(2).collect();
    outside.into_iter().flat_map(|text| text.split('`').skip(1).step_by(2)).collect()
}

#[test]
fn names_in_documents_exist() {
    let tree = Tree::read();
    let mut faults = BTreeSet::new();
    for page in PAGES {
        let text = std::fs::read_to_string(root().join(page)).expect(page);
        faults.extend(spans(&text).into_iter().filter_map(|span| Some(format!("{page}: {}", tree.fault(span)?))));
    }
    assert!(faults.is_empty(), "{}", faults.into_iter().collect::<Vec<_>>().join("\n"));
}

#[test]
fn a_missing_name_is_found() {
    let tree = Tree::read();
    assert_eq!(tree.fault("documents.rs::names_in_documents_exist"), None);
    assert_eq!(tree.fault("engine/event-store/src/store.rs"), None);
    let gone = ["nowhere.rs", "documents.rs::no_such_function", "Store::no_such_function"];
    for span in gone.iter().map(|span| span.replace("no_such", "absent")) {
        assert!(tree.fault(&span).is_some(), "{span}");
    }
}
