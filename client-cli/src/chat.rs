//! Conversations as the text that a model was trained on: its chat template, as transformers renders it.

mod conversation;
mod dates;
mod files;
mod filters;
mod json;
mod methods;
mod python;
mod source;
mod template;
mod tool_format;

pub(crate) use conversation::{Call, Conversation, Ending, Function, Json, Turn, Variables};
pub(crate) use template::{ChatTemplate, Message, TemplateError};
pub(crate) use tool_format::ToolFormat;

#[cfg(test)]
mod tests;
