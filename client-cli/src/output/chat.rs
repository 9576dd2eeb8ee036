//! What `chat` and `serve` say.

use std::fmt::{self, Display};

use serde::Serialize;

use super::Event;

/// The HTTP server listens.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Serving {
    /// Where.
    pub(crate) url: String,
    /// Names of what it serves.
    pub(crate) models: Vec<String>,
    /// Whether clients need a key.
    pub(crate) key: bool,
    /// Why there are no chats, if there are none.
    #[serde(rename = "no_chat", skip_serializing_if = "Option::is_none")]
    pub(crate) chat: Option<String>,
}

/// An answer in a chat, once it is complete.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Answered {
    /// The text.
    pub(crate) text: String,
    /// The adapter that it was made with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) adapter: Option<String>,
    /// Why it ended: `stop`, `length` or `interrupted`.
    pub(crate) finish: &'static str,
    /// Tokens of the conversation in front of it.
    pub(crate) prompt_tokens: usize,
    /// Those that the servers had from before.
    pub(crate) reused_tokens: usize,
    /// Tokens of the answer.
    pub(crate) tokens: usize,
    /// Seconds to the first token.
    pub(crate) time_to_first_token_s: f64,
    /// Tokens per second behind the first one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tokens_per_s: Option<f64>,
}

/// What a chat says besides answers.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Notice {
    /// The text.
    pub(crate) message: String,
}

impl Event for Serving {
    const NAME: &'static str = "serving";
}

impl Event for Answered {
    const NAME: &'static str = "answer";
}

impl Event for Notice {
    const NAME: &'static str = "notice";
}

impl Display for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url, models, key, chat } = self;
        write!(f, "serving {} at {url}/v1", models.join(", "))?;
        f.write_str(if *key { ", with an API key" } else { "" })?;
        match chat {
            None => write!(f, "\nchat page: {url}/"),
            Some(reason) => write!(f, "\nno chats: {reason}"),
        }
    }
}

impl Display for Answered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
