//! `petals-node keygen`.

use petals_swarm::Identity;

use crate::args::KeygenArgs;
use crate::error::NodeError;
use crate::events::NodeEvent;

pub(crate) fn run(args: &KeygenArgs) -> Result<(), NodeError> {
    if args.out.exists() {
        let error = anyhow::anyhow!("{} exists: choose another file, a key is never overwritten", args.out.display());
        return Err(NodeError::input(error));
    }
    let identity = Identity::load_or_create(&args.out).map_err(NodeError::input)?;
    let key = NodeEvent::Key { peer_id: identity.peer_id().to_string(), file: args.out.display().to_string() };
    key.emit(args.json);
    Ok(())
}
