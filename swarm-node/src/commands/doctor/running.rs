//! A node that runs already with the identity that the doctor was given: most likely the very one that somebody worries about.

use std::path::Path;

use petals_protocol::{ModelId, Span};
use petals_swarm::{Identity, IdentityError, PeerId, SwarmHandle};

use crate::args::NetworkArgs;
use crate::commands::events::Check;
use crate::error::NodeError;

/// Who the doctor is: the node of the identity file, or somebody else if that one is running or the file cannot be used.
pub(super) struct Role {
    pub(super) identity: Identity,
    /// The node that runs with the identity of the file.
    pub(super) running: Option<PeerId>,
    /// What there is to say of the file.
    pub(super) check: Option<Check>,
}

impl Role {
    /// Takes the identity in `file`, or a new one.
    pub(super) fn of(file: Option<&Path>) -> Self {
        const NAME: &str = "identity";
        let other = |running, check| Self { identity: Identity::generate(), running, check: Some(check) };
        let Some(file) = file else { return Self { identity: Identity::generate(), running: None, check: None } };
        match Identity::load_or_create_locked(file) {
            Ok(identity) => {
                let check = Check::ok(NAME, format!("{} in {}", identity.peer_id(), file.display()));
                Self { identity, running: None, check: Some(check) }
            }
            Err(IdentityError::InUse { .. }) => match Identity::load_or_create(file) {
                Ok(identity) => {
                    let peer = identity.peer_id();
                    let detail = format!("{peer} in {}: a node runs with it on this machine", file.display());
                    other(Some(peer), Check::ok(NAME, detail))
                }
                Err(error) => other(None, unusable(error)),
            },
            Err(error) => other(None, unusable(error)),
        }
    }
}

fn unusable(error: IdentityError) -> Check {
    let remedy =
        "give --identity a key file of this user's own (mode 600), or a new path: the file is made if it is missing";
    Check::fail("identity", NodeError::input(error).to_string(), remedy)
}

/// The arguments for a node beside the one that runs: it has the ports, and what is announced is its own.
pub(super) fn beside(args: &NetworkArgs) -> NetworkArgs {
    let any_port = |address: &String| {
        let mut parts: Vec<&str> = address.split('/').collect();
        for at in 1..parts.len() {
            if ["tcp", "udp"].contains(&parts[at - 1]) {
                parts[at] = "0";
            }
        }
        parts.join("/")
    };
    let listen = args.listen.iter().map(any_port).collect();
    NetworkArgs { listen, announce: Vec::new(), relay_via: Vec::new(), ..args.clone() }
}

/// What the swarm knows of the node that runs.
pub(super) async fn seen(swarm: &SwarmHandle, peer: PeerId, model: Option<(ModelId, Span)>) -> Check {
    const NAME: &str = "server";
    const REMEDY: &str = "look at what the running node prints: it says when it is ready, and whether others reach it";
    let Some((model, blocks)) = model else {
        return Check::warn(NAME, "not looked up", "give --model, to see what the swarm knows of the node that runs");
    };
    let found = match swarm.lookup(&model, blocks).await {
        Ok(servers) => servers.into_iter().find(|server| server.peer == peer),
        Err(error) => return Check::warn(NAME, format!("the swarm cannot be asked for it: {error}"), REMEDY),
    };
    let Some(server) = found else {
        return Check::fail(NAME, format!("the swarm knows no server {peer} of {model}"), REMEDY);
    };
    let state = format!("{:?}", server.info.state).to_lowercase();
    let addresses: Vec<String> = server.addresses.iter().map(ToString::to_string).collect();
    Check::ok(NAME, format!("the swarm knows it: blocks {}, {state}, at {}", server.info.span, addresses.join(" ")))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};
    use crate::commands::events::CheckStatus;

    #[test]
    fn the_ports_of_a_running_node_are_left_to_it() {
        let line = [
            "petals-node",
            "doctor",
            "--listen",
            "/ip4/0.0.0.0/tcp/31337",
            "--listen",
            "/ip4/0.0.0.0/udp/31337/quic-v1",
        ];
        let announce = ["--announce", "/dns4/tcp/tcp/31337", "--identity", "key"];
        let Command::Doctor(args) = Cli::parse_from(line.into_iter().chain(announce)).command else { panic!() };
        let beside = beside(&args.network);
        assert_eq!(beside.listen, ["/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1"]);
        assert!(beside.announce.is_empty() && beside.identity.is_some());
    }

    #[test]
    fn a_key_that_is_in_use_is_no_failure_and_one_that_cannot_be_used_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.key");
        let first = Role::of(Some(&path));
        assert!(first.running.is_none() && path.is_file());
        let second = Role::of(Some(&path));
        assert_eq!(second.running, Some(first.identity.peer_id()));
        assert_ne!(second.identity.peer_id(), first.identity.peer_id());
        let status = |role: &Role| role.check.as_ref().map(|check| check.status);
        assert_eq!(status(&second), Some(CheckStatus::Ok));
        let wrong = folder.path().join("wrong.key");
        std::fs::write(&wrong, "hello").unwrap();
        assert_eq!(status(&Role::of(Some(&wrong))), Some(CheckStatus::Fail));
        assert!(Role::of(None).check.is_none());
    }
}
