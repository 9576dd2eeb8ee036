//! Steps that nobody keeps anything of.

use super::InferenceSession;
use super::chunk::Wanted;
use crate::sequence::{PassInput, SequenceError};

impl InferenceSession {
    /// Runs all rows up to `target` through all blocks and returns the outputs of those that are read.
    ///
    /// This is how results are verified: a second server could compute a step again only with all that came before, so each
    /// step is a forward of its own, which is checked like any other.
    pub(super) async fn run_whole(&self, target: &[usize], read: &Wanted) -> Result<Vec<f32>, SequenceError> {
        let (mut lengths, mut text, mut read_rows, mut first) = (Vec::new(), Vec::new(), Vec::new(), 0);
        let all = self.inputs.get(&self.sequence.blocks().start());
        // A forward has no empty examples.
        for (number, &rows) in target.iter().enumerate().filter(|(_, rows)| **rows > 0) {
            lengths.push(rows as u32);
            text.extend(all.and_then(|all| all.rows.get(number)).into_iter().flatten());
            read_rows.extend(read[number].iter().map(|position| (first + position) as u32));
            first += rows;
        }
        let input = PassInput { lengths, text, read_rows: Some(read_rows), tables: self.tables.clone() };
        Ok(self.sequence.forward(input, false).await?.0)
    }
}
