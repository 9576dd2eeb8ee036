//! A member of the hash table that is not this project's program, and writes what it likes.

use std::collections::HashSet;
use std::time::Duration;

use futures::StreamExt;
use libp2p::identity::Keypair;
use libp2p::kad::{self, Quorum, Record, RecordKey, store::MemoryStore};
use libp2p::swarm::SwarmEvent;
use libp2p::{StreamProtocol, Swarm, SwarmBuilder, noise, tcp, yamux};
use petals_protocol::{ModelId, ServerInfo, encode};
use petals_swarm::{Identity, Multiaddr, PeerId, fuzzing};
use sha2::{Digest, Sha256};

/// Longest time for a few queries among nodes of one machine.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long its own records are good for, in milliseconds: what servers say.
const RECORD_TTL_MS: u32 = 120_000;

/// One such member.
#[expect(missing_debug_implementations, reason = "libp2p's swarm has none")]
pub struct Forger {
    swarm: Swarm<kad::Behaviour<MemoryStore>>,
    identity: Identity,
    members: Vec<PeerId>,
}

impl Forger {
    /// A new id that knows these members.
    ///
    /// # Errors
    /// If the system has no sockets or files for it.
    pub fn new(members: &[(PeerId, Multiaddr)]) -> anyhow::Result<Self> {
        let keypair = Keypair::generate_ed25519();
        // The one way to a key of one's own.
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(&file, keypair.to_protobuf_encoding()?)?;
        let identity = Identity::load_or_create(file.path())?;
        let mut swarm = SwarmBuilder::with_existing_identity(keypair)
            .with_tokio()
            .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)?
            .with_behaviour(|key| {
                let peer = key.public().to_peer_id();
                let config = kad::Config::new(StreamProtocol::new("/petals-rs/kad/1"));
                kad::Behaviour::with_config(peer, MemoryStore::new(peer), config)
            })?
            .build();
        for (peer, address) in members {
            swarm.behaviour_mut().add_address(peer, address.clone());
        }
        Ok(Self { swarm, identity, members: members.iter().map(|(peer, _)| *peer).collect() })
    }

    /// Runs until these queries have ended; the records that they found.
    async fn finish(&mut self, mut queries: HashSet<kad::QueryId>) -> anyhow::Result<Vec<Vec<u8>>> {
        let mut found = Vec::new();
        let run = async {
            while !queries.is_empty() {
                let event = self.swarm.select_next_some().await;
                let SwarmEvent::Behaviour(kad::Event::OutboundQueryProgressed { id, result, step, .. }) = event else {
                    continue;
                };
                if let kad::QueryResult::GetRecord(Ok(kad::GetRecordOk::FoundRecord(record))) = result {
                    found.push(record.record.value);
                }
                if step.last {
                    queries.remove(&id);
                }
            }
        };
        tokio::time::timeout(PATIENCE, run).await?;
        Ok(found)
    }

    /// Asks every member to keep this.
    ///
    /// # Errors
    /// If that takes too long.
    pub async fn put(&mut self, key: &str, value: Vec<u8>) -> anyhow::Result<()> {
        let members = self.members.clone();
        let record = Record::new(key.as_bytes().to_vec(), value);
        let query = self.swarm.behaviour_mut().put_record_to(record, members.into_iter(), Quorum::All);
        self.finish(HashSet::from([query])).await.map(drop)
    }

    /// What members have under a key.
    ///
    /// # Errors
    /// If that takes too long.
    pub async fn get(&mut self, key: &str) -> anyhow::Result<Vec<Vec<u8>>> {
        let query = self.swarm.behaviour_mut().get_record(RecordKey::new(&key));
        self.finish(HashSet::from([query])).await
    }

    /// Puts a record of itself, as of now, that names `address`.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub async fn announce(&mut self, info: &ServerInfo, address: &str) -> anyhow::Result<()> {
        let now = std::time::UNIX_EPOCH.elapsed()?.as_millis() as u64;
        let info = ServerInfo { written_ms: now, ..info.clone() };
        let value = fuzzing::sign_record(&self.identity, &Self::payload(&info, address));
        self.put(&Self::server_key(&info.model, &self.identity.peer_id()), value).await
    }

    /// Puts its name on the lists of these blocks, all at a time.
    ///
    /// # Errors
    /// If that takes too long.
    pub async fn provide(&mut self, model: &ModelId, blocks: &[u32]) -> anyhow::Result<()> {
        let kad = self.swarm.behaviour_mut();
        let queries = blocks.iter().map(|block| kad.start_providing(block_key(model, *block)));
        let queries = queries.collect::<Result<_, _>>()?;
        self.finish(queries).await.map(drop)
    }

    /// Does what members of the hash table do, for so long.
    pub async fn live(&mut self, time: Duration) {
        let forever = async {
            loop {
                self.swarm.select_next_some().await;
            }
        };
        let _: Result<(), _> = tokio::time::timeout(time, forever).await;
    }

    /// The key of what a server says of itself, as in `docs/protocol.md`.
    pub fn server_key(model: &ModelId, peer: &PeerId) -> String {
        format!("/petals-rs/server/{model}/{peer}")
    }

    /// What is signed of a server's word, as in `docs/protocol.md`: info, addresses, life in milliseconds.
    pub fn payload(info: &ServerInfo, address: &str) -> Vec<u8> {
        encode(&(info.to_json(), vec![address.to_owned()], RECORD_TTL_MS))
    }
}

/// The key of a block's list: the multihash of its name.
fn block_key(model: &ModelId, block: u32) -> RecordKey {
    let digest = Sha256::digest(format!("/petals-rs/block/{model}/{block}"));
    RecordKey::from([&[0x12, 32][..], &digest[..]].concat())
}
