//! Conversations as the text that a model was trained on: its chat template, as transformers renders it.

mod dates;
mod error;
mod files;
mod filters;
mod json;
mod methods;
mod python;
mod source;
mod template;

pub(crate) use error::TemplateError;
pub(crate) use template::{ChatTemplate, Message};

#[cfg(test)]
mod tests;
