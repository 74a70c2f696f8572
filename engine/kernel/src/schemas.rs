//! JSON Schemas of events, for the tests of contexts. Events are a storage format, so the repository contains a schema
//! file for each version of each event. A test fails when an event type and its schema file differ.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use crate::aggregate::{Aggregate, EventType, version_of};

/// Returns the schemas of an aggregate's events in their current versions, by file name: `NAME.vN.json`. A schema
/// describes the payload without the enclosing `{"NAME": …}`.
pub fn of<A: Aggregate>() -> BTreeMap<String, Value> {
    variants::<A>().iter().flat_map(payload_schema::<A>).collect()
}

fn variants<A: Aggregate>() -> Vec<Value> {
    let generator = SchemaSettings::draft2020_12().for_serialize().with(|settings| settings.inline_subschemas = true);
    let root = generator.into_generator().into_root_schema_for::<A::Event>().to_value();
    // The schema of an enum with one variant has no `oneOf`.
    root["oneOf"].as_array().cloned().unwrap_or_else(|| vec![root.clone()])
}

fn payload_schema<A: Aggregate>(variant: &Value) -> Option<(String, Value)> {
    let (event_type, payload) = variant["properties"].as_object()?.iter().next()?;
    let version = version_of::<A::Event>(event_type)?;
    let mut schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": format!("{event_type}, version {version}"),
        "description": variant["description"],
    });
    schema.as_object_mut()?.extend(payload.as_object()?.clone());
    Some((format!("{event_type}.v{version}.json"), schema))
}

/// Returns the errors in an aggregate's event names. Each event must be a variant with fields and be listed once in
/// `VERSIONS`.
fn wrong_names<A: Aggregate>() -> Vec<String> {
    let (mut wrong, mut named) = (Vec::new(), BTreeSet::new());
    for variant in variants::<A>() {
        // A variant without fields is stored as a JSON string.
        let bare = variant["enum"].as_array().into_iter().flatten().chain(variant.get("const"));
        wrong.extend(bare.filter_map(Value::as_str).map(|name| {
            format!(
                "The event {name} has no payload, so it is stored as a JSON string. Write `{name} {{}}` in the enum."
            )
        }));
        named.extend(variant["properties"].as_object().into_iter().flatten().map(|(name, _)| name.clone()));
    }
    let listed: BTreeSet<_> = A::Event::VERSIONS.iter().map(|(name, _)| (*name).to_owned()).collect();
    wrong.extend(named.difference(&listed).map(|name| format!("The event {name} is not listed in VERSIONS.")));
    wrong.extend(
        listed
            .difference(&named)
            .map(|name| format!("VERSIONS lists {name}, but no event with a payload has this name.")),
    );
    wrong
}

/// Compares schema files, given as texts by file name, with the event types of an aggregate. Returns one message per
/// difference; an empty list if there is none.
pub fn differences<A: Aggregate>(files: &BTreeMap<String, String>) -> Vec<String> {
    let wrong_names = wrong_names::<A>();
    let wrong = of::<A>().into_iter().filter(|(name, schema)| files.get(name) != Some(&format!("{schema:#}\n")));
    let advice = "If all stored events of this version remain valid and decode to the same values, write the file again \
                  with `UPDATE_SCHEMAS=1`. Otherwise give the event a new version and an upcaster.";
    let wrong = wrong.map(|(name, _)| format!("The schema file {name} does not match the event type. {advice}"));
    wrong_names.into_iter().chain(wrong).collect()
}

/// Compares the schema files in `folder/TYPE` with the event types of an aggregate. If the environment variable
/// `UPDATE_SCHEMAS` is set, it writes the files first.
///
/// # Panics
/// Panics if a file differs or cannot be read.
pub fn check<A: Aggregate>(folder: &Path) {
    let folder = folder.join(A::TYPE);
    if std::env::var_os("UPDATE_SCHEMAS").is_some() {
        std::fs::create_dir_all(&folder).expect("the folder can be created");
        for (name, schema) in of::<A>() {
            std::fs::write(folder.join(name), format!("{schema:#}\n")).expect("the file can be written");
        }
    }
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| {
        panic!(
            "{}: {error}. Write the schema files with `UPDATE_SCHEMAS=1 cargo test` and commit them.",
            folder.display()
        )
    });
    let files = entries.map(|entry| {
        let entry = entry.expect("the folder can be read");
        let text = std::fs::read_to_string(entry.path()).expect("the file can be read");
        (entry.file_name().to_string_lossy().into_owned(), text)
    });
    let differences = differences::<A>(&files.collect());
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
