//! Reasons for which the module refuses a command.

use kernel::aggregate::{Refusal, RefusalClass};

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
        f.write_str(self.title())
    }
}

impl std::error::Error for Refused {}

impl Refusal for Refused {
    fn not_found() -> Self {
        Self::NotFound
    }

    fn slug(&self) -> &'static str {
        match self {
            Self::NotFound => "counter-not-found",
            Self::Exists => "counter-exists",
        }
    }

    fn class(&self) -> RefusalClass {
        match self {
            Self::NotFound => RefusalClass::NotFound,
            Self::Exists => RefusalClass::Conflict,
        }
    }

    fn title(&self) -> &'static str {
        match self {
            Self::NotFound => "There is no such counter",
            Self::Exists => "The counter exists",
        }
    }
}
