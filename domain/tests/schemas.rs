//! Events are a storage format. `schemas/events/order/<EventType>.v<N>.json` is the schema of a payload, and
//! `tests/golden/order/<EventType>.v<N>.json` holds payloads in their stored form. These tests fail when the types, the
//! schemas and the golden payloads do not agree.
//!
//! An incompatible change of a type needs a new version and an upcaster; the old schema and the old golden file stay.
//! After a compatible change (a new optional field, a wider limit, a better description), a run with `UPDATE_SCHEMAS=1`
//! writes the schemas again. The other tests may read the schemas too early in that run, so run the tests once more
//! without the variable.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs};

use domain::order::{Event, Order};
use kernel::aggregate::{Aggregate, EventType, version_of};
use kernel::schemas;
use kernel::upcast::Upcasters;
use serde_json::{Value, json};

fn schemas_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../schemas/events/order")
}

fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/order")
}

/// Returns the JSON files of a folder, by name.
fn files(dir: &Path) -> BTreeMap<String, Value> {
    let read = |path: PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let value = serde_json::from_str(&fs::read_to_string(&path).unwrap());
        (name.clone(), value.unwrap_or_else(|error| panic!("{name}: {error}")))
    };
    fs::read_dir(dir).unwrap().map(|entry| read(entry.unwrap().path())).collect()
}

#[test]
fn the_schema_files_match_the_types() {
    let (dir, expected) = (schemas_dir(), schemas::of::<Order>());
    assert_eq!(expected.len(), 6, "one schema per event type");
    if env::var_os("UPDATE_SCHEMAS").is_some_and(|value| value == "1") {
        for (name, schema) in &expected {
            fs::write(dir.join(name), format!("{schema:#}\n")).unwrap();
        }
    }
    let read = |name: &String| (name.clone(), fs::read_to_string(dir.join(name)).unwrap_or_default());
    let differences = schemas::differences::<Order>(&expected.keys().map(read).collect());
    assert!(
        differences.is_empty(),
        "schemas/events/order: {}; or run the test with UPDATE_SCHEMAS=1",
        differences.join("; ")
    );
}

#[test]
fn every_schema_has_golden_events_and_every_golden_file_a_schema() {
    let [schemas, golden] = [schemas_dir(), golden_dir()].map(|dir| files(&dir).into_keys().collect::<Vec<_>>());
    assert_eq!(schemas, golden);
}

/// Upcasts and decodes a stored payload, as the store does.
fn decode(file: &str, stored: &Value) -> serde_json::Result<Event> {
    let (event_type, version) = file.trim_end_matches(".json").split_once(".v").unwrap();
    let payload = stored.to_string();
    let (version, payload) = Upcasters::of(Order::TYPE, Order::UPCASTERS)
        .upcast("order", event_type, version, &payload)
        .unwrap_or((present(event_type), payload));
    assert_eq!(version, present(event_type), "{file} is upcast to the current version");
    serde_json::from_str(&payload)
}

/// Returns the version in which an event is written today.
fn present(event_type: &str) -> &'static str {
    version_of::<Event>(event_type).unwrap()
}

#[test]
fn an_old_payload_without_upcasting_does_not_decode() {
    for stored in files(&golden_dir())["ItemAdded.v1.json"].as_array().unwrap() {
        let whole = stored["ItemAdded"].get("name").is_some() && stored["ItemAdded"].get("category").is_some();
        assert_eq!(serde_json::from_value::<Event>(stored.clone()).is_ok(), whole, "{stored}");
    }
}

#[test]
fn every_golden_event_decodes_folds_and_is_valid() {
    let schemas = files(&schemas_dir());
    for (name, events) in files(&golden_dir()) {
        let validator = jsonschema::draft202012::new(&schemas[&name]).unwrap();
        let events = events.as_array().unwrap_or_else(|| panic!("{name} is a list of stored payloads"));
        assert!(!events.is_empty(), "{name} holds no event");
        for stored in events {
            let event = decode(&name, stored).unwrap_or_else(|error| panic!("{name}: {error}"));
            let payload = &stored[event.name()];
            assert!(name.starts_with(&format!("{}.v", event.name())), "{name} holds {event:?}");
            validator.validate(payload).unwrap_or_else(|error| panic!("{name}: {error}"));

            // Serialization returns the stored payload: no field of a golden event is silently dropped.
            if name.ends_with(&format!(".v{}.json", event.version())) {
                assert_eq!(serde_json::to_value(&event).unwrap(), *stored, "{name}");
            }
            let mut order = Order::default();
            order.evolve(&event);
        }
    }
}

#[test]
fn the_golden_events_in_order_form_a_complete_order() {
    let golden = files(&golden_dir());
    let first = |event_type: &str| {
        let name = format!("{event_type}.v1.json");
        decode(&name, &golden[&name][0]).unwrap()
    };
    let mut order = Order::default();
    for event_type in ["OrderCreated", "ItemAdded", "ItemQuantityChanged", "OrderConfirmed"] {
        order.evolve(&first(event_type));
    }
    assert_eq!(first("OrderConfirmed"), Event::OrderConfirmed { total: order.total, currency: order.currency });
}

#[test]
fn schemas_and_types_refuse_the_same_payloads() {
    let schemas = files(&schemas_dir());
    let item = |wrong: Value| {
        let mut item = json!({"sku": "tea", "quantity": 1, "unit_price": 250, "name": null, "category": null});
        item.as_object_mut().unwrap().extend(wrong.as_object().unwrap().clone());
        item
    };
    assert!(serde_json::from_value::<Event>(json!({ "ItemAdded": item(json!({})) })).is_ok());
    let bad = [
        ("ItemAdded", item(json!({"quantity": 0}))),
        ("ItemAdded", item(json!({"sku": " tea"}))),
        ("ItemAdded", item(json!({"unit_price": "2.50"}))),
        ("ItemAdded", json!({"sku": "tea", "quantity": 1, "name": null, "category": null})),
        ("ItemAdded", json!({"sku": "tea", "quantity": 1, "unit_price": 250})),
        ("ItemAdded", item(json!({"name": "a\nb"}))),
        ("OrderCreated", json!({"customer_id": "cy", "currency": "usd"})),
        ("OrderCreated", json!({"customer_id": "cy", "currency": "USD", "attributes": {"a b": ""}})),
        ("OrderCancelled", json!({"reason": ""})),
    ];
    for (event_type, payload) in bad {
        let schema = &schemas[&format!("{event_type}.v{}.json", present(event_type))];
        assert!(!jsonschema::draft202012::is_valid(schema, &payload), "{event_type} {payload}");
        assert!(serde_json::from_value::<Event>(json!({ event_type: payload })).is_err(), "{event_type}");
    }
}
