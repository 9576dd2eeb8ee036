//! Prompts and texts as a prefix of keys and values (prefix tuning, Li and Liang 2021).
//!
//! Whatever stands in front of a text acts on it through the keys and values that each block's attention finds there, and through nothing
//! else. So any prompt, deep or not, and any text has a prefix of as many rows that gives equal logits, and PEFT's PREFIX_TUNING can be both.

use std::sync::Arc;

use petals_protocol::Injection;

use super::logits::{LogitsError, RemoteModel};
use crate::adapter::tables::{PromptTables, Table, TableShape};
use crate::sequence::PassInput;

impl RemoteModel {
    /// `tables` with keys and values of every block in the place of their prompts, as the servers find them; tables without a prefix, or with
    /// such a one, as they are.
    ///
    /// # Errors
    /// [`LogitsError`].
    pub async fn as_prefix(&self, tables: &PromptTables) -> Result<PromptTables, LogitsError> {
        let shape = *tables.shape();
        if shape.prefix_len == 0 || shape.injection == Injection::KeysValues {
            return Ok(tables.clone());
        }
        // A pass has a text; no prefix looks at it.
        let text = self.local.embed(&[0])?;
        let input = PassInput { lengths: vec![1], text, read_rows: None, tables: Some(self.entering(tables.clone())) };
        let keys_values = self.sequence.prefix_keys_values(input).await?;
        let mut prefix = PromptTables::zeros(TableShape { injection: Injection::KeysValues, ..shape });
        for table in prefix.shape().tables() {
            let values = if table == Table::KeysValues { Some(keys_values.as_slice()) } else { tables.table(table) };
            if let Some((own, values)) = prefix.table_mut(table).zip(values).filter(|(own, of)| own.len() == of.len()) {
                own.copy_from_slice(values);
            }
        }
        Ok(prefix)
    }

    /// `tables`, whose prompts replace, with the hidden states of their input prompt in front of every block as deep prompts; others as they are.
    ///
    /// # Errors
    /// [`LogitsError`].
    pub async fn with_prompt_states(&self, mut tables: PromptTables) -> Result<PromptTables, LogitsError> {
        let shape = *tables.shape();
        if shape.injection != Injection::Replace || shape.prefix_len == 0 {
            return Ok(tables);
        }
        let mut prompt = PromptTables::zeros(TableShape { injection: Injection::None, labels: None, ..shape });
        for table in prompt.shape().tables() {
            if let Some((own, values)) = prompt.table_mut(table).zip(tables.table(table)) {
                own.copy_from_slice(values);
            }
        }
        let text = self.local.embed(&[0])?;
        let input = PassInput { lengths: vec![1], text, read_rows: None, tables: Some(self.entering(prompt)) };
        let states = self.sequence.prefix_states(input).await?;
        // The first block's is the input prompt itself.
        let behind = states.get(shape.prompt_len()..).unwrap_or_default();
        if let Some(deep) = tables.table_mut(Table::Deep).filter(|deep| deep.len() == behind.len()) {
            deep.copy_from_slice(behind);
        }
        Ok(tables)
    }

    fn entering(&self, tables: PromptTables) -> Arc<PromptTables> {
        Arc::new(tables).entered(&self.local)
    }

    /// The keys and values of `text` in every block, as a prefix of its length.
    ///
    /// # Errors
    /// [`LogitsError`].
    pub async fn prefix_of_text(&self, text: &[u32]) -> Result<PromptTables, LogitsError> {
        let config = self.local.config();
        let shape = TableShape {
            injection: Injection::None,
            weights: Default::default(),
            scale: 1.0,
            blocks: self.sequence.blocks().len(),
            prefix_len: text.len(),
            widths: config.block_widths(),
            labels: None,
        };
        let mut prompt = PromptTables::zeros(shape);
        let embedded = self.local.embeddings(text)?;
        if let Some(own) = prompt.table_mut(Table::Input).filter(|own| own.len() == embedded.len()) {
            own.copy_from_slice(&embedded);
        }
        self.as_prefix(&prompt).await
    }
}
