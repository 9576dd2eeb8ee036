//! Answers of a given form: JSON of a schema, a regular expression, a grammar. llguidance says which tokens may come next.
//!
//! | file | subject |
//! |---|---|
//! | `form` | what an answer is to be like |
//! | `vocabulary` | the model's tokens as bytes, as llguidance wants them |
//! | `compile` | forms that come from strangers, made ready within bounds |
//! | `walk` | one text on its way through its form |

pub(super) use compile::{Grammar, Grammars};
pub(super) use form::{Form, Rule, bounded, completed, quoted};
pub(super) use walk::Walk;

mod compile;
mod form;
mod vocabulary;
mod walk;

#[cfg(test)]
mod tests;
