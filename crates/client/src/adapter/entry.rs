//! Prompts enter the first block as embeddings do.
//!
//! PEFT puts prompts beside the output of the model's embedding module, and a few models do more to what they are given before their first block:
//! Gemma multiplies it, BLOOM norms it. Tables hold what PEFT's do; servers get what enters.

use std::sync::Arc;

use petals_model::ClientModel;

use super::tables::{PromptTables, Table, TableGradients};

impl PromptTables {
    /// The tables as servers get them: themselves, or with another input prompt where the model changes what enters it.
    pub(crate) fn entered(self: &Arc<Self>, model: &ClientModel) -> Arc<Self> {
        if !model.changes_entry() || self.table(Table::Input).is_none() {
            return self.clone();
        }
        let mut entered = Self::clone(self);
        if let Some(prompt) = entered.table_mut(Table::Input) {
            let rows = model.enter(prompt.to_vec());
            prompt.copy_from_slice(&rows);
        }
        Arc::new(entered)
    }
}

impl TableGradients {
    /// Turns gradients of what entered into those of `tables`.
    pub(crate) fn leave(&mut self, tables: &PromptTables, model: &ClientModel) {
        if !model.changes_entry() {
            return;
        }
        if let Some(gradient) = self.parts_mut().get_mut(Table::Input) {
            let back = model.enter_back(tables.input(), gradient.to_vec());
            gradient.copy_from_slice(&back);
        }
    }
}
