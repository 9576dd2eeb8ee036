use petals_protocol::{ServerInfo, ServerState, Span};
use petals_swarm::{Identity, Incoming, Multiaddr, SwarmConfig, SwarmNode};
use tokio::time::timeout;

use super::*;

/// Longest wait for anything.
const CAP: Duration = Duration::from_secs(20);

fn model() -> ModelId {
    "demo@0000000000000001".parse().unwrap()
}

fn often() -> Periods {
    Periods { look: Duration::from_millis(50), namesake: Duration::from_millis(200), ..Periods::default() }
}

async fn start(identity: Identity, peers: &[Multiaddr]) -> (SwarmHandle, Incoming) {
    let listen = vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()];
    let announce_period = Duration::from_millis(500);
    let config = SwarmConfig { listen, peers: peers.to_vec(), announce_period, ..SwarmConfig::server() };
    let (handle, incoming) = SwarmNode::start(identity, config).await.unwrap();
    if !peers.is_empty() {
        handle.wait_connected(CAP).await.unwrap();
    }
    (handle, incoming)
}

/// A server that says that it serves these blocks.
async fn announced(identity: Identity, peers: &[Multiaddr], start: u32) -> (SwarmHandle, Incoming) {
    let (handle, incoming) = self::start(identity, peers).await;
    let span = Span::new(start, start + 2).unwrap();
    handle.announce(ServerInfo::new(model(), span, ServerState::Online)).await.unwrap();
    (handle, incoming)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_running_nodes_under_one_identity_the_later_one_stops() {
    let folder = tempfile::tempdir().unwrap();
    let identity = || Identity::load_or_create(folder.path().join("same.key")).unwrap();
    let (bootstrap, _streams) = start(Identity::generate(), &[]).await;
    let peers = bootstrap.listen_addresses();
    let (first, _first_streams) = announced(identity(), &peers, 0).await;
    // Clocks have milliseconds.
    sleep(Duration::from_millis(20)).await;
    let (second, _second_streams) = announced(identity(), &peers, 2).await;
    let known = model();
    let (kept, stopped) = tokio::join!(
        timeout(Duration::from_secs(4), watch(&first, Some(&known), true, often())),
        timeout(CAP, watch(&second, Some(&known), true, often())),
    );
    assert!(kept.is_err(), "the first one goes on: {kept:?}");
    let error = stopped.unwrap().to_string();
    assert!(error.contains("in use by another node") && error.contains("blocks 0..2"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_an_earlier_run_left_stops_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let identity = || Identity::load_or_create(folder.path().join("same.key")).unwrap();
    let (bootstrap, _streams) = start(Identity::generate(), &[]).await;
    let peers = bootstrap.listen_addresses();
    let (first, first_streams) = announced(identity(), &peers, 0).await;
    sleep(Duration::from_millis(20)).await;
    let (second, _second_streams) = start(identity(), &peers).await;
    let known = model();
    let found = timeout(CAP, async {
        while second.namesake(&known).await.is_none() {
            sleep(Duration::from_millis(50)).await;
        }
    });
    found.await.unwrap();
    // Gone without a word.
    first.shutdown().await;
    drop(first_streams);
    let watched = timeout(Duration::from_secs(2), watch(&second, Some(&known), true, often())).await;
    assert!(watched.is_err(), "{watched:?}");
}
