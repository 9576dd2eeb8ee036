//! Conversations as the text that a model was trained on: its chat template, as transformers renders it.

mod answers;
mod marks;
mod python;
mod template;

pub(crate) use answers::AnswerError;
pub(crate) use template::{ChatTemplate, Message, TemplateError};

#[cfg(test)]
mod tests;
