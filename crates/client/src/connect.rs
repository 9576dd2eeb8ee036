//! From a model's directory and an address to blocks that can be used.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use petals_model::{Checkpoint, CheckpointError, ClientModel, Dtype, ModelConfig};
use petals_protocol::{ModelId, ModelIdError, Span};
use petals_swarm::{
    AddressError, ConnectError, Identity, IdentityError, Invitation, MemberFile, StartError, SwarmConfig, SwarmHandle,
    SwarmKey, SwarmKeyError, SwarmNode, parse_peers,
};
use tokio::sync::mpsc;

use crate::adapter::AdaptedModel;
use crate::sequence::{RemoteSequence, SequenceConfig, SwarmEvent};
use crate::servers::weights::KnownWeights;

/// How long the start waits for the first member of the swarm.
const FIRST_MEMBER: Duration = Duration::from_secs(15);
/// Who waits is told so after this: before that, nothing is unusual.
const FIRST_WORD: Duration = Duration::from_secs(2);
/// Files of members that are looked at for whoever asks for no model.
const MOST_FILES: usize = 256;
/// Time between later words.
const WORD_PERIOD: Duration = Duration::from_secs(10);

/// The client's part of a model: embeddings, final norm and head, from the files on this machine.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    /// Embeddings, norm and head.
    pub local: Arc<ClientModel>,
    /// The configuration.
    pub config: ModelConfig,
    /// Identity and extents, as adapters need them.
    pub adapted: AdaptedModel,
    /// Every block of the model.
    pub blocks: Span,
}

/// What routes through a model depend on: its configuration alone, so that nothing has to be loaded.
#[derive(Debug, Clone)]
pub struct ModelShape {
    /// Its id in the swarm.
    pub id: ModelId,
    /// All of its blocks.
    pub blocks: Span,
    /// Numbers of a hidden state.
    pub hidden_size: usize,
}

/// Why a model's files cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelFilesError {
    /// A file is missing, malformed or of an unknown family.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The directory has no name that can be used in the swarm.
    #[error("the model {} needs a name for the swarm: give --model-name", path.display())]
    Name {
        /// The directory.
        path: PathBuf,
        /// What is wrong with its own name.
        source: ModelIdError,
    },
}

/// How a swarm is joined.
#[derive(Debug, Clone, Default)]
pub struct ClientNetwork {
    /// Addresses of any of its members.
    pub peers: Vec<String>,
    /// An invitation: more addresses, and a key if no file of one is given.
    pub invitation: Option<Invitation>,
    /// Key file, if the swarm is private.
    pub swarm_key: Option<PathBuf>,
    /// Identity file, made if missing; without it the client has another identity each time.
    pub identity: Option<PathBuf>,
    /// Directory in which members of swarms are kept, a file for each model, and looked up when no peers are given or none answers.
    pub members: Option<PathBuf>,
    /// Without peers: not to look for nodes on the local network either.
    pub no_mdns: bool,
}

/// Why the swarm cannot be joined.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// An address that cannot be used.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The swarm key cannot be used.
    #[error(transparent)]
    SwarmKey(#[from] SwarmKeyError),
    /// The identity file cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The local node did not start.
    #[error("cannot start the network node")]
    Start(#[from] StartError),
    /// None of the addresses answers.
    #[error("no --peers address answers: is a node running there, and can this machine reach it?")]
    Unreachable(#[source] ConnectError),
    /// There is nobody to ask.
    #[error("found no swarm: give --peers with the address of a member, as its node prints it")]
    Alone(#[source] ConnectError),
}

impl ModelFiles {
    /// Opens a model's directory. The name in the swarm is the directory's unless given. The head's weights are kept in
    /// `dtype`.
    ///
    /// # Errors
    /// [`ModelFilesError`].
    pub fn open(directory: &Path, name: Option<&str>, dtype: Dtype) -> Result<Self, ModelFilesError> {
        let checkpoint = Checkpoint::open(directory)?;
        let id = checkpoint.model_id(name);
        let id = id.map_err(|source| ModelFilesError::Name { path: directory.to_owned(), source })?;
        let config = checkpoint.config().clone();
        let adapted = AdaptedModel::new(id, directory.display().to_string(), &config);
        let local = Arc::new(checkpoint.load_client(dtype)?);
        Ok(Self { local, blocks: checkpoint.blocks(), config, adapted })
    }

    /// Joins the swarm as a client and waits for the first peer.
    ///
    /// # Errors
    /// [`JoinError`].
    pub async fn connect(
        &self,
        network: &ClientNetwork,
        config: SequenceConfig,
        events: mpsc::Sender<SwarmEvent>,
    ) -> Result<(RemoteSequence, SwarmHandle), JoinError> {
        let id = self.adapted.id.clone();
        let swarm = join(network, Some(&id), &events).await?;
        let sequence = RemoteSequence::new(swarm.clone(), id, self.blocks, self.config.hidden_size, config);
        Ok((sequence.with_events(events), swarm))
    }
}

impl KnownWeights {
    /// Reads all weights of a model's directory. What was read before is kept in `cache`, and not read again while the files stay as they are.
    ///
    /// # Errors
    /// [`ModelFilesError`].
    pub fn of_files(directory: &Path, name: Option<&str>, cache: Option<PathBuf>) -> Result<Self, ModelFilesError> {
        let mut checkpoint = Checkpoint::open(directory)?;
        if let Some(cache) = cache {
            checkpoint = checkpoint.with_cache_in(cache);
        }
        let id = checkpoint.model_id(name);
        let id = id.map_err(|source| ModelFilesError::Name { path: directory.to_owned(), source })?;
        Ok(Self::new(id, checkpoint.weights_of(checkpoint.blocks())?))
    }
}

impl ModelShape {
    /// Reads a model's directory. The name in the swarm is the directory's unless given.
    ///
    /// # Errors
    /// [`ModelFilesError`].
    pub fn open(directory: &Path, name: Option<&str>) -> Result<Self, ModelFilesError> {
        let checkpoint = Checkpoint::open(directory)?;
        let id = checkpoint.model_id(name);
        let id = id.map_err(|source| ModelFilesError::Name { path: directory.to_owned(), source })?;
        Ok(Self { id, blocks: checkpoint.blocks(), hidden_size: checkpoint.config().hidden_size })
    }
}

/// Joins a swarm as a client and waits for the first member. `model`: what is wanted there, whose servers' addresses are kept.
///
/// # Errors
/// [`JoinError`].
pub async fn join(
    network: &ClientNetwork,
    model: Option<&ModelId>,
    events: &mpsc::Sender<SwarmEvent>,
) -> Result<SwarmHandle, JoinError> {
    let mut peers = parse_peers(network.peers.iter().map(String::as_str))?;
    let mut swarm_key = network.swarm_key.as_deref().map(SwarmKey::load).transpose()?;
    if let Some(invitation) = &network.invitation {
        peers.extend(invitation.peers.iter().cloned());
        swarm_key = swarm_key.or(invitation.swarm_key);
    }
    let identity = network.identity.as_ref().map_or_else(|| Ok(Identity::generate()), Identity::load_or_create)?;
    let members = network.members.as_ref().map(|directory| {
        let key = swarm_key.as_ref().map_or_else(String::new, |key| format!("-{}", key.fingerprint()));
        let name = model.map_or_else(|| "any".to_owned(), |model| model.fingerprint().to_string());
        let file = MemberFile::new(directory.join(format!("{name}{key}")), swarm_key.as_ref());
        if model.is_some() { file } else { file.reading_too(files_in(directory)) }
    });
    let defaults = SwarmConfig::client_of(peers);
    let node = SwarmConfig { swarm_key, members, mdns: defaults.mdns && !network.no_mdns, ..defaults };
    let (swarm, _) = SwarmNode::start(identity, node).await?;
    find_company(&swarm, events).await?;
    Ok(swarm)
}

/// Files of members of whatever model.
fn files_in(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().take(MOST_FILES);
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}
/// Waits for the first member of the swarm, and says so if it takes long.
async fn find_company(swarm: &SwarmHandle, events: &mpsc::Sender<SwarmEvent>) -> Result<(), JoinError> {
    let started = Instant::now();
    let mut found = std::pin::pin!(swarm.wait_company(FIRST_MEMBER));
    let mut next = FIRST_WORD;
    loop {
        match tokio::time::timeout(next, &mut found).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error @ ConnectError::Alone { .. })) => return Err(JoinError::Alone(error)),
            Ok(Err(error)) => return Err(JoinError::Unreachable(error)),
            Err(_) => {
                let waited = started.elapsed();
                let reason = swarm.why_alone(Duration::from_secs(waited.as_secs())).to_string();
                let patience_left = FIRST_MEMBER.saturating_sub(waited);
                // Whoever does not listen does not want to know.
                let _ = events.try_send(SwarmEvent::Alone { reason, patience_left });
                next = WORD_PERIOD;
            }
        }
    }
}
