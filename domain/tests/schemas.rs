//! Events are a storage format. `schemas/events/<EventType>.v<N>.json` says what a payload looks like, and
//! `tests/golden/<EventType>.v<N>.json` holds payloads in the form in which they are stored. These tests fail when the types, the
//! schemas and the golden payloads do not agree.
//!
//! A changed type is a new version, with an upcaster; the old schema and golden file stay. Where a change is compatible
//! (a new optional field, a wider limit, a better description), a run with `UPDATE_SCHEMAS=1` writes the schemas anew;
//! the other tests may read them too early in that run, so run once more without it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs};

use cqrs_es::DomainEvent;
use domain::order::{EVENT_VERSION, Event, Order};
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

fn schemas_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../schemas/events")
}

fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// The JSON files of a folder by name.
fn files(dir: &Path) -> BTreeMap<String, Value> {
    let read = |path: PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let value = serde_json::from_str(&fs::read_to_string(&path).unwrap());
        (name.clone(), value.unwrap_or_else(|error| panic!("{name}: {error}")))
    };
    fs::read_dir(dir).unwrap().map(|entry| read(entry.unwrap().path())).collect()
}

/// The schemas that the types give, by file name: each variant of the externally tagged enum without its tag.
fn schemas_from_types() -> BTreeMap<String, Value> {
    let generator = SchemaSettings::draft2020_12().for_serialize().with(|settings| settings.inline_subschemas = true);
    let root = generator.into_generator().into_root_schema_for::<Event>().to_value();
    root["oneOf"].as_array().unwrap().iter().map(payload_schema).collect()
}

fn payload_schema(variant: &Value) -> (String, Value) {
    let (event_type, payload) = variant["properties"].as_object().unwrap().iter().next().unwrap();
    let mut schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": format!("{event_type}, version {EVENT_VERSION}"),
        "description": variant["description"],
    });
    schema.as_object_mut().unwrap().extend(payload.as_object().unwrap().clone());
    (format!("{event_type}.v{EVENT_VERSION}.json"), schema)
}

#[test]
fn the_schema_files_are_what_the_types_give() {
    let (dir, expected) = (schemas_dir(), schemas_from_types());
    assert_eq!(expected.len(), 6, "one schema an event type");
    if env::var_os("UPDATE_SCHEMAS").is_some_and(|value| value == "1") {
        for (name, schema) in &expected {
            fs::write(dir.join(name), format!("{schema:#}\n")).unwrap();
        }
    }
    for (name, schema) in &expected {
        let file = fs::read_to_string(dir.join(name)).unwrap_or_default();
        assert_eq!(
            file,
            format!("{schema:#}\n"),
            "schemas/events/{name} is not what the type gives: if stored events of this version stay valid and decode the \
             same, run again with UPDATE_SCHEMAS=1; if not, the event needs a new version and an upcaster"
        );
    }
}

#[test]
fn every_schema_has_golden_events_and_every_golden_file_a_schema() {
    let [schemas, golden] = [schemas_dir(), golden_dir()].map(|dir| files(&dir).into_keys().collect::<Vec<_>>());
    assert_eq!(schemas, golden);
}

#[test]
fn every_golden_event_decodes_folds_and_is_valid() {
    let schemas = files(&schemas_dir());
    for (name, events) in files(&golden_dir()) {
        let validator = jsonschema::draft202012::new(&schemas[&name]).unwrap();
        let events = events.as_array().unwrap_or_else(|| panic!("{name} is a list of stored payloads"));
        assert!(!events.is_empty(), "{name} holds no event");
        for stored in events {
            let event: Event = serde_json::from_value(stored.clone()).unwrap_or_else(|error| panic!("{name}: {error}"));
            let payload = &stored[event.event_type()];
            assert!(name.starts_with(&format!("{}.v", event.event_type())), "{name} holds {event:?}");
            validator.validate(payload).unwrap_or_else(|error| panic!("{name}: {error}"));

            // What is written today is what was read: no field of a golden event is silently dropped.
            if name.ends_with(&format!(".v{}.json", event.event_version())) {
                assert_eq!(serde_json::to_value(&event).unwrap(), *stored, "{name}");
            }
            let mut order = Order::default();
            order.apply(&event);
        }
    }
}

#[test]
fn the_golden_events_in_order_are_a_whole_order() {
    let golden = files(&golden_dir());
    let first = |event_type: &str| {
        let stored = golden[&format!("{event_type}.v1.json")][0].clone();
        serde_json::from_value::<Event>(stored).unwrap()
    };
    let mut order = Order::default();
    for event_type in ["OrderCreated", "ItemAdded", "ItemQuantityChanged", "OrderConfirmed"] {
        order.apply(&first(event_type));
    }
    assert_eq!(first("OrderConfirmed"), Event::OrderConfirmed { total: order.total, currency: order.currency });
}

#[test]
fn a_schema_refuses_what_the_type_refuses() {
    let schemas = files(&schemas_dir());
    let bad = [
        ("ItemAdded", json!({"sku": "tea", "quantity": 0, "unit_price": 250})),
        ("ItemAdded", json!({"sku": "green tea", "quantity": 1, "unit_price": 250})),
        ("ItemAdded", json!({"sku": "tea", "quantity": 1, "unit_price": "2.50"})),
        ("ItemAdded", json!({"sku": "tea", "quantity": 1})),
        ("ItemAdded", json!({"sku": "tea", "quantity": 1, "unit_price": 250, "name": "a\nb"})),
        ("OrderCreated", json!({"customer_id": "cy", "currency": "usd"})),
        ("OrderCreated", json!({"customer_id": "cy", "currency": "USD", "attributes": {"a b": ""}})),
        ("OrderCancelled", json!({"reason": ""})),
    ];
    for (event_type, payload) in bad {
        let schema = &schemas[&format!("{event_type}.v1.json")];
        assert!(!jsonschema::draft202012::is_valid(schema, &payload), "{event_type} {payload}");
        assert!(serde_json::from_value::<Event>(json!({ event_type: payload })).is_err(), "{event_type}");
    }
}
