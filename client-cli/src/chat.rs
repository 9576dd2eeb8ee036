//! Conversations as the text that a model was trained on: its chat template, as transformers renders it.

mod python;
mod template;

pub(crate) use template::{ChatTemplate, Message, TemplateError};

#[cfg(test)]
mod tests;
