//! Keeps what the directory says of this node's speed, queue and surroundings up to date, without flooding it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use petals_protocol::{MAX_NEXT_PINGS, ServerInfo, ServerState, Span};
use petals_swarm::{DirectoryEntry, SwarmHandle};
use tokio_util::sync::CancellationToken;

use super::hosted::Hosted;
use crate::executor::ExecutorHandle;
use crate::machine::speed::Speed;

/// Time between looks at the figures.
const TICK: Duration = Duration::from_secs(5);
/// Changed figures alone are published at most so often. Each announcement is a message to some twenty nodes.
const LEAST_GAP: Duration = Duration::from_secs(20);
/// Rates and round trips are the same within this factor.
const SAME: f32 = 1.25;
/// Queues that differ by less are the same.
const SAME_QUEUE: u32 = 4;
/// Time between looks for likely next hops; a look is one lookup of one block.
const LOOK: Duration = Duration::from_secs(90);
/// After the start, or a move, others are looked for this soon.
const FIRST_LOOK: Duration = Duration::from_secs(3);
/// Longest wait for a connection to be pinged, and for the ping.
const CONNECT: Duration = Duration::from_secs(3);
const PONG: Duration = Duration::from_secs(2);

/// The task that does so.
#[derive(Debug)]
pub(crate) struct Figures {
    pub(crate) swarm: SwarmHandle,
    pub(crate) hosted: Arc<Hosted>,
    pub(crate) executor: ExecutorHandle,
    pub(crate) speed: Arc<Speed>,
}

impl Figures {
    pub(crate) async fn run(self, cancel: CancellationToken) {
        let work = async { tokio::join!(self.publish(), self.look_ahead()) };
        tokio::select! {
            () = cancel.cancelled() => {}
            _ = work => {}
        }
    }

    async fn publish(&self) {
        let (mut told, mut at) = (self.hosted.info(), Instant::now());
        loop {
            tokio::time::sleep(TICK).await;
            self.hosted.change(|now| {
                put_speed(&mut now.info, &self.speed);
                put_load(&mut now.info, &self.executor);
            });
            let now = self.hosted.info();
            let serving = matches!(now.state, ServerState::Online | ServerState::Joining);
            if !serving || at.elapsed() < LEAST_GAP || !differs(&told, &now) {
                continue;
            }
            match self.hosted.tell(&self.swarm).await {
                Ok(info) => (told, at) = (info, Instant::now()),
                Err(error) => tracing::debug!(%error, "changed figures are not announced"),
            }
        }
    }

    /// Measures round trips to those who serve what comes behind this node's span.
    async fn look_ahead(&self) {
        let mut wait = FIRST_LOOK;
        let mut changes = self.hosted.subscribe();
        loop {
            let end = changes.borrow_and_update().info.span.end();
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = changes.wait_for(|now| now.info.span.end() != end) => {
                    wait = FIRST_LOOK;
                    continue;
                }
            }
            if let Ok(next) = Span::new(end, end.saturating_add(1)) {
                let next_pings = self.pings(next).await;
                self.hosted.change(|now| {
                    if now.info.span.end() == end {
                        now.info.next_pings = next_pings;
                    }
                });
            }
            wait = LOOK;
        }
    }

    async fn pings(&self, next: Span) -> BTreeMap<String, f32> {
        let model = self.hosted.model();
        // Behind the last block is nobody, and the directory says so.
        let mut servers = self.swarm.lookup(&model, next).await.unwrap_or_default();
        servers.retain(|server| server.peer != self.swarm.local_peer() && server.info.state == ServerState::Online);
        // Those that are connected cost nothing.
        servers.sort_by_key(|server| (!self.swarm.is_connected(&server.peer), server.peer));
        servers.truncate(MAX_NEXT_PINGS);
        let one = |server: DirectoryEntry| async move {
            let round_trip = ping(&self.swarm, &server).await?;
            Some((server.peer.to_string(), round_trip.as_secs_f32() * 1e3))
        };
        futures::future::join_all(servers.into_iter().map(one)).await.into_iter().flatten().collect()
    }
}

/// The round trip to a server; pings travel on every connection, so that there must be one is all.
async fn ping(swarm: &SwarmHandle, server: &DirectoryEntry) -> Option<Duration> {
    if !swarm.is_connected(&server.peer) {
        drop(swarm.open_stream(server.peer, &server.addresses, CONNECT).await.ok()?);
    }
    let deadline = Instant::now() + PONG;
    loop {
        match swarm.ping(&server.peer) {
            None if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(50)).await,
            answered => return answered,
        }
    }
}

/// Writes what is known of this node's speed into its description.
pub(crate) fn put_speed(info: &mut ServerInfo, speed: &Speed) {
    let (rates, blocks) = (speed.rates(), info.span.len() as f64);
    info.forward_tokens_per_s = Some((rates.forward / blocks) as f32);
    info.decode_tokens_per_s = Some((rates.decode / blocks) as f32);
    info.network_bytes_per_s = speed.network_bytes_per_s().map(|rate| rate as f32);
}

/// Writes how busy this node is into its description.
pub(crate) fn put_load(info: &mut ServerInfo, executor: &ExecutorHandle) {
    let (cache, stash) = executor.in_use();
    info.queue_depth = executor.depth() as u32;
    info.cache_tokens_left = Some(executor.session_room().0);
    (info.cache, info.stash) = (Some(cache), Some(stash));
    info.served_tokens = Some(executor.totals().tokens.get());
}

/// Whether clients or other servers would decide otherwise, were they told.
fn differs(told: &ServerInfo, now: &ServerInfo) -> bool {
    let rates = |info: &ServerInfo| [info.forward_tokens_per_s, info.decode_tokens_per_s, info.network_bytes_per_s];
    let rate_differs = |(old, new): (Option<f32>, Option<f32>)| match (old, new) {
        (Some(old), Some(new)) => !same(old, new),
        (old, new) => old.is_some() != new.is_some(),
    };
    let ping_differs = || {
        let (old, new) = (&told.next_pings, &now.next_pings);
        // A millisecond more or less is noise on any way.
        let close = |peer: &String, new: &f32| old.get(peer).is_some_and(|old| same(*old + 1.0, *new + 1.0));
        old.len() != new.len() || !new.iter().all(|(peer, new)| close(peer, new))
    };
    // Room for a page more or less changes nothing; half as much or twice as much may.
    let room_differs = || match (told.cache_tokens_left, now.cache_tokens_left) {
        (Some(old), Some(new)) => old.min(new) * 2 < old.max(new),
        (old, new) => old.is_some() != new.is_some(),
    };
    rates(told).into_iter().zip(rates(now)).any(rate_differs)
        || room_differs()
        || told.queue_depth.abs_diff(now.queue_depth) >= SAME_QUEUE
        || ping_differs()
}

fn same(old: f32, new: f32) -> bool {
    old.max(new) <= SAME * old.min(new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use petals_protocol::{Fingerprint, ModelId};

    #[test]
    fn only_what_changes_decisions_is_worth_an_announcement() {
        let model = ModelId::new("m", Fingerprint([0; 8])).unwrap();
        let told = ServerInfo {
            forward_tokens_per_s: Some(100.0),
            next_pings: [("a".to_owned(), 20.0)].into(),
            queue_depth: 2,
            ..ServerInfo::new(model, Span::new(0, 4).unwrap(), ServerState::Online)
        };
        let changed = |change: fn(&mut ServerInfo)| {
            let mut now = told.clone();
            change(&mut now);
            differs(&told, &now)
        };
        assert!(!changed(|_| ()));
        assert!(!changed(|now| now.forward_tokens_per_s = Some(115.0)));
        assert!(changed(|now| now.forward_tokens_per_s = Some(130.0)));
        assert!(changed(|now| now.forward_tokens_per_s = Some(70.0)));
        assert!(changed(|now| now.network_bytes_per_s = Some(1e6)));
        assert!(!changed(|now| now.queue_depth = 5));
        assert!(changed(|now| now.queue_depth = 6));
        assert!(!changed(|now| now.next_pings = [("a".to_owned(), 22.0)].into()));
        assert!(changed(|now| now.next_pings = [("a".to_owned(), 40.0)].into()));
        assert!(changed(|now| now.next_pings = [("b".to_owned(), 20.0)].into()));
    }
}
