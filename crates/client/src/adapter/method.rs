//! What a run trains, before it is known on which model.

use petals_protocol::{Injection, WeightChange};

use super::names::TuningMode;

/// What is trained, and how large it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Method {
    /// What each block does to the prefix.
    pub injection: Injection,
    /// Rows of the prefix; 0 without one.
    pub prefix_len: usize,
    /// How weights are adapted.
    pub weights: WeightChange,
    /// What low-rank products are multiplied with.
    pub scale: f32,
}

impl Method {
    /// The mode it belongs to.
    pub fn mode(&self) -> TuningMode {
        TuningMode::of(self.prefix_len, self.injection, self.weights)
    }
}
