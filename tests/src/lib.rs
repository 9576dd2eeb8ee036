//! Fixtures of the end-to-end tests: goldens, swarms of real processes or in this process, slow links, simulated internets,
//! misbehaving servers, comparisons.

mod api;
mod assault;
mod attacker;
mod bystander;
mod compare;
mod forger;
mod giver;
mod goldens;
mod hostile;
mod http;
mod hub;
mod internet;
mod link;
mod load;
mod local_swarm;
mod namespace;
mod programs;
mod random_model;
mod relay;
mod wide_area;

pub use api::ApiServer;
pub use assault::{Assailants, Assault, assail};
pub use attacker::{AttackStream, Attacker};
pub use bystander::Bystander;
pub use compare::{assert_close, assert_curves_close, largest_difference};
pub use forger::Forger;
pub use giver::{Giver, Giving};
pub use goldens::{FAMILIES, Goldens};
pub use hostile::{HostileServer, Misbehaviour};
pub use http::{HttpAnswer, http, http_send};
pub use hub::{Asked, Fault, File, HubServer, Repository, write_shards};
pub use internet::{Access, Host, Internet};
pub use link::{Lane, Link, LinkConfig};
pub use load::{Habit, Share, Target, load, unfairness};
pub use local_swarm::LocalSwarm;
pub use programs::{Node, ProcessSwarm, Tune, send_signal};
pub use random_model::RandomModel;
pub use relay::{Net, Relay};
pub use wide_area::WideAreaSwarm;
