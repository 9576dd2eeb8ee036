//! Connections, with bounds.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Connections of a page at a time. Each takes a file descriptor from a program that has better use for them.
pub const FEW: usize = 64;
/// Longest time that the head of a request may take to arrive, and that a connection may do nothing.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of the head of a request.
const HEAD_BYTES: usize = 64 << 10;
/// Pause after the system refused a connection, for example for lack of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves at most `most` connections at a time, further ones wait to be accepted, until `stop`; what is under way then has `grace` to end.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    most: usize,
    stop: impl Future<Output = ()>,
    grace: Duration,
) {
    let places = Arc::new(Semaphore::new(most));
    let graceful = GracefulShutdown::new();
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_BYTES);
    tokio::pin!(stop);
    loop {
        let accepted = async {
            let place = places.clone().acquire_owned().await.ok()?;
            match listener.accept().await {
                Ok((stream, _)) => Some((stream, place)),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(PAUSE).await;
                    None
                }
            }
        };
        let (stream, place) = tokio::select! {
            biased;
            () = &mut stop => break,
            accepted = accepted => match accepted {
                Some(accepted) => accepted,
                None => continue,
            },
        };
        // Tokens are small packets that should not wait for each other.
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone());
        let connection = graceful.watch(builder.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended");
            }
            drop(place);
        });
    }
    drop(listener);
    if tokio::time::timeout(grace, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests under way were cut off");
    }
}
