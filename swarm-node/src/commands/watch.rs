//! What a running node finds out about itself from others: that nobody reaches it where it says it is, that its clock is wrong, that
//! somebody else has its identity. It goes on as well as it can, but a person is told.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::anyhow;
use petals_protocol::ModelId;
use petals_swarm::{Namesake, SwarmHandle};
use tokio::time::{Instant, sleep};

use super::events::NodeEvent;
use crate::error::NodeError;

/// Time between looks at what peers found.
const LOOK: Duration = Duration::from_secs(2);
/// Time between questions for others of the same identity. Not the period of announcements, or this node's own record would always be
/// the last that was written.
const NAMESAKE_PERIOD: Duration = Duration::from_secs(41);
/// Time between questions for the time.
const CLOCK_PERIOD: Duration = Duration::from_secs(300);
/// The first time that it is asked for: a little after the start, when there is somebody to ask.
const FIRST_CLOCK: Duration = Duration::from_secs(1);

/// How often what is looked at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Periods {
    /// What peers found.
    look: Duration,
    /// Others of the same identity.
    namesake: Duration,
    /// The time.
    clock: Duration,
}

impl Default for Periods {
    fn default() -> Self {
        Self { look: LOOK, namesake: NAMESAKE_PERIOD, clock: CLOCK_PERIOD }
    }
}

/// Refuses to start if another node has this one's identity.
pub(super) async fn refuse_namesake(swarm: &SwarmHandle, model: &ModelId) -> Result<(), NodeError> {
    match swarm.namesake(model).await {
        Some(other) if swarm.is_there(&other).await => Err(in_use(&other)),
        _ => Ok(()),
    }
}

/// Tells what others find, for ever; ends only if another node that came before this one has its identity. `model`: what is served.
pub(super) async fn watch(swarm: &SwarmHandle, model: Option<&ModelId>, json: bool, periods: Periods) -> NodeError {
    let (mut told, mut written) = (HashSet::new(), None);
    let (mut clock, mut namesake) = (Instant::now() + FIRST_CLOCK, Instant::now() + periods.namesake);
    loop {
        sleep(periods.look.min(clock.saturating_duration_since(Instant::now()))).await;
        for (address, reached) in swarm.announced() {
            let address = address.to_string();
            if reached == Some(false) && told.insert(address.clone()) {
                NodeEvent::AnnouncedUnreachable { address }.emit(json);
            }
        }
        if clock <= Instant::now() {
            tell_clock(swarm, json).await;
            clock = Instant::now() + periods.clock;
        }
        if namesake <= Instant::now()
            && let Some(model) = model
        {
            if let Some(other) = swarm.namesake(model).await {
                // A node that ended long ago does not write any more.
                let writes =
                    written.replace(other.entry.info.written_ms).is_some_and(|w| w != other.entry.info.written_ms);
                if writes || swarm.is_there(&other).await {
                    if other.came_first {
                        return in_use(&other);
                    }
                    tracing::warn!("another node has started under the identity of this one, and should stop");
                }
            }
            namesake = Instant::now() + periods.namesake;
        }
    }
}

async fn tell_clock(swarm: &SwarmHandle, json: bool) {
    if let Some(offset) = swarm.clock_offset().await.filter(|offset| offset.is_too_large()) {
        let ahead_s = offset.ahead_ms as f64 / 1000.0;
        NodeEvent::ClockOff { ahead_s, witnesses: offset.witnesses }.emit(json);
    }
}

fn in_use(other: &Namesake) -> NodeError {
    let addresses: Vec<String> = other.entry.addresses.iter().map(ToString::to_string).collect();
    NodeError::input(anyhow!(
        "the identity {} is in use by another node, which serves blocks {} at {}: two nodes under one identity overwrite each other's \
         announcements; stop the other one, or give this one an --identity of its own",
        other.entry.peer,
        other.entry.info.span,
        if addresses.is_empty() { "an unknown address".to_owned() } else { addresses.join(" ") }
    ))
}

#[cfg(test)]
mod tests;
