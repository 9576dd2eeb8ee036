//! What each command does: one file a command, and what several of them need around a node.
//!
//! | file | subject |
//! |---|---|
//! | `serve`, `bootstrap`, `invite`, `keygen`, `devices`, `doctor`, `bench` | the commands |
//! | `events` | what is printed on stdout |
//! | `model` | from `--model` to a model that can be read |
//! | `network`, `signals` | from arguments to a libp2p node; how a person stops it |
//! | `report`, `page` | what it did, in a line now and then and as a page of the swarm |
//! | `manual` | completions for shells, manual pages |
//! | `join`, `state` | how others come to it; what it keeps for its next start |
//!
//! Apart from the rest because all of it talks to a person: it takes arguments, prints and ends with an exit status. A server
//! in a test's own process begins below, at [`Server`](crate::Server).

pub(crate) mod bench;
pub(crate) mod bootstrap;
pub(crate) mod devices;
pub(crate) mod doctor;
pub(crate) mod events;
pub(crate) mod invite;
mod join;
pub(crate) mod keygen;
pub(crate) mod manual;
mod model;
mod network;
mod page;
mod report;
pub(crate) mod serve;
mod signals;
mod state;
mod watch;
