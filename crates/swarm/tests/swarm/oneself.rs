//! What a node finds out about itself: another one under its identity, clocks, announced addresses that nobody reaches.

use std::time::Duration;

use petals_protocol::{ServerInfo, ServerState};
use petals_swarm::{Identity, IdentityError, SwarmConfig, SwarmNode};

use super::support::{client, eventually, info, lookup_until, model, server, server_config, span, start, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_finds_another_one_under_its_identity_and_not_its_own_earlier_run() {
    let folder = tempfile::tempdir().unwrap();
    let identity = || Identity::load_or_create(folder.path().join("same.key")).unwrap();
    let (bootstrap, _streams) = server(&[]).await;
    let peers = bootstrap.listen_addresses();
    let (first, _streams_first) = SwarmNode::start(identity(), server_config(&peers)).await.unwrap();
    first.announce(info(span(0, 4))).await.unwrap();
    lookup_until(&client(&peers).await, span(0, 4), |entries| entries.len() == 1).await;
    assert_eq!(within("asking", first.namesake(&model())).await, None, "its own record is nobody else's");

    let (second, _streams_second) = SwarmNode::start(identity(), server_config(&peers)).await.unwrap();
    let found = eventually("the other one", async || second.namesake(&model()).await).await;
    assert!(found.came_first && found.entry.info.span == span(0, 4));
    assert!(within("calling", second.is_there(&found)).await);

    // Gone without a word: its record stays, and nobody answers.
    within("shutting down", first.shutdown()).await;
    let found = eventually("the record", async || second.namesake(&model()).await).await;
    assert!(!within("calling", second.is_there(&found)).await);
}

#[test]
fn a_key_file_is_for_one_node_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node.key");
    let first = Identity::load_or_create_locked(&path).unwrap();
    assert!(first.is_locked());
    let refused = Identity::load_or_create_locked(&path).unwrap_err();
    assert!(matches!(refused, IdentityError::InUse { .. }));
    assert!(refused.to_string().contains("node.key") && refused.to_string().contains("--identity"), "{refused}");
    let copy = first.clone();
    drop(first);
    assert!(Identity::load_or_create_locked(&path).is_err(), "a clone of it lives");
    drop(copy);
    assert_eq!(
        Identity::load_or_create_locked(&path).unwrap().peer_id(),
        Identity::load_or_create(&path).unwrap().peer_id()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_tell_the_time() {
    let (bootstrap, _streams) = server(&[]).await;
    let node = client(&bootstrap.listen_addresses()).await;
    let offset = eventually("the time", async || node.clock_offset().await).await;
    assert!(offset.ahead_ms.abs() < 5_000 && !offset.is_too_large(), "{offset}");
    assert_eq!(offset.witnesses, 1, "nobody asks itself");
    assert_eq!(bootstrap.clock_offset().await, None, "a client tells nothing");
    let (server, _streams) = server(&bootstrap.listen_addresses()).await;
    server.announce(ServerInfo::new(model(), span(0, 4), ServerState::Online)).await.unwrap();
    lookup_until(&node, span(0, 4), |entries| entries.len() == 1).await;
    assert!(node.wrong_clocks(&model(), span(0, 4)).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_try_the_announced_addresses() {
    let (bootstrap, _streams) = server(&[]).await;
    // Nothing listens on the second one.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let dead: petals_swarm::Multiaddr = format!("/ip4/127.0.0.1/tcp/{}", 9).parse().unwrap();
    let good: petals_swarm::Multiaddr = format!("/ip4/127.0.0.1/tcp/{free}").parse().unwrap();
    let config = server_config(&bootstrap.listen_addresses());
    let config = SwarmConfig { listen: vec![good.clone()], announce: vec![good.clone(), dead.clone()], ..config };
    let (node, _streams) = start(config).await;
    let outcomes = async {
        loop {
            let outcomes = node.announced();
            if outcomes.iter().all(|(_, reached)| reached.is_some()) {
                return outcomes;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let outcomes = tokio::time::timeout(Duration::from_secs(40), outcomes).await.unwrap();
    assert_eq!(outcomes, [(good, Some(true)), (dead, Some(false))]);
}
