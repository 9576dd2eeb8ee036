//! Whole nodes on loopback.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod contents;
mod directory;
mod many;
mod members;
mod models;
mod oneself;
mod private;
mod reach;
mod streams;
mod support;
mod versions;
