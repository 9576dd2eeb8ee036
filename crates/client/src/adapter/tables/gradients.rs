//! Gradients of the trained tables, summed over micro-batches.

use petals_protocol::{BlockTable, Span};

use super::{Parts, PromptTables, Table, TableShape};

/// Gradients with the shapes of [`PromptTables`].
#[derive(Debug, Clone, PartialEq)]
pub struct TableGradients {
    shape: TableShape,
    parts: Parts,
}

/// A gradient that does not fit its table, or is not a number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GradientError {
    /// Wrong number of values.
    #[error("the gradient of {what} has {got} values, expected {expected}")]
    Length {
        /// Which gradient.
        what: &'static str,
        /// Values received.
        got: usize,
        /// Values needed.
        expected: usize,
    },
    /// NaN or infinity.
    #[error("the gradient of `{0}` is not finite: the loss has blown up, try a lower learning rate")]
    NotFinite(String),
}

impl TableGradients {
    /// Gradients of zero.
    pub fn zeros(shape: TableShape) -> Self {
        Self { shape, parts: Parts::zeros(&shape) }
    }

    /// Sets every gradient to zero.
    pub fn clear(&mut self) {
        self.parts.each_mut().for_each(|(_, values)| values.fill(0.0));
    }

    /// The gradient of one table, row-major; `None` if the table is not trained.
    pub fn table(&self, table: Table) -> Option<&[f32]> {
        self.parts.get(table)
    }

    /// Adds the gradient of the prefix that enters block 0, `[prefix_len, hidden]`.
    ///
    /// Not for [`petals_protocol::Injection::Replace`], where block 0's prompt gradient is that of the input prompt.
    ///
    /// # Errors
    /// [`GradientError::Length`].
    pub fn add_input(&mut self, gradient: &[f32]) -> Result<(), GradientError> {
        add("the input prompt", self.parts.get_mut(Table::Input).unwrap_or_default(), gradient, 1.0)
    }

    /// Adds the gradients of a span's tables, `[span, block_values]`: the reverse of [`PromptTables::tables_for`].
    ///
    /// # Errors
    /// [`GradientError::Length`], also if blocks have no tables or the span reaches past the model's last block.
    pub fn add_tables(&mut self, span: Span, gradient: &[f32]) -> Result<(), GradientError> {
        let (shape, slots) = (self.shape, self.shape.block_tables());
        let of_block = slots.iter().map(BlockTable::values).sum::<usize>();
        let expected = span.len() * of_block;
        if gradient.len() != expected {
            return Err(GradientError::Length { what: "the blocks' tables", got: gradient.len(), expected });
        }
        for (block, mut rest) in span.blocks().zip(gradient.chunks_exact(of_block.max(1))) {
            for slot in &slots {
                let (own, others) = rest.split_at(slot.values());
                rest = others;
                let sum = self.parts.of_block_mut(&shape, slot.kind, block as usize);
                add("a block's table", sum, own, shape.factor(slot.kind))?;
            }
        }
        Ok(())
    }

    /// Adds the gradient of the score head, `[labels, hidden]`.
    ///
    /// # Errors
    /// [`GradientError::Length`], also without a score head.
    pub fn add_score(&mut self, gradient: &[f32]) -> Result<(), GradientError> {
        add("the score head", self.parts.get_mut(Table::Score).unwrap_or_default(), gradient, 1.0)
    }

    /// Multiplies every gradient.
    pub fn scale(&mut self, factor: f32) {
        self.parts.each_mut().flat_map(|(_, values)| values).for_each(|value| *value *= factor);
    }

    /// The Euclidean norm over all tables together.
    pub fn global_norm(&self) -> f64 {
        self.parts.each().flat_map(|(_, values)| values).map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt()
    }

    /// Scales the gradients so that their global norm is at most `max_norm`, as torch's `clip_grad_norm_` does; 0 is
    /// off. Returns the norm before.
    pub fn clip_global_norm(&mut self, max_norm: f64) -> f64 {
        let norm = self.global_norm();
        if let Some(factor) = clip_factor(norm, max_norm) {
            self.scale(factor);
        }
        norm
    }

    /// Checks that no gradient is NaN or infinite, which would poison the tables.
    ///
    /// # Errors
    /// [`GradientError::NotFinite`] with the table's name.
    pub fn check_finite(&self) -> Result<(), GradientError> {
        match self.parts.each().find(|(_, values)| !values.iter().all(|value| value.is_finite())) {
            Some((table, _)) => Err(GradientError::NotFinite(table.tensor_name().into_owned())),
            None => Ok(()),
        }
    }

    /// Whether these are gradients of `tables`.
    pub(crate) fn fit(&self, tables: &PromptTables) -> bool {
        self.shape == *tables.shape()
    }

    pub(crate) fn parts(&self) -> &Parts {
        &self.parts
    }

    pub(crate) fn parts_mut(&mut self) -> &mut Parts {
        &mut self.parts
    }
}

/// What gradients of this norm are multiplied with to have `max_norm`, as torch does it; `None` if they may stay. 0 is off.
pub(crate) fn clip_factor(norm: f64, max_norm: f64) -> Option<f32> {
    let factor = max_norm / (norm + 1e-6);
    (max_norm > 0.0 && factor < 1.0).then_some(factor as f32)
}

fn add(what: &'static str, sum: &mut [f32], gradient: &[f32], factor: f32) -> Result<(), GradientError> {
    if sum.len() != gradient.len() {
        return Err(GradientError::Length { what, got: gradient.len(), expected: sum.len() });
    }
    sum.iter_mut().zip(gradient).for_each(|(sum, value)| *sum += value * factor);
    Ok(())
}
