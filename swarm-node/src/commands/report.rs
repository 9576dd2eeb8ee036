//! What a server did, in one line now and then.

use std::convert::Infallible;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::events::{NodeEvent, Report};
use crate::machine::memory::resident;
use crate::server::Server;

/// Reports every `period`, for ever; never if it is zero.
pub(super) async fn run(server: &Server, period: Duration, json: bool) -> Infallible {
    if period.is_zero() {
        return std::future::pending().await;
    }
    let mut ticks = interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = (Instant::now(), server.swarm().traffic());
    loop {
        ticks.tick().await;
        let (now, traffic) = (Instant::now(), server.swarm().traffic());
        let (then, last) = std::mem::replace(&mut before, (now, traffic));
        let work = server.take_work();
        NodeEvent::Report(Report {
            seconds: now.saturating_duration_since(then).as_secs_f64(),
            requests: work.requests,
            tokens: work.tokens,
            clients: work.clients,
            queue_depth: server.queue_depth(),
            peers: server.swarm().connected_peers().len(),
            bytes_in: traffic.bytes_in.saturating_sub(last.bytes_in),
            bytes_out: traffic.bytes_out.saturating_sub(last.bytes_out),
            resident_bytes: resident(),
            stash_bytes: server.stash_bytes(),
        })
        .emit(json);
    }
}
