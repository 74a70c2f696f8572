//! Reasons for which the module refuses a command.

use kernel::aggregate::{Refusal, RefusalClass, RefusalType};

/// A refusal.
#[derive(Debug)]
pub enum Refused {
    /// The counter or meter does not exist, or it belongs to another user.
    NotFound,
    /// The counter exists.
    Exists,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.refusal_type().title)
    }
}

impl std::error::Error for Refused {}

const NOT_FOUND: RefusalType = RefusalType {
    slug: "counter-not-found",
    class: RefusalClass::NotFound,
    title: "There is no such counter",
    meaning: "The counter does not exist, or you may not see it.",
};
const EXISTS: RefusalType = RefusalType {
    slug: "counter-exists",
    class: RefusalClass::Conflict,
    title: "The counter exists",
    meaning: "A counter with this id exists. Use another id.",
};

impl Refusal for Refused {
    const TYPES: &'static [RefusalType] = &[NOT_FOUND, EXISTS];

    fn not_found() -> Self {
        Self::NotFound
    }

    fn refusal_type(&self) -> &'static RefusalType {
        match self {
            Self::NotFound => &NOT_FOUND,
            Self::Exists => &EXISTS,
        }
    }
}
