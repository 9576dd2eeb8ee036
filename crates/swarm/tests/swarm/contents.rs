//! Streams on which files of a model are passed on, apart from those for blocks.

use std::collections::HashSet;

use futures::{AsyncReadExt, AsyncWriteExt};
use petals_swarm::{Identity, Incoming, OpenError, SwarmConfig, SwarmHandle, SwarmNode};

use crate::support::{CAP, client, client_config, echo, echo_server, server_config, start, within};

/// A node that passes files on, whose streams send back what they get.
async fn sharing(config: SwarmConfig) -> SwarmHandle {
    let node = echo_server(SwarmConfig { shares_contents: true, ..config }).await;
    let incoming = node.take_content_streams().unwrap();
    tokio::spawn(answer(incoming));
    node
}

async fn answer(mut incoming: Incoming) {
    while let Some(mut accepted) = incoming.next().await {
        tokio::spawn(async move {
            let mut buffer = vec![0; 4096];
            while let Ok(count @ 1..) = accepted.stream.read(&mut buffer).await {
                if accepted.stream.write_all(&buffer[..count]).await.is_err() || accepted.stream.flush().await.is_err()
                {
                    return;
                }
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_have_streams_of_their_own() {
    let node = sharing(server_config(&[])).await;
    assert!(node.take_content_streams().is_none(), "they are taken once");
    let (peer, at) = (node.local_peer(), node.listen_addresses());
    // Not connected yet: the stream makes the connection.
    let (client, _) = start(client_config(&[])).await;
    let mut files = client.open_content_stream(peer, &at, CAP).await.unwrap();
    within("an echo", echo(&mut files, 4096)).await.unwrap();
    let mut blocks = client.open_stream(peer, &at, CAP).await.unwrap();
    within("an echo", echo(&mut blocks, 4096)).await.unwrap();
    assert_eq!(node.traffic().streams_accepted, 1, "those for files are not counted among those for blocks");
    assert_eq!(node.traffic().bytes_in, 4096);
    // Neither takes the places of the other.
    let mut held = vec![files];
    for _ in 0..15 {
        held.push(client.open_content_stream(peer, &at, CAP).await.unwrap());
    }
    for stream in &mut held {
        within("an echo", echo(stream, 16)).await.unwrap();
    }
    let mut more = client.open_content_stream(peer, &at, CAP).await.unwrap();
    let read = within("the end of a stream too many", more.read(&mut [0; 16])).await;
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    let mut more = client.open_stream(peer, &at, CAP).await.unwrap();
    within("an echo", echo(&mut more, 16)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_passes_nothing_on_says_so() {
    let node = echo_server(server_config(&[])).await;
    assert!(node.take_content_streams().is_none());
    let client = client(&node.listen_addresses()).await;
    let error = client.open_content_stream(node.local_peer(), &[], CAP).await.unwrap_err();
    assert!(matches!(error, OpenError::Unsupported(_)), "{error}");
    let mut blocks = client.open_stream(node.local_peer(), &[], CAP).await.unwrap();
    within("an echo", echo(&mut blocks, 16)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_go_to_those_alone_who_may_use_the_node() {
    let guest = Identity::generate();
    let allow_peers = Some(HashSet::from([guest.peer_id()]));
    let node = sharing(SwarmConfig { allow_peers, ..server_config(&[]) }).await;
    let (peer, at) = (node.local_peer(), node.listen_addresses());
    let (guest, _) = SwarmNode::start(guest, client_config(&at)).await.unwrap();
    let mut stream = guest.open_content_stream(peer, &at, CAP).await.unwrap();
    within("an echo", echo(&mut stream, 4096)).await.unwrap();
    let (stranger, _) = start(client_config(&at)).await;
    let error = stranger.open_content_stream(peer, &at, CAP).await.unwrap_err();
    assert!(matches!(error, OpenError::NotAllowed { .. }), "{error}");
    // Who is not on the list any more loses what he has open.
    node.allow(Some(HashSet::new())).await;
    let read = within("the end of a stream", stream.read(&mut [0; 16])).await;
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
}
