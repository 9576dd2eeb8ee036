//! Conversations as the text that a model was trained on: its chat template, as transformers renders it.

mod answers;
mod conversation;
mod dates;
mod error;
mod files;
mod filters;
mod json;
mod marks;
mod methods;
mod python;
mod source;
mod template;
mod tool_format;

pub(crate) use answers::{AnswerError, Answered};
pub(crate) use conversation::{Call, Conversation, Ending, Function, Json, Turn, Variables};
pub(crate) use dates::strftime;
pub(crate) use error::TemplateError;
pub(crate) use template::{ChatTemplate, Message, Told};
pub(crate) use tool_format::ToolFormat;

#[cfg(test)]
mod tests;
