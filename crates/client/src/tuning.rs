//! One optimiser step through the swarm, and runs that can go on where they ended.
//!
//! | file | subject |
//! |---|---|
//! | `tuner` | a step, and the losses of evaluation |
//! | `confusion` | which classes were taken for which |
//! | `batch`, `pacer` | how a batch is cut into micro-batches, and how large they should be |
//! | `loss`, `dropout` | what is minimised, and what of the tables a step sees |
//! | `optimizer`, `schedule` | what is done with the gradients |
//! | `encoder`, `average`, `aids` | networks that make the tables, their moving average, and both in a step |
//! | `probe` | which learning rate to train with |
//! | `training_state` | everything that a run needs to go on |
//!
//! Apart from inference because neither needs the other: they share the blocks below ([`RemoteSequence`](crate::RemoteSequence))
//! and the trained tables.

pub(crate) mod aids;
pub(crate) mod average;
pub(crate) mod batch;
pub(crate) mod confusion;
pub(crate) mod dropout;
pub(crate) mod encoder;
pub(crate) mod loss;
pub(crate) mod optimizer;
mod pacer;
pub(crate) mod probe;
pub(crate) mod schedule;
pub(crate) mod training_state;
pub(crate) mod tuner;

pub use pacer::Pace;
