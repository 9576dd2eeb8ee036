//! What a running node keeps beside its identity: where it is and what it serves. Its next start takes the same blocks again, and `invite` tells
//! others.

use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use petals_protocol::{ModelId, Span};
use petals_swarm::{SwarmConfig, SwarmHandle};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use super::join;
use super::network::beside;
use crate::args::NetworkArgs;

/// A state has a few addresses; anything much longer is another file.
const MAX_LEN: u64 = 64 * 1024;
/// Time between looks whether something has changed.
const LOOK: Duration = Duration::from_secs(5);
/// The version that this program writes.
const VERSION: u32 = 1;

/// A node as it was when it last wrote of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct NodeState {
    version: u32,
    /// What it serves, if it does.
    pub(super) model: Option<ModelId>,
    /// Blocks of that model.
    pub(super) blocks: Option<Span>,
    /// Where others reach it, each address with its peer id.
    pub(super) addresses: Vec<String>,
    /// Fingerprint of the key of a private swarm.
    pub(super) swarm_key: Option<String>,
}

/// Why there is no state to use.
#[derive(Debug, thiserror::Error)]
pub(super) enum StateError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is not the state of a node: {what}; delete it, the node writes it anew")]
    Malformed { path: PathBuf, what: String },
}

impl NodeState {
    /// A state to be kept.
    pub(super) fn new(serves: Option<(ModelId, Span)>, addresses: Vec<String>, swarm_key: Option<String>) -> Self {
        let (model, blocks) = serves.unzip();
        Self { version: VERSION, model, blocks, addresses, swarm_key }
    }

    /// The file that belongs to an identity.
    pub(super) fn path(identity: &Path) -> PathBuf {
        beside(identity, "state")
    }

    /// What the node of an identity last wrote, if it ever did.
    pub(super) fn load(identity: &Path) -> Result<Option<Self>, StateError> {
        let path = Self::path(identity);
        let unreadable = |source| StateError::Read { path: path.clone(), source };
        let malformed = |what: String| StateError::Malformed { path: path.clone(), what };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unreadable(error)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_LEN + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        if bytes.len() as u64 > MAX_LEN {
            return Err(malformed(format!("it has more than {MAX_LEN} bytes")));
        }
        let state: Self = serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))?;
        if state.version != VERSION {
            return Err(malformed(format!("its version is {}, and this program reads {VERSION}", state.version)));
        }
        Ok(Some(state))
    }

    /// Writes the state anew. Others see the old one or the new one, never a part. A node that cannot write runs all the same.
    pub(super) fn save(&self, identity: &Path) {
        let path = Self::path(identity);
        let write = || -> io::Result<()> {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            fs::create_dir_all(folder)?;
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            serde_json::to_writer_pretty(&mut file, self)?;
            file.write_all(b"\n")?;
            file.persist(&path).map_err(|error| error.error)?;
            Ok(())
        };
        if let Err(error) = write() {
            tracing::warn!("cannot keep the node's state in {}: {error}", path.display());
        }
    }
}

/// Keeps a node's state up to date as long as it runs.
#[derive(Debug)]
pub(super) struct Keeper {
    identity: Option<PathBuf>,
    swarm_key: Option<String>,
}

impl Keeper {
    /// For the node that these arguments start. One without an identity is another one each time, and keeps nothing.
    pub(super) fn new(args: &NetworkArgs, config: &SwarmConfig) -> Self {
        Self { identity: args.identity.clone(), swarm_key: config.swarm_key.map(|key| key.fingerprint()) }
    }

    /// Writes what changes, at once and then from time to time, for ever.
    pub(super) async fn run(&self, swarm: &SwarmHandle, serves: impl Fn() -> Option<(ModelId, Span)>) -> Infallible {
        let mut last = None;
        loop {
            let addresses = join::addresses(swarm).iter().map(ToString::to_string).collect();
            let now = NodeState::new(serves(), addresses, self.swarm_key.clone());
            if let Some(identity) = self.identity.as_deref().filter(|_| last.as_ref() != Some(&now)) {
                now.save(identity);
            }
            last = Some(now);
            sleep(LOOK).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_read_as_it_was_written_and_a_damaged_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let identity = folder.path().join("node.key");
        assert_eq!(NodeState::load(&identity).unwrap(), None);
        let serves = ("demo@0000000000000001".parse().unwrap(), Span::new(2, 5).unwrap());
        let state = NodeState::new(Some(serves), vec!["/ip4/10.0.0.1/tcp/1".to_owned()], None);
        state.save(&identity);
        assert_eq!(NodeState::load(&identity).unwrap(), Some(state));
        let path = folder.path().join("node.key.state");
        let whole = fs::read_to_string(&path).unwrap();
        let newer = whole.replace("\"version\": 1", "\"version\": 2");
        for damaged in ["", "{", "[]", &whole.replace("[\n", "7 [\n"), &newer, &"x".repeat(MAX_LEN as usize + 1)] {
            fs::write(&path, damaged).unwrap();
            let error = NodeState::load(&identity).unwrap_err().to_string();
            assert!(error.contains("node.key.state") && error.contains("delete it"), "{error}");
        }
    }
}
