//! One file per subcommand, each with one `run`.

pub(crate) mod bench;
pub(crate) mod chat;
pub(crate) mod distill;
pub(crate) mod eval;
pub(crate) mod export;
pub(crate) mod fingerprint;
pub(crate) mod generate;
mod given;
mod key;
pub(crate) mod logits;
pub(crate) mod manual;
pub(crate) mod model;
pub(crate) mod monitor;
mod out;
pub(crate) mod report;
pub(crate) mod route;
pub(crate) mod serve;
mod session;
pub(crate) mod status;
mod stop;
mod swarm_page;
pub(crate) mod train;
mod waits;
