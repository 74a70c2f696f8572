//! The contexts that this program is made of, in one list.

use projection_engine::registry::{CORE, Group, Registry};
use projections::orders;

/// Every read model, in groups.
///
/// # Errors
/// A name that is used twice.
pub fn registry() -> anyhow::Result<Registry> {
    let core = Group { name: CORE, projections: orders::projections(), observers: vec![&orders::metrics::OBSERVER] };
    Registry::new(vec![core]).map_err(anyhow::Error::msg)
}
