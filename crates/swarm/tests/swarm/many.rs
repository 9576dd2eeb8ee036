//! A directory of a hundred nodes.

use std::time::{Duration, Instant};

use petals_swarm::{SwarmConfig, SwarmHandle};

use crate::support::{client_config, info, server_config, span, start};

const NODES: usize = 100;
/// Servers repeat themselves this often, so that a dead one is forgotten within twice that.
const PERIOD: Duration = Duration::from_secs(8);
/// For what has no limit of its own: a hundred nodes share two cores with whatever else runs there.
const PATIENCE: Duration = Duration::from_secs(120);

async fn until(
    what: &str,
    limit: Duration,
    client: &SwarmHandle,
    block: u32,
    wanted: impl Fn(usize) -> bool,
) -> Duration {
    let started = Instant::now();
    loop {
        let found = client.lookup(&crate::support::model(), span(block, block + 1)).await;
        if found.is_ok_and(|entries| wanted(entries.len())) {
            return started.elapsed();
        }
        assert!(started.elapsed() < limit, "{what} took more than {limit:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn among_a_hundred_nodes_a_new_server_is_found_and_a_dead_one_forgotten_in_time() {
    let (bootstrap, _streams) = start(server_config(&[])).await;
    let at = bootstrap.listen_addresses();
    let config = || SwarmConfig { announce_period: PERIOD, ..server_config(&at) };
    let mut nodes = Vec::new();
    for number in 1..NODES as u32 {
        let (node, streams) = start(config()).await;
        // Block 0 stays free.
        node.announce(info(span(1 + number % 31, 2 + number % 31))).await.unwrap();
        nodes.push((node, streams));
    }
    let (client, _) = start(client_config(&at)).await;
    client.wait_connected(PATIENCE).await.unwrap();
    until("settling", PATIENCE, &client, 1, |found| found >= 3).await;

    let (new, _streams) = start(config()).await;
    new.announce(info(span(0, 1))).await.unwrap();
    let found = until("finding a new server", PATIENCE, &client, 0, |found| found == 1).await;
    assert!(found < Duration::from_secs(5), "found after {found:?}");

    // Neither withdrawn nor heard of again.
    new.shutdown().await;
    let forgotten = until("forgetting a dead server", PATIENCE, &client, 0, |found| found == 0).await;
    assert!(forgotten < 2 * PERIOD + Duration::from_secs(2), "forgotten after {forgotten:?}");
    let received: u64 = nodes.iter().map(|(node, _)| node.directory_traffic().total()).sum();
    assert!(received > 0);
}
