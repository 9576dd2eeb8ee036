//! The model's chat template, read when the first conversation asks for it.

use std::cell::OnceCell;
use std::path::PathBuf;

use crate::chat::{ChatTemplate, TemplateError};

/// Where the chat template is, and the template once it was read.
#[derive(Debug)]
pub(crate) struct Templates {
    model: PathBuf,
    file: Option<PathBuf>,
    read: OnceCell<ChatTemplate>,
    /// Whether there is one, once that was asked.
    exists: OnceCell<bool>,
}

impl Templates {
    /// The template in `file`, or else that of the model's directory.
    pub(crate) fn new(model: PathBuf, file: Option<PathBuf>) -> Self {
        Self { model, file, read: OnceCell::new(), exists: OnceCell::new() }
    }

    /// The template.
    ///
    /// # Errors
    /// [`TemplateError`], for example of a model that has none.
    pub(super) fn get(&self) -> Result<&ChatTemplate, TemplateError> {
        if let Some(read) = self.read.get() {
            return Ok(read);
        }
        let template = ChatTemplate::load(&self.model, self.file.as_deref())?;
        Ok(self.read.get_or_init(|| template))
    }

    /// Whether the model has a template; one that is there and cannot be used counts.
    pub(super) fn exists(&self) -> bool {
        *self.exists.get_or_init(|| !matches!(self.get(), Err(TemplateError::Missing(_))))
    }
}
