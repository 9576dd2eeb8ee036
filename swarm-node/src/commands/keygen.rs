//! `petals-node keygen`.

use petals_swarm::{Identity, SwarmKey};

use super::events::NodeEvent;
use crate::args::KeygenArgs;
use crate::error::NodeError;

pub(crate) fn run(args: &KeygenArgs) -> Result<(), NodeError> {
    for file in [&args.out, &args.swarm_key].into_iter().flatten() {
        if file.exists() {
            let error = anyhow::anyhow!("{} exists: choose another file, a key is never overwritten", file.display());
            return Err(NodeError::input(error));
        }
    }
    if let Some(file) = &args.out {
        let identity = Identity::load_or_create(file).map_err(NodeError::input)?;
        let key = NodeEvent::Key { peer_id: identity.peer_id().to_string(), file: file.display().to_string() };
        key.emit(args.json);
    }
    if let Some(file) = &args.swarm_key {
        let key = SwarmKey::generate();
        key.create(file).map_err(NodeError::input)?;
        let event = NodeEvent::SwarmKey { fingerprint: key.fingerprint(), file: file.display().to_string() };
        event.emit(args.json);
    }
    Ok(())
}
