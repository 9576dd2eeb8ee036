//! Records that a stranger puts into the hash table in the name of others.

use petals_e2e::{Forger, Goldens, LocalSwarm};
use petals_node::ExecutorConfig;
use petals_protocol::{ServerInfo, ServerState};
use petals_swarm::{DirectoryEntry, Identity, fuzzing};

/// What records name: a port where nobody is.
const NOWHERE: &str = "/ip4/127.0.0.1/tcp/9";

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
    let key = |peer| Forger::server_key(&swarm.model, &peer);
    let payload = |info: &ServerInfo| Forger::payload(info, NOWHERE);

    // What the victim said first; then it says something else.
    let old = forger.get(&key(victim)).await?.pop().ok_or_else(|| anyhow::anyhow!("no record of the victim"))?;
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
    let attempts: Vec<(&str, petals_swarm::PeerId, Vec<u8>)> = vec![
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
        forger.put(&key(peer), value.clone()).await?;
        let found = entries(&swarm).await?;
        assert_eq!(found, expected, "a record that is {what}");
        let passed_on = forger.get(&key(peer)).await?;
        assert!(!passed_on.contains(&value), "a record that is {what} is passed on");
    }
    // What is right is kept, even by a stranger: the others were refused for what they are.
    forger.put(&key(own), by_forger.clone()).await?;
    assert!(forger.get(&key(own)).await?.contains(&by_forger));
    Ok(())
}
