//! Texts about differences, for operators.

use std::collections::BTreeSet;

use event_store::table::{Table, Value};

fn show(value: &Value) -> String {
    match value {
        Value::Text(Some(text)) => text.clone(),
        Value::Int(Some(number)) => number.to_string(),
        Value::Text(None) | Value::Int(None) => "null".to_owned(),
    }
}

/// Formats a primary key for operators.
pub(crate) fn show_key(key: &[Value]) -> String {
    key.iter().map(show).collect::<Vec<_>>().join("/")
}

/// Describes the difference of two values of a column; for JSON objects, the differences of their fields.
fn differs(name: &str, is: &str, should: &str) -> Vec<String> {
    let object = |text| serde_json::from_str::<serde_json::Map<_, _>>(text).unwrap_or_default();
    let (old, new) = (object(is), object(should));
    let fields: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    let show = |value: Option<&serde_json::Value>| value.map_or("missing".to_owned(), ToString::to_string);
    let other =
        fields.into_iter().map(|field| (field, old.get(field), new.get(field))).filter(|(_, is, should)| is != should);
    let lines: Vec<_> =
        other.map(|(field, is, should)| format!("{name}.{field} is {}, must be {}", show(is), show(should))).collect();
    if lines.is_empty() { vec![format!("{name} is {is}, must be {should}")] } else { lines }
}

/// Describes the difference between a row and the row that follows from the log.
pub(crate) fn explain(table: &Table, is: Option<Vec<Value>>, should: Option<Vec<Value>>) -> Vec<String> {
    match (is, should) {
        (Some(is), Some(should)) => {
            let columns = table.columns.iter().zip(is.iter().zip(&should)).filter(|(_, (is, should))| is != should);
            columns.flat_map(|(column, (is, should))| differs(column.name, &show(is), &show(should))).collect()
        }
        (Some(_), None) => vec!["the row must not exist".to_owned()],
        (None, _) => vec!["the row is missing".to_owned()],
    }
}
