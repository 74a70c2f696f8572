//! JSON text for snapshots.

use serde::Serialize;

/// Returns the JSON text of rows.
pub fn text(shown: &impl Serialize) -> String {
    // Structs of strings and numbers always serialize.
    serde_json::to_string(shown).unwrap_or_default()
}
