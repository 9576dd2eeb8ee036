//! Fixtures of the end-to-end tests: goldens, swarms of real processes or in this process, comparisons.

mod compare;
mod goldens;
mod local_swarm;
mod programs;
mod random_model;

pub use compare::{assert_close, assert_curves_close, largest_difference};
pub use goldens::{FAMILIES, Goldens};
pub use local_swarm::LocalSwarm;
pub use programs::{Node, ProcessSwarm, Tune, send_signal};
pub use random_model::RandomModel;
