//! Where to serve: what a server says of itself, what it sees of others, and when it goes elsewhere.
//!
//! | file | subject |
//! |---|---|
//! | `coverage` | pure: what is known of the swarm goes in, a span comes out |
//! | `mover` | acts on it |
//! | `holders` | who was found to hold which blocks, and who not: asked for rows that this node can check |
//! | `presence` | whether the servers of records are there at all |
//! | `hosted` | what this node hosts now, which requests are held to |
//! | `figures` | keeps what the directory says of it up to date |
//! | `sim` | a thousand servers in simulated time, for tests and `examples/placement_sim.rs` |
//!
//! Apart from streams and executor because it alone decides and neither does: it switches the blocks of a running executor, and
//! streams only ever look up what is hosted.

mod coverage;
pub(crate) mod figures;
mod holders;
pub(crate) mod hosted;
pub(crate) mod mover;
pub(crate) mod presence;
#[cfg(test)]
mod sim;

pub use coverage::{Claim, Coverage, neighbourhood, rate};
