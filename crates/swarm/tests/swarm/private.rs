//! Who is let in: swarm keys, allow lists, and bounds for those who ask too much.

use std::collections::HashSet;
use std::time::Duration;

use petals_swarm::{Identity, OpenError, StartError, SwarmConfig, SwarmKey, SwarmNode};

use crate::support::{
    CAP, client_config, echo, echo_server, eventually, info, lookup_until, server_config, span, start, within,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_those_with_the_swarms_key_get_in_and_others_learn_why() {
    let key = SwarmKey::generate();
    let private = |config: SwarmConfig| SwarmConfig { swarm_key: Some(key), ..config };
    let server = echo_server(private(server_config(&[]))).await;
    server.announce(info(span(0, 4))).await.unwrap();
    let at = server.listen_addresses();

    let (member, _) = start(private(client_config(&at))).await;
    member.wait_connected(CAP).await.unwrap();
    lookup_until(&member, span(0, 4), |entries| entries.len() == 1).await;
    let mut stream = member.open_stream(server.local_peer(), &at, CAP).await.unwrap();
    within("an echo", echo(&mut stream, 64 * 1024)).await.unwrap();

    let other = SwarmConfig { swarm_key: Some(SwarmKey::generate()), ..client_config(&at) };
    for (config, says) in [(other, "another swarm key"), (client_config(&at), "swarm key")] {
        let config = SwarmConfig { dial_timeout: Duration::from_secs(2), ..config };
        let has_key = config.swarm_key.is_some();
        let (stranger, _) = start(config).await;
        let error = stranger.wait_connected(Duration::from_secs(4)).await.unwrap_err().to_string();
        // Without a key the wrong bytes may as well look like the beginning of a long message.
        assert!(error.contains(says) || (!has_key && error.contains("imeout")), "{error}");
    }
    within("an echo", echo(&mut stream, 16)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_private_node_does_not_listen_for_quic() {
    let quic = "/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap();
    let config = SwarmConfig { listen: vec![quic], swarm_key: Some(SwarmKey::generate()), ..server_config(&[]) };
    let error = SwarmNode::start(Identity::generate(), config).await.unwrap_err();
    assert!(matches!(error, StartError::PrivateQuic(_)) && error.to_string().contains("TCP only"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_a_list_serves_nobody_else_and_says_so() {
    let guest = Identity::generate();
    let allow_peers = Some(HashSet::from([guest.peer_id()]));
    let server = echo_server(SwarmConfig { allow_peers, ..server_config(&[]) }).await;
    let at = server.listen_addresses();
    let (guest, _) = SwarmNode::start(guest, client_config(&at)).await.unwrap();
    let mut stream = guest.open_stream(server.local_peer(), &at, CAP).await.unwrap();
    within("an echo", echo(&mut stream, 4096)).await.unwrap();

    let (stranger, _) = start(client_config(&at)).await;
    let error = stranger.open_stream(server.local_peer(), &at, CAP).await.unwrap_err();
    assert!(matches!(&error, OpenError::NotAllowed { peer, .. } if *peer == server.local_peer()), "{error}");
    assert!(error.to_string().contains(&stranger.local_peer().to_string()) && !error.is_retryable(), "{error}");
    assert_eq!(server.traffic().streams_accepted, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_opens_stream_after_stream_disturbs_nobody() {
    let server = echo_server(server_config(&[])).await;
    let (at, peer) = (server.listen_addresses(), server.local_peer());
    let (greedy, _) = start(client_config(&at)).await;
    let (honest, _) = start(client_config(&at)).await;
    let mut held = honest.open_stream(peer, &at, CAP).await.unwrap();
    let flood = tokio::spawn(async move {
        for _ in 0..40 {
            let opens = (0..50).map(|_| greedy.open_stream(peer, &at, CAP));
            drop(futures::future::join_all(opens).await);
        }
    });
    while !flood.is_finished() {
        within("an echo during the flood", echo(&mut held, 4096)).await.unwrap();
    }
    eventually("refusals", async || (server.traffic().streams_refused > 0).then_some(())).await;
    let mut another = honest.open_stream(peer, &server.listen_addresses(), CAP).await.unwrap();
    within("an echo", echo(&mut another, 4096)).await.unwrap();
}
