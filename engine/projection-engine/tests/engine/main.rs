//! The projection engine in one process, on a SQLite file: pump, dead letters, rebuild and verification.

mod dead_letters;
mod pump;
mod rebuild;
mod registry;
mod rig;
mod verify;
