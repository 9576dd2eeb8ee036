//! Slow links, for tests and benchmarks on one machine, without help from the kernel.
//!
//! The topology is that of machines at home: every host has one access [`Link`] to a core that is infinitely fast. What
//! host A sends to host B leaves through the lane *up* of A's link and arrives through the lane *down* of B's, so all
//! connections of a host share its rate, each way, whoever is at the other end. The delay of a connection is the sum of the
//! lanes it passes: with links of 25 ms one way, a round trip between two hosts takes 100 ms.
//!
//! A lane is a queue in front of a wire. Bytes wait until those before them are sent, take `bytes / rate` to be sent, and
//! `delay` to arrive. The queue is bounded: when it is full nothing more is read, which the sender's TCP notices. Nothing is
//! lost and nothing else is added. A [`Relay`](crate::Relay) puts links in front of a node.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, sleep_until};

/// How far ahead of the wire a lane accepts bytes. Long enough that a late timer leaves no gap on the wire, short enough
/// that small messages of other connections hardly wait.
const QUEUE: Duration = Duration::from_millis(10);

/// Rate and delay of a link, the same both ways.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinkConfig {
    /// From one end of the wire to the other, one way.
    pub delay: Duration,
    /// Bits per second, each way.
    pub bits_per_s: f64,
}

/// A host's access to the net: two lanes, independent of each other.
#[derive(Debug)]
pub struct Link {
    /// What the host sends.
    pub up: Arc<Lane>,
    /// What the host receives.
    pub down: Arc<Lane>,
    cut: watch::Sender<bool>,
}

/// One direction of a link, shared by all connections that pass it.
#[derive(Debug)]
pub struct Lane {
    config: LinkConfig,
    /// When the last byte accepted so far will have been sent. Who waits for the lock waits in the order of arrival, so
    /// connections take turns.
    busy_until: Mutex<Instant>,
    bytes: AtomicU64,
    cut: watch::Receiver<bool>,
}

impl LinkConfig {
    /// The access links of hosts between which a round trip takes `round_trip`: each message passes two of them.
    pub fn between_hosts(round_trip: Duration, bits_per_s: f64) -> Self {
        Self { delay: round_trip / 4, bits_per_s }
    }
}

impl Link {
    /// A link that works.
    pub fn new(config: LinkConfig) -> Arc<Self> {
        let (cut, state) = watch::channel(false);
        let lane = || Arc::new(Lane::new(config, state.clone()));
        Arc::new(Self { up: lane(), down: lane(), cut })
    }

    /// Pulls the plug: connections stay open, and nothing arrives in either direction until [`Self::restore`].
    pub fn cut(&self) {
        self.cut.send_replace(true);
    }

    /// Puts the plug back. What was sent meanwhile arrives, late, as after TCP's retransmission.
    pub fn restore(&self) {
        self.cut.send_replace(false);
    }
}

impl Lane {
    fn new(config: LinkConfig, cut: watch::Receiver<bool>) -> Self {
        Self { config, busy_until: Mutex::new(Instant::now()), bytes: AtomicU64::new(0), cut }
    }

    /// Bytes that have passed.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Time from one end to the other, one way.
    pub(crate) fn delay(&self) -> Duration {
        self.config.delay
    }

    /// Bytes that are between a full queue and the other end, and some more for timers that fire late.
    pub(crate) fn capacity(&self) -> usize {
        let time = self.config.delay + 3 * QUEUE;
        (time.as_secs_f64() * self.config.bits_per_s / 8.0) as usize
    }

    /// The largest piece that is sent at once: what the wire sends in a millisecond, so that a byte hardly waits for those
    /// behind it, and at least a packet.
    pub(crate) fn piece(&self) -> usize {
        ((self.config.bits_per_s / 8000.0) as usize).clamp(1500, 16 << 10)
    }

    /// Sends `bytes` bytes that came to this lane at `offered`. Returns when they arrive at the other end, as soon as the
    /// queue has room for others.
    pub(crate) async fn send(&self, offered: Instant, bytes: usize) -> Instant {
        let mut busy_until = self.busy_until.lock().await;
        let offered = offered.max(self.connected(offered).await);
        let sent = offered.max(*busy_until) + Duration::from_secs_f64(8.0 * bytes as f64 / self.config.bits_per_s);
        *busy_until = sent;
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        sleep_until(sent - QUEUE).await;
        sent + self.config.delay
    }

    /// Waits while the link is cut; returns when that ended, or `now` if it was not.
    pub(crate) async fn connected(&self, now: Instant) -> Instant {
        if !*self.cut.borrow() {
            return now;
        }
        // An error means that the link itself is gone; then its connections go with their relays.
        let _ = self.cut.clone().wait_for(|cut| !cut).await;
        Instant::now()
    }
}
