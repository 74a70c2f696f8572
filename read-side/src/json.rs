//! JSON text of what snapshots show.

use serde::Serialize;

/// The JSON text of rows.
pub fn text(shown: &impl Serialize) -> String {
    // Structs of texts and numbers always serialize.
    serde_json::to_string(shown).unwrap_or_default()
}
