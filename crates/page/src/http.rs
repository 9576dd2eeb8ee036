//! Connections, with bounds.

use std::collections::HashMap;
use std::net::IpAddr;
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
use tokio::sync::Semaphore;

/// Connections of a page at a time. Each takes a file descriptor from a program that has better use for them.
pub const FEW: usize = 64;
/// Longest time that the head of a request may take to arrive, and that a connection may do nothing.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of the head of a request.
const HEAD_BYTES: usize = 64 << 10;
/// Pause after the system refused a connection, for example for lack of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// An address has at most so many times the connections that are left free then: alone three quarters of them, as a proxy needs.
const TIMES_FREE: usize = 3;

/// Connections by address.
#[derive(Debug)]
struct Connections {
    most: usize,
    open: Mutex<(usize, HashMap<Origin, usize>)>,
}

/// One connection, until it is dropped.
#[derive(Debug)]
struct Open {
    connections: Arc<Connections>,
    origin: Origin,
}

impl Connections {
    fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, open: Mutex::default() })
    }

    /// One more of an address, unless it has enough: who holds them all without asking for anything leaves some to others.
    fn open(self: &Arc<Self>, ip: IpAddr) -> Option<Open> {
        let origin = Origin::of_ip(ip);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, of_origins) = &mut *open;
        let of_origin = of_origins.entry(origin).or_default();
        let left = self.most.saturating_sub(*all + 1);
        if *of_origin > 0 && *of_origin >= TIMES_FREE * left {
            return None;
        }
        *of_origin += 1;
        *all += 1;
        Some(Open { connections: self.clone(), origin })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut open = self.connections.open.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, of_origins) = &mut *open;
        *all = all.saturating_sub(1);
        if let Some(of_origin) = of_origins.get_mut(&self.origin) {
            *of_origin = of_origin.saturating_sub(1);
            if *of_origin == 0 {
                of_origins.remove(&self.origin);
            }
        }
    }
}

/// Serves at most `most` connections at a time, further ones wait to be accepted, until `stop`; requests have the [`Origin`] that they come from among
/// their extensions; what is under way then has `grace` to end.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    most: usize,
    stop: impl Future<Output = ()>,
    grace: Duration,
) {
    let (places, connections) = (Arc::new(Semaphore::new(most)), Connections::new(most));
    let graceful = GracefulShutdown::new();
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_BYTES);
    tokio::pin!(stop);
    loop {
        let accepted = async {
            let place = places.clone().acquire_owned().await.ok()?;
            match listener.accept().await {
                Ok((stream, from)) => connections.open(from.ip()).map(|open| (stream, (place, open))),
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
        let (service, origin) = (TowerToHyperService::new(router.clone()), place.1.origin);
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(origin);
            service.call(request)
        });
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_leaves_connections_to_others() {
        let connections = Connections::new(64);
        let open = |ip: &str| connections.open(ip.parse().unwrap());
        let held: Vec<Open> = std::iter::from_fn(|| open("10.0.0.1")).collect();
        assert_eq!(held.len(), 48);
        let net: Vec<Open> = (0..64).filter_map(|n| open(&format!("2001:db8::{n:x}"))).collect();
        assert_eq!(net.len(), 12, "a net of IPv6 is one address");
        assert!(open("10.0.0.2").is_some(), "there is some left for the next");
        drop((held, net));
        let (all, of_origins) = &*connections.open.lock().unwrap();
        assert_eq!((*all, of_origins.len()), (0, 0));
    }
}
