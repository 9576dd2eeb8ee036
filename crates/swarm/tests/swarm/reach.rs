//! Nodes that reach each other through a relay only, and directly once they can.

use std::time::Duration;

use futures::{AsyncReadExt, AsyncWriteExt};
use petals_swarm::{Identity, Multiaddr, PeerStream, Reachability, SwarmConfig, SwarmHandle, SwarmNode};

use crate::support::{
    CAP, client_config, echo, echo_server, eventually, info, lookup_until, server, server_config, span, start, within,
};

fn loopback() -> Vec<Multiaddr> {
    vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()]
}

/// A server that nobody can dial, because it listens nowhere.
async fn unreachable_server(peers: &[Multiaddr]) -> SwarmHandle {
    echo_server(SwarmConfig { listen: vec![], ..server_config(peers) }).await
}

fn is_circuit(address: &Multiaddr) -> bool {
    address.to_string().contains("/p2p-circuit")
}

async fn open(client: &SwarmHandle, server: &SwarmHandle, addresses: &[Multiaddr]) -> PeerStream {
    client.open_stream(server.local_peer(), addresses, CAP).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_nobody_reaches_is_found_and_used_through_a_relay() {
    let (relay, _streams) = server(&[]).await;
    let hidden = unreachable_server(&relay.listen_addresses()).await;
    hidden.announce(info(span(0, 4))).await.unwrap();
    let (client, _) = start(client_config(&relay.listen_addresses())).await;
    client.wait_connected(CAP).await.unwrap();

    // It finds out by itself that nobody reaches it, and asks the node that it joined through.
    let reserved = async || {
        let found = client.lookup(&crate::support::model(), span(0, 4)).await.ok()?.pop()?;
        (found.info.relayed && found.addresses.iter().any(is_circuit)).then_some(found)
    };
    let found = tokio::time::timeout(Duration::from_secs(60), async {
        loop {
            if let Some(found) = reserved().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let found = found.await;
    let found = found.unwrap_or_else(|_| {
        panic!("no reservation: {:?}, told {:?}", hidden.reachability(), hidden.external_addresses())
    });
    assert_eq!(hidden.reachability(), Reachability::Unreachable);
    assert!(found.addresses.iter().all(is_circuit), "{:?}", found.addresses);

    let mut stream = open(&client, &hidden, &found.addresses).await;
    assert!(stream.path().is_relayed());
    // More than libp2p's relays carry by default.
    for _ in 0..64 {
        within("an echo", echo(&mut stream, 64 * 1024)).await.unwrap();
    }
    // The client listens nowhere either, so they cannot meet.
    assert!(!stream.path().is_outdated());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_move_to_a_direct_connection_when_there_is_one() {
    let (relay, _streams) = server(&[]).await;
    let at = relay.listen_addresses()[0].clone();
    let circuit: Multiaddr = format!("{at}/p2p-circuit").parse().unwrap();
    // It can be dialled, but tells nobody where.
    let hidden = echo_server(SwarmConfig {
        announce: vec![circuit.clone()],
        relay_via: vec![at.clone()],
        ..server_config(std::slice::from_ref(&at))
    })
    .await;
    eventually("a reservation", async || hidden.listen_addresses().iter().any(is_circuit).then_some(())).await;
    // On a busy machine the two may have met before the stream is there; another client then tries.
    let mut met = None;
    for _ in 0..5 {
        let config = client_config(std::slice::from_ref(&at));
        let (client, _) = start(SwarmConfig { listen: loopback(), ..config }).await;
        client.wait_connected(CAP).await.unwrap();
        // By then the relay has told the client under which address it sees it, which hole punching needs.
        lookup_until(&client, span(0, 4), <[_]>::is_empty).await;
        let stream = open(&client, &hidden, std::slice::from_ref(&circuit)).await;
        if stream.path().is_relayed() {
            met = Some((client, stream));
            break;
        }
    }
    let (client, mut first) = met.expect("a stream through the relay");
    within("an echo", echo(&mut first, 4096)).await.unwrap();
    eventually("a direct connection", async || first.path().is_outdated().then_some(())).await;
    within("an echo on the old stream", echo(&mut first, 4096)).await.unwrap();
    // Both sides dial when they meet half-way, and one of two connections may be given up again.
    let mut second = eventually("a stream on the direct connection", async || {
        let mut stream = client.open_stream(hidden.local_peer(), std::slice::from_ref(&circuit), CAP).await.ok()?;
        (!stream.path().is_relayed() && echo(&mut stream, 4096).await.is_ok()).then_some(stream)
    })
    .await;
    assert!(!second.path().is_outdated());

    // Nobody uses the circuit any more, so it is closed; the direct connection stays.
    drop(first);
    drop(relay);
    within("another echo", echo(&mut second, 4096)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_carries_no_more_than_it_was_told_to() {
    let mut config = server_config(&[]);
    config.relay_limits.circuit_bytes = 256 * 1024;
    let (relay, _streams) = start(config).await;
    let at = relay.listen_addresses()[0].clone();
    let circuit: Multiaddr = format!("{at}/p2p-circuit").parse().unwrap();
    let hidden = echo_server(SwarmConfig { listen: vec![], relay_via: vec![at.clone()], ..server_config(&[]) }).await;
    eventually("a reservation", async || hidden.listen_addresses().iter().any(is_circuit).then_some(())).await;
    let (client, _) = start(client_config(&[at])).await;
    let mut stream = open(&client, &hidden, std::slice::from_ref(&circuit)).await;
    within("an echo", echo(&mut stream, 16 * 1024)).await.unwrap();
    let sent = within("the end of the circuit", async {
        let mut sent = 0;
        let chunk = vec![0; 16 * 1024];
        let mut back = vec![0; 16 * 1024];
        while stream.write_all(&chunk).await.is_ok() && stream.flush().await.is_ok() {
            if stream.read_exact(&mut back).await.is_err() {
                break;
            }
            sent += chunk.len();
        }
        sent
    })
    .await;
    assert!(sent <= 256 * 1024, "{sent} bytes");
    // Another circuit may be opened.
    let mut stream = open(&client, &hidden, &[circuit]).await;
    within("an echo", echo(&mut stream, 16 * 1024)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_want_to_relay_does_not() {
    let (relay, _streams) = start(SwarmConfig { relay_server: false, ..server_config(&[]) }).await;
    let at = relay.listen_addresses()[0].clone();
    let config = SwarmConfig { relay_via: vec![at.clone()], ..server_config(&[at]) };
    let (node, _streams) = SwarmNode::start(Identity::generate(), config).await.unwrap();
    node.wait_connected(CAP).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!node.external_addresses().iter().any(is_circuit));
    lookup_until(&node, span(0, 4), <[_]>::is_empty).await;
}
