//! JSON Schemas of events, for the tests of whoever writes an aggregate: an event is a storage format, so a schema file for
//! each version lies beside the code, and a test fails when one moves without the other.

use std::collections::BTreeMap;
use std::path::Path;

use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use crate::aggregate::{Aggregate, version_of};

/// The schemas of an aggregate's events in their present versions, by file name: `NAME.vN.json`. A schema is that of the
/// payload, without the event's name around it.
pub fn of<A: Aggregate>() -> BTreeMap<String, Value> {
    let generator = SchemaSettings::draft2020_12().for_serialize().with(|settings| settings.inline_subschemas = true);
    let root = generator.into_generator().into_root_schema_for::<A::Event>().to_value();
    // An enum of one variant has no list of them.
    let variants = root["oneOf"].as_array().cloned().unwrap_or_else(|| vec![root.clone()]);
    variants.iter().flat_map(payload_schema::<A>).collect()
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

/// What is wrong with the schema files of an aggregate, given by name with their texts; empty where nothing is.
pub fn differences<A: Aggregate>(files: &BTreeMap<String, String>) -> Vec<String> {
    let wrong = of::<A>().into_iter().filter(|(name, schema)| files.get(name) != Some(&format!("{schema:#}\n")));
    let advice = "where stored events of this version stay valid and decode the same, write the file again; where they do \
                  not, the event needs a new version and an upcaster";
    wrong.map(|(name, _)| format!("{name} is not what the type gives: {advice}")).collect()
}

/// Compares the schema files of an aggregate, in the folder with its type's name below `folder`, with what its types give.
/// With `UPDATE_SCHEMAS` in the environment it writes them first.
///
/// # Panics
/// A file differs or cannot be read.
pub fn check<A: Aggregate>(folder: &Path) {
    let folder = folder.join(A::TYPE);
    if std::env::var_os("UPDATE_SCHEMAS").is_some() {
        std::fs::create_dir_all(&folder).expect("the folder can be made");
        for (name, schema) in of::<A>() {
            std::fs::write(folder.join(name), format!("{schema:#}\n")).expect("the file can be written");
        }
    }
    let files = std::fs::read_dir(&folder).expect("the folder can be read").map(|entry| {
        let entry = entry.expect("the folder can be read");
        let text = std::fs::read_to_string(entry.path()).expect("the file can be read");
        (entry.file_name().to_string_lossy().into_owned(), text)
    });
    let differences = differences::<A>(&files.collect());
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
