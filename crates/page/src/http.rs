//! Connections, with bounds.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use petals_swarm::Origin;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};

use super::portions::Portions;

/// Connections of a page at a time. Each takes a file descriptor from a program that has better use for them.
pub const FEW: usize = 64;
/// Longest time that the head of a request may take to arrive, and that a connection may do nothing.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of the head of a request.
const HEAD_BYTES: usize = 64 << 10;
/// Pause after the system refused a connection, for example for lack of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Longest time until the head of a connection's first request is there.
const FIRST_HEAD: Duration = Duration::from_secs(15);
/// Of all connections one in so many may wait for its first head: who sends heads slowly keeps nobody from connecting.
const HEADS: usize = 4;

/// Serves at most `most` connections at a time, further ones wait to be accepted, until `stop`; requests have the [`Origin`] that they come from among
/// their extensions; what is under way then has `grace` to end.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    most: usize,
    stop: impl Future<Output = ()>,
    grace: Duration,
) {
    serve_within(listener, router, most, FIRST_HEAD, (stop, grace)).await;
}

/// As [`serve`]; the first request of a connection must begin within `first_head`.
async fn serve_within(
    listener: TcpListener,
    router: Router,
    most: usize,
    first_head: Duration,
    (stop, grace): (impl Future<Output = ()>, Duration),
) {
    let (places, connections) = (Arc::new(Semaphore::new(most)), Portions::new(most));
    let heads = Portions::new((most / HEADS).max(1));
    let graceful = GracefulShutdown::new();
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_BYTES);
    tokio::pin!(stop);
    loop {
        let accepted = async {
            let place = places.clone().acquire_owned().await.ok()?;
            match listener.accept().await {
                Ok((stream, from)) => {
                    let origin = Origin::of_ip(from.ip());
                    let (open, head) = (connections.take(origin, 1)?, heads.take(origin, 1)?);
                    Some((stream, origin, head, (place, open)))
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(PAUSE).await;
                    None
                }
            }
        };
        let (stream, origin, head, place) = tokio::select! {
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
        let (waiting, begun) = (Arc::new(Mutex::new(Some(head))), Arc::new(Notify::new()));
        let (head, first) = (waiting.clone(), begun.clone());
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            // A head is there.
            if head.lock().unwrap_or_else(PoisonError::into_inner).take().is_some() {
                first.notify_one();
            }
            request.extensions_mut().insert(origin);
            service.call(request)
        });
        let connection = graceful.watch(builder.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            let mut connection = std::pin::pin!(connection);
            let ended = tokio::select! {
                ended = &mut connection => Some(ended),
                () = begun.notified() => None,
                () = tokio::time::sleep(first_head) => Some(Ok(())),
            };
            let ended = match ended {
                Some(ended) => ended,
                None => connection.await,
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection ended");
            }
            drop((waiting, place));
        });
    }
    drop(listener);
    if tokio::time::timeout(grace, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests under way were cut off");
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    /// Longest time until a first head is there, in these tests.
    const SOON: Duration = Duration::from_millis(700);

    async fn served(most: usize) -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/", get(|| async { "here" }));
        tokio::spawn(serve_within(listener, router, most, SOON, (std::future::pending(), Duration::ZERO)));
        address
    }

    /// What is answered to a request, whose head comes at once; nothing if the connection is closed.
    async fn ask(address: std::net::SocketAddr) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await;
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        answer
    }

    #[tokio::test]
    async fn heads_that_never_come_take_a_part_of_the_places_and_not_for_long() {
        let address = served(64).await;
        let mut slow = Vec::new();
        for _ in 0..64 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: loc").await;
            slow.push(stream);
        }
        // Which of them are left: one whose connection was closed at once can be read to its end.
        let mut open = 0;
        for stream in &mut slow {
            let mut byte = [0; 1];
            let read = tokio::time::timeout(Duration::from_millis(30), stream.read(&mut byte)).await;
            open += usize::from(read.is_err());
        }
        assert_eq!(open, 64 / HEADS * 3 / 4, "three quarters of what waits for heads");
        // A head that comes frees its place, so one after the other is served as soon as there is one.
        drop(slow);
        tokio::time::sleep(Duration::from_millis(100)).await;
        for _ in 0..40 {
            assert!(ask(address).await.ends_with("here"));
        }
    }

    #[tokio::test]
    async fn a_connection_without_a_request_ends_and_one_that_had_one_stays() {
        let address = served(64).await;
        let (mut silent, mut kept) =
            (TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap());
        kept.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let mut all = Vec::new();
        let ended = tokio::time::timeout(10 * SOON, silent.read_to_end(&mut all)).await;
        assert!(ended.is_ok(), "it stays");
        let mut all = Vec::new();
        let ended = tokio::time::timeout(2 * SOON, kept.read_to_end(&mut all)).await;
        assert!(ended.is_err(), "it is closed");
    }
}
