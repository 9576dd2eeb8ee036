//! What the endpoints share.

use std::sync::Arc;

use petals_page::SwarmPage;

use super::engine::Engine;
use super::error::ApiError;
use super::guard::Guard;
use super::kept::Kept;
use super::models::Models;
use crate::chat::{ChatTemplate, ToolFormat};

/// What the endpoints share.
#[derive(Debug)]
pub(crate) struct App {
    /// Generates.
    pub(crate) engine: Arc<Engine>,
    /// The swarm behind it, for people.
    pub(crate) swarm: Arc<SwarmPage>,
    /// What is served.
    pub(crate) models: Models,
    /// The model's chat template, or why chats are not possible.
    pub(crate) template: Result<ChatTemplate, String>,
    /// How the model writes calls of tools, if it is known.
    pub(crate) tool_format: Option<ToolFormat>,
    /// Most tokens that a request gets.
    pub(crate) max_new_tokens: usize,
    /// Tokens of a chat that asks for no number.
    pub(crate) default_new_tokens: usize,
    /// Who may do what.
    pub(crate) guard: Arc<Guard>,
    /// Answers that can be gone on from.
    pub(crate) kept: Kept,
}

/// Does what takes a while on a thread of its own.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(ApiError::internal("the request could not be read")))
}
