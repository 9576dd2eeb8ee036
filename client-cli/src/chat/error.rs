//! Why there is no text of a conversation.

use std::path::PathBuf;

use petals_client::CheckpointError;

/// Why a conversation did not become a text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum TemplateError {
    /// The model has no template.
    #[error(
        "the model {} has no chat template (chat_template.jinja, chat_template in tokenizer_config.json, or tokenizer.chat_template in a GGUF): it may not \
         be tuned for chats; give one with --chat-template FILE",
        .0.display()
    )]
    Missing(PathBuf),
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A GGUF could not be read.
    #[error(transparent)]
    Gguf(Box<CheckpointError>),
    /// A configuration file is not what it should be.
    #[error("{} is malformed: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The template is no Jinja.
    #[error("the chat template cannot be used: {0}")]
    Syntax(String),
    /// The template itself refuses the conversation, for example because roles do not alternate.
    #[error("the model's chat template refuses these messages: {0}")]
    Refused(String),
    /// The template fails.
    #[error("the model's chat template fails on these messages: {0}")]
    Failed(String),
}
