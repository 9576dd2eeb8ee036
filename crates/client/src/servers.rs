//! Who is there, and one hop.
//!
//! | file | subject |
//! |---|---|
//! | `view` | who serves the model, and open streams to them |
//! | `peers` | what this client has experienced with each |
//! | `sample` | which of those that are listed are asked what they are |
//! | `reputation` | what is remembered of them from one run to the next |
//! | `weights` | which copy of the model is used, where servers have different ones |
//! | `accepted` | in which dtypes servers may compute |
//! | `hop` | one stream: many requests, each answered once |
//! | `exchange` | one span of a micro-batch over it: tensors out, checked tensors in |
//! | `local` | blocks that this client runs itself |
//! | `retry` | how long to wait before the next attempt, and when to stop |
//!
//! Apart from the sequence above because it knows one server at a time: which ones make a route, and what to do when one of
//! them fails, is decided there.

pub(crate) mod accepted;
pub(crate) mod exchange;
pub(crate) mod hop;
pub(crate) mod local;
pub(crate) mod peers;
pub(crate) mod reputation;
pub(crate) mod retry;
pub(crate) mod sample;
pub(crate) mod view;
pub(crate) mod weights;
