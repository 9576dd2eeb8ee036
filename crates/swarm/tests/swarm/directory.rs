//! Announcing and finding.

use std::time::{Duration, Instant};

use petals_protocol::{ServerInfo, ServerState};
use petals_swarm::{ConnectError, Identity, LookupError, PeerId, StartError, SwarmConfig, SwarmNode};

use crate::support::{
    CAP, client, client_config, eventually, info, lookup_until, model, server, server_config, span, start, within,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_finds_a_new_server_through_a_bootstrap_node() {
    let (bootstrap, _streams) = server(&[]).await;
    let client = client(&bootstrap.listen_addresses()).await;
    assert_eq!(client.lookup(&model(), span(0, 8)).await.unwrap(), []);

    let started = Instant::now();
    let (server, _streams) = server(&bootstrap.listen_addresses()).await;
    server.announce(info(span(2, 6))).await.unwrap();
    let found = lookup_until(&client, span(0, 8), |entries| !entries.is_empty()).await;
    assert!(started.elapsed() < Duration::from_secs(5), "took {:?}", started.elapsed());

    assert_eq!((found.len(), found[0].peer, found[0].info.span), (1, server.local_peer(), span(2, 6)));
    assert!(found[0].info.written_ms > 0);
    let told: Vec<_> = found[0].addresses.iter().map(|a| a.clone().with_p2p(server.local_peer()).unwrap()).collect();
    assert_eq!(told, server.listen_addresses());
    assert_eq!(client.lookup(&model(), span(6, 8)).await.unwrap(), [], "blocks that it does not serve");
    let other = "other@0000000000000001".parse().unwrap();
    assert_eq!(client.lookup(&other, span(0, 8)).await.unwrap(), [], "a model that it does not serve");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_withdraws_vanishes_at_once() {
    let (bootstrap, _streams) = server(&[]).await;
    let (server, _streams) = server(&bootstrap.listen_addresses()).await;
    server.announce(info(span(0, 4))).await.unwrap();
    let client = client(&bootstrap.listen_addresses()).await;
    lookup_until(&client, span(0, 4), |entries| entries.len() == 1).await;
    within("withdrawing", server.withdraw()).await;
    assert_eq!(client.lookup(&model(), span(0, 4)).await.unwrap(), []);
    within("shutting down", server.shutdown()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_span_and_state_are_visible_soon() {
    let (bootstrap, _streams) = server(&[]).await;
    let (server, _streams) = server(&bootstrap.listen_addresses()).await;
    let client = client(&bootstrap.listen_addresses()).await;
    let mut said = info(span(0, 4));
    said.state = ServerState::Joining;
    server.announce(said.clone()).await.unwrap();
    lookup_until(&client, span(0, 8), |entries| entries.len() == 1).await;
    (said.span, said.state) = (span(3, 8), ServerState::Online);
    server.announce(said).await.unwrap();
    let found = lookup_until(&client, span(3, 8), |entries| {
        entries.first().is_some_and(|entry| entry.info.state == ServerState::Online)
    });
    assert_eq!(found.await[0].info.span, span(3, 8));
    lookup_until(&client, span(0, 3), <[_]>::is_empty).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_changes_its_model_leaves_the_old_one() {
    let (bootstrap, _streams) = server(&[]).await;
    let (server, _streams) = server(&bootstrap.listen_addresses()).await;
    let client = client(&bootstrap.listen_addresses()).await;
    server.announce(info(span(0, 4))).await.unwrap();
    lookup_until(&client, span(0, 4), |entries| entries.len() == 1).await;
    let other = ServerInfo { model: "other@0000000000000001".parse().unwrap(), ..info(span(0, 4)) };
    server.announce(other.clone()).await.unwrap();
    lookup_until(&client, span(0, 4), <[_]>::is_empty).await;
    eventually("the other model", async || client.lookup(&other.model, span(0, 4)).await.ok()?.pop()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_stay_findable_after_their_bootstrap_node_died() {
    let (bootstrap, _streams) = server(&[]).await;
    let (a, _streams_a) = server(&bootstrap.listen_addresses()).await;
    let (b, _streams_b) = server(&bootstrap.listen_addresses()).await;
    a.announce(info(span(0, 4))).await.unwrap();
    b.announce(info(span(4, 8))).await.unwrap();
    lookup_until(&a, span(0, 8), |entries| entries.len() == 2).await;
    lookup_until(&b, span(0, 8), |entries| entries.len() == 2).await;
    within("shutting down", bootstrap.shutdown()).await;
    let client = client(&a.listen_addresses()).await;
    let found = lookup_until(&client, span(0, 8), |entries| entries.len() == 2).await;
    assert!(found.iter().any(|entry| entry.peer == b.local_peer()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_started_before_its_bootstrap_node_is_found_once_that_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let identity = || Identity::load_or_create(folder.path().join("identity.key")).unwrap();
    let (first, _) = SwarmNode::start(identity(), server_config(&[])).await.unwrap();
    let addresses = first.listen_addresses();
    within("shutting down", first.shutdown()).await;

    let (server, _streams) = server(&addresses).await;
    server.announce(info(span(0, 4))).await.unwrap();
    assert!(server.wait_connected(Duration::from_millis(100)).await.is_err());
    let (bootstrap, _streams) =
        SwarmNode::start(identity(), SwarmConfig { listen: addresses.clone(), ..server_config(&[]) }).await.unwrap();
    assert_eq!(bootstrap.listen_addresses(), addresses);
    server.wait_connected(CAP).await.unwrap();
    lookup_until(&client(&addresses).await, span(0, 4), |entries| entries.len() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_of_a_swarm_find_each_other_again_without_their_bootstrap_node() {
    let folder = tempfile::tempdir().unwrap();
    let identity = || Identity::load_or_create(folder.path().join("identity.key")).unwrap();
    let (bootstrap, _streams) = server(&[]).await;
    let known = bootstrap.listen_addresses();
    let redialling = SwarmConfig { redial_pause: Duration::from_millis(300), ..server_config(&known) };
    let (a, _streams_a) = start(redialling).await;
    let (b, _streams_b) = SwarmNode::start(identity(), server_config(&known)).await.unwrap();
    b.announce(info(span(0, 4))).await.unwrap();
    lookup_until(&a, span(0, 4), |entries| entries.len() == 1).await;
    let addresses = b.listen_addresses();
    within("shutting down", bootstrap.shutdown()).await;
    within("shutting down", b.shutdown()).await;
    // Each look asks all members, and those that cannot be reached are none any more.
    for _ in 0..20 {
        let _ = a.lookup(&model(), span(4, 8)).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Comes back without knowing anybody.
    let (b, _streams_b) =
        SwarmNode::start(identity(), SwarmConfig { listen: addresses, ..server_config(&[]) }).await.unwrap();
    b.announce(info(span(4, 8))).await.unwrap();
    lookup_until(&a, span(4, 8), |entries| entries.len() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_is_forgotten_after_two_periods() {
    let (bootstrap, _streams) = server(&[]).await;
    let quick =
        SwarmConfig { announce_period: Duration::from_millis(400), ..server_config(&bootstrap.listen_addresses()) };
    let (server, _streams) = start(quick).await;
    server.announce(info(span(0, 4))).await.unwrap();
    let client = client(&bootstrap.listen_addresses()).await;
    let first = lookup_until(&client, span(0, 4), |entries| entries.len() == 1).await;
    lookup_until(&client, span(0, 4), |entries| {
        entries.first().is_some_and(|entry| entry.info.written_ms > first[0].info.written_ms + 800)
    })
    .await;
    within("shutting down", server.shutdown()).await;
    lookup_until(&client, span(0, 4), <[_]>::is_empty).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_node_finds_itself() {
    let (server, _streams) = server(&[]).await;
    server.announce(info(span(0, 4))).await.unwrap();
    let found = server.lookup(&model(), span(0, 4)).await.unwrap();
    assert_eq!(found[0].peer, server.local_peer());
    within("withdrawing", server.withdraw()).await;
    assert_eq!(server.lookup(&model(), span(0, 4)).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreachable_swarm_is_reported_with_address_and_reason() {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("/ip4/127.0.0.1/tcp/{port}/p2p/{}", PeerId::random()).parse().unwrap();
    let (lonely, _) = start(client_config(&[address])).await;
    let error = lonely.wait_connected(Duration::from_millis(500)).await.unwrap_err();
    assert!(matches!(error, ConnectError::Unreachable { .. }));
    let text = error.to_string();
    assert!(text.contains(&format!("/tcp/{port}")) && text.contains("refused"), "{text}");
    assert!(matches!(lonely.lookup(&model(), span(0, 4)).await, Err(LookupError::NotConnected)));
    lonely.shutdown().await;
    assert!(matches!(lonely.lookup(&model(), span(0, 4)).await, Err(LookupError::Closed)));
    assert!(matches!(lonely.wait_connected(CAP).await, Err(ConnectError::Closed)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_in_use_is_reported() {
    let (first, _streams) = server(&[]).await;
    let config = SwarmConfig { listen: first.listen_addresses(), ..server_config(&[]) };
    let error = SwarmNode::start(Identity::generate(), config).await.unwrap_err();
    assert!(matches!(&error, StartError::Listen { address, .. } if *address == first.listen_addresses()[0]), "{error}");
}
