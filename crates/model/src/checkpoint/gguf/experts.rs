//! The experts of gpt-oss. Hugging Face has gate and up of all of them in one tensor in which their columns take turns, llama.cpp each in its
//! own, whose rows are the columns.

use super::names::SIDE;
use super::rows::GgufRows;
use crate::checkpoint::blocks::{Bits, Column};
use crate::checkpoint::matrix::Rows;
use crate::checkpoint::{Checkpoint, CheckpointError, Matrix, Stored};

/// An expert's matrix, whose rows are in one tensor, or take turns in several.
#[derive(Debug)]
struct ExpertRows(Vec<GgufRows>);

/// The bias of a projection, or the biases of all experts: a tensor, or sides whose values take turns.
#[derive(Debug)]
pub(crate) struct Bias(Vec<Stored>);

impl Checkpoint {
    /// Whether the experts' tensor of this name lies in sides, row by row.
    pub(in crate::checkpoint) fn has_sides(&self, name: &str) -> bool {
        self.has_tensor(&side(name, 0))
    }

    /// The matrix of one of `[experts, rows, values]` that lie in sides.
    ///
    /// # Errors
    /// If one is missing or misshapen.
    pub(in crate::checkpoint) fn matrix_of_sides(
        &self,
        name: &str,
        [experts, rows, values]: [usize; 3],
        expert: usize,
    ) -> Result<Matrix, CheckpointError> {
        let sides = self.sides(name);
        let rows = rows / sides.len().max(1);
        let part = |side: &String| {
            let tensor = self.locate(side, &[experts, rows, values])?;
            let layout = tensor.layout().unwrap_or_default();
            Ok(GgufRows::part(tensor, layout, expert * rows..(expert + 1) * rows, values))
        };
        Ok(Matrix::new(ExpertRows(sides.iter().map(part).collect::<Result<_, CheckpointError>>()?)))
    }

    /// Finds the bias of a projection, or of all experts' `[experts, rows]`.
    ///
    /// # Errors
    /// If a tensor of it is missing, misshapen or of a dtype that is not read.
    pub(crate) fn locate_bias(&self, name: &str, shape: &[usize]) -> Result<Bias, CheckpointError> {
        let sides = self.sides(name);
        let &[experts, rows] = shape else { return Ok(Bias(vec![self.locate(name, shape)?])) };
        if sides.is_empty() {
            return Ok(Bias(vec![self.locate(name, shape)?]));
        }
        let shape = [experts, rows / sides.len()];
        Ok(Bias(sides.iter().map(|side| self.locate(side, &shape)).collect::<Result<_, _>>()?))
    }

    /// The names of a tensor's sides.
    fn sides(&self, name: &str) -> Vec<String> {
        let count = if self.has_tensor(&side(name, 1)) { 2 } else { usize::from(self.has_sides(name)) };
        (0..count).map(|number| side(name, number)).collect()
    }
}

fn side(name: &str, number: usize) -> String {
    format!("{name}{SIDE}{number}")
}

impl Bias {
    /// Its values.
    pub(crate) fn values(&self) -> Vec<f32> {
        let sides: Vec<Vec<f32>> = self.0.iter().map(Stored::values).collect();
        let values = sides.first().map_or(0, Vec::len);
        (0..values).flat_map(|number| sides.iter().map(move |side| side[number])).collect()
    }
}

impl ExpertRows {
    /// The side that has row `row`, and which of its rows it is.
    fn side(&self, row: usize) -> Option<(&GgufRows, usize)> {
        let count = self.0.len().max(1);
        Some((self.0.get(row % count)?, row / count))
    }
}

impl Rows for ExpertRows {
    fn decode_row(&self, row: usize, values: &mut [f32]) {
        if let Some((side, row)) = self.side(row) {
            side.decode_row(row, values);
        }
    }

    fn is_float(&self) -> bool {
        self.0.iter().all(Rows::is_float)
    }

    /// Only if the sides lie alike.
    fn bits(&self) -> Option<Bits> {
        let bits = self.0.first()?.bits()?;
        self.0.iter().all(|side| side.bits() == Some(bits)).then_some(bits)
    }

    fn blocks_of(&self, bits: Bits, row: usize, values: &mut [f32], to: &mut Column) {
        if let Some((side, row)) = self.side(row) {
            side.blocks_of(bits, row, values, to);
        }
    }

    /// None: they hold the other experts as well, whose turn comes next.
    fn tensors(&self) -> Vec<&Stored> {
        Vec::new()
    }
}
