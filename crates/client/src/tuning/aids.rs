//! What a run may have beside its tables and its optimiser.

use std::sync::Arc;

use super::average::Average;
use super::encoder::Encoder;
use super::optimizer::AdamW;
use crate::adapter::tables::{GradientError, PromptTables, TableGradients, clip_factor};

/// Networks that make the tables, and their average; a plain run has neither.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Aids {
    /// What makes some of the tables.
    pub encoder: Option<Encoder>,
    /// What is measured and saved in the tables' place.
    pub average: Option<Average>,
}

impl Aids {
    /// The tables that a run is to be judged by.
    pub(crate) fn judged<'a>(&'a self, tables: &'a Arc<PromptTables>) -> &'a Arc<PromptTables> {
        self.average.as_ref().map_or(tables, Average::tables)
    }

    /// One step along gradients that are clipped to `clip`. Returns their norm before: over everything that is a parameter, tables or
    /// what makes them.
    ///
    /// # Errors
    /// If a gradient is not finite. Nothing is changed then.
    pub(crate) fn step(
        &mut self,
        (tables, optimizer): (&mut PromptTables, &mut AdamW),
        mut gradients: TableGradients,
        (clip, lr): (f64, f64),
    ) -> Result<f64, GradientError> {
        gradients.check_finite()?;
        let norm = match &mut self.encoder {
            None => {
                let norm = gradients.clip_global_norm(clip);
                optimizer.step(tables, &gradients, lr);
                norm
            }
            Some(encoder) => {
                let mut inner = encoder.backward(&mut gradients);
                let norm = (gradients.global_norm().powi(2) + inner.squares()).sqrt();
                if !norm.is_finite() {
                    return Err(GradientError::NotFinite(format!("--reparam {}", encoder.reparam().kind)));
                }
                if let Some(factor) = clip_factor(norm, clip) {
                    gradients.scale(factor);
                    inner.scale(factor);
                }
                optimizer.step(tables, &gradients, lr);
                encoder.step(optimizer, &inner, lr, tables);
                norm
            }
        };
        if let Some(average) = &mut self.average {
            average.update(tables.parts());
        }
        Ok(norm)
    }
}
