//! `petals-node invite`.

use anyhow::Context;
use petals_swarm::{Identity, IdentityError, Invitation, SwarmKey, parse_peers};

use super::events::NodeEvent;
use super::state::NodeState;
use crate::args::InviteArgs;
use crate::error::NodeError;

pub(crate) fn run(args: &InviteArgs) -> Result<(), NodeError> {
    let state = match &args.identity {
        None => None,
        Some(identity) => {
            let state = NodeState::load(identity).map_err(NodeError::input)?;
            if state.is_some() && !is_running(identity) {
                tracing::warn!("no node runs with {} now: these are the addresses of its last run", identity.display());
            }
            state
        }
    };
    let own = state.iter().flat_map(|state| state.addresses.iter());
    let peers = parse_peers(own.chain(&args.peers).map(String::as_str)).map_err(NodeError::input)?;
    if peers.is_empty() {
        let error = match &args.identity {
            Some(identity) => anyhow::anyhow!(
                "nothing is known of a node with the identity {}: start it with the same --identity, or name members by --peers",
                identity.display()
            ),
            None => anyhow::anyhow!("nobody to lead to: give the --identity of a node of this machine, or --peers"),
        };
        return Err(NodeError::input(error));
    }
    let private = state.as_ref().and_then(|state| state.swarm_key.clone());
    let swarm_key = match (args.with_key, &args.swarm_key) {
        (false, file) => {
            if private.is_some() || file.is_some() {
                eprintln!("The swarm is private: whoever joins needs its key too. --with-key puts it into the line.");
            }
            None
        }
        (true, None) => {
            return Err(NodeError::input(anyhow::anyhow!(
                "--with-key needs --swarm-key FILE, the key to put into the line"
            )));
        }
        (true, Some(file)) => {
            let key = SwarmKey::load(file).map_err(NodeError::input)?;
            if let Some(other) = private.filter(|private| *private != key.fingerprint()) {
                let error =
                    anyhow::anyhow!("the node uses the swarm key {other}, and {} is another one", file.display());
                return Err(NodeError::input(error));
            }
            eprintln!("The line has the key of the swarm in it: give it only to those who may join.");
            Some(key)
        }
    };
    let invitation = Invitation { peers, model: state.and_then(|state| state.model), swarm_key };
    let line = invitation.to_string();
    // What is handed out is what the other side reads.
    let read: Invitation = line.parse().context("the invitation cannot be read")?;
    NodeEvent::Invitation {
        line,
        addresses: read.peers.iter().map(ToString::to_string).collect(),
        model: read.model.map(|model| model.to_string()),
        with_key: read.swarm_key.is_some(),
    }
    .emit(args.json);
    Ok(())
}

/// Whether a node of this machine uses an identity now.
fn is_running(identity: &std::path::Path) -> bool {
    identity.exists() && matches!(Identity::load_or_create_locked(identity), Err(IdentityError::InUse { .. }))
}
