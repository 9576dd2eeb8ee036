//! Norms.

use super::{Checkpoint, CheckpointError};
use crate::config::NormKind;

/// The weights of a norm: `y = w ∘ x / r` with `r = sqrt(mean(x²) + eps)`, of `x - mean(x)` if it is centred, plus `b`.
#[derive(Debug)]
pub(crate) struct NormWeights {
    pub(crate) weight: Vec<f32>,
    pub(crate) bias: Option<Vec<f32>>,
    /// Whether the mean is subtracted first.
    pub(crate) centred: bool,
    pub(crate) eps: f32,
}

impl Checkpoint {
    /// The weights of a norm of `kind`; `name` ends before `.weight`.
    pub(crate) fn norm(&self, name: &str, width: usize, kind: NormKind) -> Result<NormWeights, CheckpointError> {
        let vector = |what: &str| -> Result<Vec<f32>, CheckpointError> {
            Ok(self.locate(&format!("{name}.{what}"), &[width])?.values())
        };
        let mut weight = vector("weight")?;
        if kind == NormKind::RootMeanSquarePlusOne {
            weight.iter_mut().for_each(|w| *w += 1.0);
        }
        let bias = (kind == NormKind::Layer).then(|| vector("bias")).transpose()?;
        Ok(NormWeights { weight, bias, centred: kind.is_centred(), eps: self.config().block.norm_eps })
    }
}
