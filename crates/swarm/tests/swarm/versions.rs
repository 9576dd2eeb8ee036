//! Nodes of different versions of the software, as they are together while a swarm is upgraded.

use std::time::Duration;

use petals_protocol::WireVersion;
use petals_swarm::{OpenError, SwarmConfig, SwarmHandle};

use crate::support::{CAP, client_config, echo, echo_server, server_config, start, within};

/// What was agreed on, after bytes went to and fro in it.
async fn agreed(client: &[WireVersion], server: &[WireVersion]) -> Result<WireVersion, OpenError> {
    let (client, server) = pair(client, server).await;
    let mut stream = client.open_stream(server.local_peer(), &server.listen_addresses(), CAP).await?;
    within("an echo", echo(&mut stream, 4096)).await.unwrap();
    Ok(stream.wire_version().expect("a stream of blocks"))
}

async fn pair(client: &[WireVersion], server: &[WireVersion]) -> (SwarmHandle, SwarmHandle) {
    let server = echo_server(SwarmConfig { wire_versions: server.to_vec(), ..server_config(&[]) }).await;
    let peers = server.listen_addresses();
    let config = SwarmConfig { wire_versions: client.to_vec(), ..client_config(&peers) };
    (start(config).await.0, server)
}

fn version(number: u16) -> WireVersion {
    WireVersion::of_protocol(&format!("/petals-rs/blocks/{number}")).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_versions_that_follow_each_other_work_together_in_the_older_one() {
    let [now, last] = WireVersion::SPOKEN;
    assert_eq!(agreed(&[now, last], &[now, last]).await.unwrap(), now);
    assert_eq!(agreed(&[last], &[now, last]).await.unwrap(), last, "an older client");
    assert_eq!(agreed(&[now, last], &[last]).await.unwrap(), last, "an older server");
    assert_eq!(agreed(&[now, last], &[version(9), now]).await.unwrap(), now, "a newer server");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_without_one_in_common_are_named_with_what_to_upgrade() {
    let error = agreed(&WireVersion::SPOKEN, &[version(9), version(8)]).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, OpenError::OtherVersion { .. }) && !error.is_retryable(), "{error}");
    assert!(text.contains("8 and 9") && text.contains("3 and 4") && text.contains("upgrade this program"), "{text}");

    let text = agreed(&WireVersion::SPOKEN, &[version(2)]).await.unwrap_err().to_string();
    assert!(text.contains("wire version 2 and") && text.contains("upgrade petals-node there"), "{text}");

    let (client, server) = pair(&WireVersion::SPOKEN, &WireVersion::SPOKEN).await;
    client.wait_connected(CAP).await.unwrap();
    // The other side takes note a moment later.
    let noted = async {
        while !server.is_connected(&client.local_peer()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within("the server's connection", noted).await;
    let error = server.open_stream(client.local_peer(), &[], CAP).await.unwrap_err();
    assert!(matches!(error, OpenError::Unsupported(peer) if peer == client.local_peer()), "{error}");
}
