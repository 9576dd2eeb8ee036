//! Quantised weights: which layout a matrix has, by its tensors and by what `quantization_config` says, and one file for each layout.
//!
//! All of them are widened row by row, to the values that the reference implementations compute in f32. Arithmetic of activations
//! (dynamic or static quantisation of what enters a product) is no property of the weights and is left out.

use super::gguf::GgufRows;
use super::matrix::{Matrix, Plain, PlainColumns};
use super::{Checkpoint, CheckpointError, FileDtype};
use crate::config::{Part, Quantisation};

mod awq;
mod bits;
mod columns;
mod compressed;
mod fp8;
mod gptq;
mod groups;
mod mxfp4;
mod scaled;

impl Checkpoint {
    /// The matrix that a part of a projection is rows of.
    ///
    /// # Errors
    /// If tensors of it are missing, misshapen or of a dtype that is not read.
    pub(crate) fn matrix_of(&self, part: &Part) -> Result<Matrix, CheckpointError> {
        let (name, [rows, values]) = (&part.tensor, part.shape);
        let Some((expert, count)) = part.expert else { return self.matrix(name, part.shape) };
        if mxfp4::is_there(self, name) {
            return mxfp4::locate(self, name, [count, rows, values], expert).map(Matrix::new);
        }
        if self.has_sides(name) {
            return self.matrix_of_sides(name, [count, rows, values], expert);
        }
        let tensor = self.locate(name, &[count, values, rows])?;
        Ok(Matrix::new(PlainColumns { tensor, expert, rows }))
    }

    /// The matrix `[rows, values]` of a module.
    ///
    /// # Errors
    /// As [`Self::matrix_of`].
    pub(crate) fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Matrix, CheckpointError> {
        let weight = format!("{name}.weight");
        // Modules that were left out when the others were quantised have their floats, whatever the configuration says of them.
        if let Some(quantisation) = &self.config().quantisation
            && !(self.has_tensor(&weight) && self.is_float(&weight)?)
        {
            let packed = |end: &str| self.has_tensor(&format!("{name}.{end}"));
            match quantisation {
                Quantisation::Gptq { bits, group, zeros_less_one } if packed("qweight") => {
                    let said = gptq::Said { bits: *bits, group: *group, zeros_less_one: *zeros_less_one };
                    return gptq::locate(self, name, shape, said).map(Matrix::new);
                }
                Quantisation::Awq { group } if packed("qweight") => {
                    return awq::locate(self, name, shape, *group).map(Matrix::new);
                }
                Quantisation::CompressedTensors { bits, blocks } if packed("weight_packed") || packed("weight") => {
                    return compressed::locate(self, name, shape, (bits, blocks)).map(Matrix::new);
                }
                Quantisation::Fp8 { block } if packed("weight") => {
                    return fp8::locate(self, name, shape, *block).map(Matrix::new);
                }
                _ => {}
            }
        }
        let tensor = self.locate(&weight, &shape)?;
        Ok(match tensor.layout() {
            None => Matrix::new(Plain(tensor)),
            Some(layout) => Matrix::new(GgufRows::whole(tensor, layout, shape)),
        })
    }

    /// Whether a module has a weight, in whichever layout.
    pub(crate) fn has_matrix(&self, name: &str) -> bool {
        ["weight", "qweight", "weight_packed"].iter().any(|end| self.has_tensor(&format!("{name}.{end}")))
    }

    fn is_float(&self, name: &str) -> Result<bool, CheckpointError> {
        Ok(FileDtype::named(&self.header(name)?.dtype).is_some_and(FileDtype::is_float))
    }

    /// The error for a quantised weight whose parts do not fit together.
    fn packed_wrongly(&self, name: &str, reason: impl Into<String>) -> CheckpointError {
        CheckpointError::Packed {
            path: self.index.file_of(name).to_owned(),
            name: name.to_owned(),
            reason: reason.into(),
        }
    }
}

#[cfg(test)]
mod tests;
