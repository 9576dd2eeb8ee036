//! A directory of more nodes than keep one entry, so that some of them know nothing of a server.

use std::time::{Duration, Instant};

use petals_swarm::{SwarmConfig, SwarmHandle};

use crate::support::{client_config, info, server_config, span, start};

/// Each entry is kept by 12. How soon a hundred nodes find a server is printed by the example `directory`.
const NODES: usize = 24;
/// The server that dies repeats itself this often, so it is forgotten within twice that.
const PERIOD: Duration = Duration::from_secs(8);
/// All nodes share two cores with whatever else runs there.
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
        if found.as_ref().is_ok_and(|entries| wanted(entries.len())) {
            return started.elapsed();
        }
        let found = found.map(|entries| entries.len());
        assert!(started.elapsed() < limit, "{what} took more than {limit:?}, with {found:?} in the end");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn among_many_nodes_a_new_server_is_found_and_a_dead_one_forgotten() {
    let (bootstrap, _streams) = start(server_config(&[])).await;
    let at = bootstrap.listen_addresses();
    let mut nodes = Vec::new();
    for number in 1..NODES as u32 {
        let (node, streams) = start(server_config(&at)).await;
        // Block 0 stays free.
        node.announce(info(span(number, number + 1))).await.unwrap();
        nodes.push((node, streams));
    }
    let (client, _) = start(client_config(&at)).await;
    client.wait_connected(PATIENCE).await.unwrap();
    until("settling", PATIENCE, &client, 1, |found| found >= 1).await;

    let (new, _streams) = start(SwarmConfig { announce_period: PERIOD, ..server_config(&at) }).await;
    new.announce(info(span(0, 1))).await.unwrap();
    let found = until("finding a new server", PATIENCE, &client, 0, |found| found == 1).await;

    // Neither withdrawn nor heard of again.
    new.shutdown().await;
    let forgotten = until("forgetting a dead server", PATIENCE, &client, 0, |found| found == 0).await;
    eprintln!("found after {found:.1?}, forgotten after {forgotten:.1?}");
    // Nodes count once a second.
    let counting = Instant::now();
    while nodes.iter().all(|(node, _)| node.directory_traffic().total() == 0) {
        assert!(counting.elapsed() < PATIENCE, "no node has received any request");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
