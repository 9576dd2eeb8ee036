//! Talking: frames in, frames out, and the memory that requests take meanwhile.
//!
//! | file | subject |
//! |---|---|
//! | `stream`, `service` | one client's stream, and what all streams share |
//! | `request`, `answer` | from a frame to a checked pass, and from its result to a frame |
//! | `tables` | what the requests of a stream share |
//! | `relay` | rows from and to other servers |
//! | `arriving`, `idle_reader` | the memory of a request while it comes; streams that fall silent |
//!
//! Apart from computing because it is asynchronous and believes nobody: what goes from here to the executor's queue is checked,
//! and somebody's share of the memory pays for it.

mod answer;
mod arriving;
mod idle_reader;
mod relay;
mod request;
mod service;
mod stream;
mod tables;

pub(crate) use relay::RelayLinks;
pub(crate) use service::{Bounds, StreamService};
