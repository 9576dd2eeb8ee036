//! The model over HTTP, in the forms that OpenAI's and Anthropic's clients speak, and as a page for browsers.
//!
//! | file | subject |
//! |---|---|
//! | `paths`, `router`, `guard`, `caller`, `unpack` | which path does what, for whom, and what it is sent |
//! | `app` | what the endpoints share |
//! | `fields`, `parameters`, `prompts`, `refused`, `room` | what requests have in common |
//! | `completions`, `chats`, `conversation`, `tools` | texts and conversations to be continued |
//! | `responses`, `messages` | other interfaces to conversations, each a translation to `chats` |
//! | `kept` | answers that `responses` may go on from |
//! | `forms`, `gbnf`, `grammar` | what answers must be like |
//! | `embeddings`, `tokens` | texts as vectors and as tokens |
//! | `reply`, `error` | answers |
//! | `engine`, `gate`, `pool` | texts that grow, how many at a time, and what is kept of them |
//! | `metrics` | figures for Prometheus |

mod app;
mod caller;
mod chats;
mod completions;
mod conversation;
mod embeddings;
mod engine;
mod error;
mod fields;
mod forms;
mod gate;
mod gbnf;
mod grammar;
mod guard;
mod kept;
mod messages;
mod metrics;
mod models;
mod page;
mod parameters;
mod paths;
mod pool;
mod prompts;
mod refused;
mod reply;
mod responses;
mod room;
mod router;
mod tokens;
mod tools;
mod unpack;
mod weight;

pub(crate) use app::App;
pub(crate) use engine::Engine;
pub(crate) use gate::Gate;
pub(crate) use guard::Guard;
pub(crate) use kept::Kept;
pub(crate) use models::Models;
pub(crate) use pool::Pool;
pub(crate) use router::router;

#[cfg(test)]
mod tests;
