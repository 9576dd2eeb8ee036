//! The model over HTTP, in the form that OpenAI's clients speak, and as a page for browsers.
//!
//! | file | subject |
//! |---|---|
//! | `http` | connections |
//! | `paths`, `router`, `guard`, `unpack` | which path does what, for whom, and what it is sent |
//! | `app` | what the endpoints share |
//! | `fields`, `parameters`, `prompts`, `refused`, `room` | what requests have in common |
//! | `completions`, `chats`, `conversation`, `tools`, `choices` | texts and conversations to be continued |
//! | `embeddings`, `tokens` | texts as vectors and as tokens |
//! | `reply`, `error` | answers |
//! | `engine`, `gate`, `pool` | texts that grow, how many at a time, and what is kept of them |
//! | `metrics` | figures for Prometheus |

mod app;
mod chats;
mod choices;
mod completions;
mod conversation;
mod embeddings;
mod engine;
mod error;
mod fields;
mod gate;
mod guard;
mod http;
mod metrics;
mod models;
mod page;
mod parameters;
mod paths;
mod pool;
mod prompts;
mod refused;
mod reply;
mod room;
mod router;
mod tokens;
mod tools;
mod unpack;

pub(crate) use app::App;
pub(crate) use engine::Engine;
pub(crate) use gate::Gate;
pub(crate) use guard::Guard;
pub(crate) use http::serve;
pub(crate) use models::Models;
pub(crate) use pool::Pool;
pub(crate) use router::router;

#[cfg(test)]
mod tests;
