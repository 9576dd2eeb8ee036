//! Nodes, and waiting for them.

use std::time::Duration;

use futures::{AsyncReadExt, AsyncWriteExt};
use petals_protocol::{ModelId, ServerInfo, ServerState, Span};
use petals_swarm::{DirectoryEntry, Identity, Incoming, Multiaddr, PeerStream, SwarmConfig, SwarmHandle, SwarmNode};

/// Longest any test waits for anything.
pub(crate) const CAP: Duration = Duration::from_secs(10);

pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(CAP, future).await.unwrap_or_else(|_| panic!("{what} took more than {CAP:?}"))
}

/// Asks again and again until there is an answer.
pub(crate) async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    within(what, async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}

pub(crate) fn server_config(peers: &[Multiaddr]) -> SwarmConfig {
    let listen = vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()];
    SwarmConfig { listen, peers: peers.to_vec(), ..SwarmConfig::server() }
}

pub(crate) fn client_config(peers: &[Multiaddr]) -> SwarmConfig {
    SwarmConfig { peers: peers.to_vec(), ..SwarmConfig::client() }
}

pub(crate) async fn start(config: SwarmConfig) -> (SwarmHandle, Incoming) {
    within("starting a node", SwarmNode::start(Identity::generate(), config)).await.unwrap()
}

pub(crate) async fn server(peers: &[Multiaddr]) -> (SwarmHandle, Incoming) {
    start(server_config(peers)).await
}

pub(crate) async fn client(peers: &[Multiaddr]) -> SwarmHandle {
    let (handle, _) = start(client_config(peers)).await;
    handle.wait_connected(CAP).await.unwrap();
    handle
}

/// A server whose streams send back whatever they get.
pub(crate) async fn echo_server(config: SwarmConfig) -> SwarmHandle {
    let (handle, mut incoming) = start(config).await;
    tokio::spawn(async move {
        while let Some(mut accepted) = incoming.next().await {
            tokio::spawn(async move {
                let mut buffer = vec![0; 64 * 1024];
                while let Ok(length @ 1..) = accepted.stream.read(&mut buffer).await {
                    if accepted.stream.write_all(&buffer[..length]).await.is_err() {
                        break;
                    }
                    let _ = accepted.stream.flush().await;
                }
            });
        }
    });
    handle
}

pub(crate) async fn echo(stream: &mut PeerStream, length: usize) -> std::io::Result<()> {
    let sent: Vec<u8> = (0..length).map(|i| i as u8).collect();
    let mut got = vec![0; length];
    stream.write_all(&sent).await?;
    stream.flush().await?;
    stream.read_exact(&mut got).await?;
    assert!(sent == got, "other bytes came back");
    Ok(())
}

pub(crate) fn model() -> ModelId {
    "demo@0000000000000001".parse().unwrap()
}

pub(crate) fn span(start: u32, end: u32) -> Span {
    Span::new(start, end).unwrap()
}

pub(crate) fn info(span: Span) -> ServerInfo {
    ServerInfo { forward_tokens_per_s: Some(100.0), ..ServerInfo::new(model(), span, ServerState::Online) }
}

/// Looks up `blocks` until `wanted` says that the result is right.
pub(crate) async fn lookup_until(
    handle: &SwarmHandle,
    blocks: Span,
    wanted: impl Fn(&[DirectoryEntry]) -> bool,
) -> Vec<DirectoryEntry> {
    eventually("the expected directory", async || {
        let entries = handle.lookup(&model(), blocks).await.ok()?;
        wanted(&entries).then_some(entries)
    })
    .await
}
