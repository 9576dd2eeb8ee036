//! Records that a stranger puts into the hash table in the name of others.

use std::time::Duration;

use futures::StreamExt;
use libp2p::kad::{self, Quorum, Record, RecordKey, store::MemoryStore};
use libp2p::swarm::SwarmEvent;
use libp2p::{StreamProtocol, Swarm, SwarmBuilder, noise, tcp, yamux};
use petals_e2e::{Goldens, LocalSwarm};
use petals_node::ExecutorConfig;
use petals_protocol::{ServerInfo, ServerState, encode};
use petals_swarm::{DirectoryEntry, Identity, Multiaddr, PeerId, fuzzing};

const PATIENCE: Duration = Duration::from_secs(10);

/// A member of the hash table that is not this project's program.
struct Forger {
    swarm: Swarm<kad::Behaviour<MemoryStore>>,
    members: Vec<PeerId>,
}

impl Forger {
    fn new(members: &[(PeerId, Multiaddr)]) -> anyhow::Result<Self> {
        let mut swarm = SwarmBuilder::with_new_identity()
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
        Ok(Self { swarm, members: members.iter().map(|(peer, _)| *peer).collect() })
    }

    /// Runs until a query has ended; what it found.
    async fn finish(&mut self, query: kad::QueryId) -> anyhow::Result<Vec<Vec<u8>>> {
        let mut found = Vec::new();
        let run = async {
            loop {
                let event = self.swarm.select_next_some().await;
                let SwarmEvent::Behaviour(kad::Event::OutboundQueryProgressed { id, result, step, .. }) = event else {
                    continue;
                };
                if let kad::QueryResult::GetRecord(Ok(kad::GetRecordOk::FoundRecord(record))) = result {
                    found.push(record.record.value);
                }
                if id == query && step.last {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, run).await?;
        Ok(found)
    }

    /// Asks every member to keep this.
    async fn put(&mut self, key: &str, value: Vec<u8>) -> anyhow::Result<()> {
        let members = self.members.clone();
        let record = Record::new(key.as_bytes().to_vec(), value);
        let query = self.swarm.behaviour_mut().put_record_to(record, members.into_iter(), Quorum::All);
        self.finish(query).await.map(drop)
    }

    async fn get(&mut self, key: &str) -> anyhow::Result<Vec<Vec<u8>>> {
        let query = self.swarm.behaviour_mut().get_record(RecordKey::new(&key));
        self.finish(query).await
    }
}

fn payload(info: &ServerInfo) -> Vec<u8> {
    // As in docs/protocol.md: info, addresses, ttl_ms.
    encode(&(info.to_json(), vec!["/ip4/127.0.0.1/tcp/9".to_owned()], 120_000u32))
}

async fn entries(swarm: &LocalSwarm) -> anyhow::Result<Vec<DirectoryEntry>> {
    let mut entries = swarm.client.lookup(&swarm.model, swarm.blocks).await?;
    entries.sort_by_key(|entry| entry.peer);
    Ok(entries)
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_replayed_and_garbled_records_change_nothing() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = LocalSwarm::start(&goldens.model(), &["0..2", "2..4", "0..4"], ExecutorConfig::default()).await?;
    let servers = || swarm.servers.iter().map(petals_node::Server::swarm);
    let members: Vec<_> = servers().map(|node| (node.local_peer(), node.listen_addresses().remove(0))).collect();
    let mut forger = Forger::new(&members)?;
    let (victim, identity) = (members[0].0, Identity::generate());
    let key = |peer: &PeerId| format!("/petals-rs/server/{}/{peer}", swarm.model);

    // What the victim said first; then it says something else.
    let old = forger.get(&key(&victim)).await?.pop().ok_or_else(|| anyhow::anyhow!("no record of the victim"))?;
    swarm.announce_speed(77.0).await?;
    let expected = entries(&swarm).await?;
    assert_eq!(expected.len(), 3);

    let now = expected.iter().map(|entry| entry.info.written_ms).max().unwrap_or_default();
    let lie = ServerInfo {
        forward_tokens_per_s: Some(1e9),
        written_ms: now + 1000,
        ..ServerInfo::new(swarm.model.clone(), "0..4".parse()?, ServerState::Online)
    };
    let by_forger = fuzzing::sign_record(&identity, &payload(&lie));
    let far = ServerInfo { written_ms: now + 3_600_000, ..lie.clone() };
    let past = ServerInfo { written_ms: now - 3_600_000, ..lie.clone() };
    let other = ServerInfo { model: "other@0000000000000001".parse()?, ..lie.clone() };
    let mut tampered = old.clone();
    if let Some(byte) = tampered.iter_mut().find(|byte| **byte == b'2') {
        *byte = b'4';
    }
    let own = identity.peer_id();
    let attempts: Vec<(&str, PeerId, Vec<u8>)> = vec![
        ("replayed", victim, old),
        ("signed by somebody else", victim, by_forger.clone()),
        ("tampered with", victim, tampered),
        ("garbage", victim, vec![0xa5; 500]),
        ("nothing", victim, Vec::new()),
        ("too long", victim, [by_forger.clone(), vec![0; 8200]].concat()),
        ("of the future", own, fuzzing::sign_record(&identity, &payload(&far))),
        ("expired", own, fuzzing::sign_record(&identity, &payload(&past))),
        ("of another model", own, fuzzing::sign_record(&identity, &payload(&other))),
    ];
    for (what, peer, value) in attempts {
        forger.put(&key(&peer), value.clone()).await?;
        let found = entries(&swarm).await?;
        assert_eq!(found, expected, "a record that is {what}");
        let passed_on = forger.get(&key(&peer)).await?;
        assert!(!passed_on.contains(&value), "a record that is {what} is passed on");
    }
    // What is right is kept, even by a stranger: the others were refused for what they are.
    forger.put(&key(&own), by_forger.clone()).await?;
    assert!(forger.get(&key(&own)).await?.contains(&by_forger));
    Ok(())
}
