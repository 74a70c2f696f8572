//! Read models, folded from the log: exactly once, in order, and the same again when rebuilt. Which read models there are
//! is for the contexts to say; this crate knows no business term.

pub mod state;
