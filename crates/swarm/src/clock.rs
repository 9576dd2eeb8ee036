//! What time it is elsewhere. Records whose time is off are refused, so a server whose clock is wrong is invisible, and cannot tell
//! by itself why.
//!
//! Every member of the hash table answers the question for one certain key with its own time, in milliseconds since 1970. Who
//! asks takes the median of several answers: one liar does not matter, and whatever comes out is only told to a person.

use std::time::Duration;

use libp2p::PeerId;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use crate::node::{DirectoryQuery, SwarmHandle};
use crate::record::{MAX_CLOCK_SKEW, read_time, unix_ms};

/// Members whose time is asked for.
const WITNESSES: usize = 5;
/// How long the others are waited for once one has answered.
const SETTLE: Duration = Duration::from_secs(1);

/// How far a clock is from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockOffset {
    /// Milliseconds by which it is ahead; negative if it is behind.
    pub ahead_ms: i64,
    /// Those that it was compared with.
    pub witnesses: usize,
}

impl ClockOffset {
    /// Whether others refuse the records of a server with this clock, or it those of others.
    pub fn is_too_large(&self) -> bool {
        u128::from(self.ahead_ms.unsigned_abs()) > MAX_CLOCK_SKEW.as_millis()
    }
}

impl std::fmt::Display for ClockOffset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.ahead_ms.unsigned_abs().div_ceil(1000);
        write!(f, "{seconds} s {}", if self.ahead_ms < 0 { "behind" } else { "ahead" })
    }
}

/// A server whose record is refused because of its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WrongClock {
    /// The server.
    pub peer: PeerId,
    /// How far its clock is from this one's, as far as its record shows.
    pub offset: ClockOffset,
}

impl SwarmHandle {
    /// How far this machine's clock is from those of other members of the swarm; `None` if none of them says, or the node is shutting
    /// down.
    pub async fn clock_offset(&self) -> Option<ClockOffset> {
        let (found, mut answers) = mpsc::channel(4 * WITNESSES);
        if !self.query(DirectoryQuery::Clock { found }).await {
            return None;
        }
        let mut until = Instant::now() + self.lookup_timeout();
        let mut ahead = Vec::new();
        while ahead.len() < WITNESSES
            && let Ok(Some(Some(answer))) = timeout_at(until, answers.recv()).await
        {
            if let Some(theirs) = read_time(&answer) {
                ahead.push((unix_ms() as i64).saturating_sub_unsigned(theirs));
                until = until.min(Instant::now() + SETTLE);
            }
        }
        median(ahead)
    }
}

fn median(mut ahead: Vec<i64>) -> Option<ClockOffset> {
    ahead.sort_unstable();
    let ahead_ms = *ahead.get(ahead.len() / 2)?;
    Some(ClockOffset { ahead_ms, witnesses: ahead.len() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_liar_does_not_matter() {
        let offset = median(vec![-5, i64::MIN, 20]).unwrap();
        assert_eq!((offset.ahead_ms, offset.is_too_large()), (-5, false));
        assert_eq!(median(Vec::new()), None);
        let late = ClockOffset { ahead_ms: -180_000, witnesses: 1 };
        assert!(late.is_too_large() && late.to_string() == "180 s behind");
        assert!(ClockOffset { ahead_ms: i64::MIN, witnesses: 1 }.is_too_large());
    }
}
