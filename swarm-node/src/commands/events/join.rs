//! How others come to a node.

use std::fmt;

use serde::Serialize;

/// Lines to paste elsewhere.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Join {
    /// Where others reach this node, each address with its peer id.
    pub addresses: Vec<String>,
    /// The command for the next machine.
    pub node: String,
    /// A command that uses the model.
    pub client: String,
    /// Whether only this machine reaches the node.
    pub this_machine_only: bool,
}

impl fmt::Display for Join {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, client, this_machine_only, .. } = self;
        let only = if *this_machine_only { " (on this machine: it listens on loopback alone)" } else { "" };
        write!(f, "to join from the next machine{only}:\n  {node}\nto use the model{only}:\n  {client}")
    }
}
