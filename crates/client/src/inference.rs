//! Tokens out.
//!
//! | file | subject |
//! |---|---|
//! | `session` | rows through the servers, which remember what came before |
//! | `text_session` | the same with embeddings in front and the head behind |
//! | `logits`, `head` | whole passes without memory; the head, for all texts of a process together |
//! | `prefix` | prompts and texts as keys and values |
//! | `logprobs` | how probable tokens were |
//! | `sampler`, `generation` | from logits to texts: sampling, beams, guesses that are checked |
//!
//! Apart from the blocks below because those know hidden states only: what a token is begins here.

pub(crate) mod generation;
mod head;
pub(crate) mod logits;
pub(crate) mod logprobs;
mod prefix;
pub(crate) mod sampler;
pub(crate) mod session;
pub(crate) mod text_session;
