//! Micro-batches that go from server to server (`docs/protocol.md`, "Relays").

mod links;
mod rendezvous;

pub(crate) use links::{Next, RelayLinks};
pub(crate) use rendezvous::{Delivery, Expected, Rendezvous};
