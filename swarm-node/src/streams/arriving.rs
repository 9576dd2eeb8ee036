//! The memory of a request while it arrives.
//!
//! A length costs its sender nothing. What is reserved for one is kept for a moment, long enough for every request of a usual link; from then on it is what
//! has arrived, and some more to go on with. Who sends too slowly to be served is given up.

use std::time::Duration;

use petals_protocol::FrameError;
use tokio::time::Instant;

use super::idle_reader::Gauge;
use crate::machine::budget::Reserved;

/// How long memory is kept for a request of which nothing has arrived.
const GRACE: Duration = Duration::from_secs(2);
/// How often it is looked at from then on.
const TICK: Duration = Duration::from_millis(500);
/// Memory for what comes next, at least; else as much as the time between two looks brought, twice.
const LEAST_AHEAD: u64 = 64 << 10;
/// The slowest sender that is waited for, on the whole, and for how long it may be slower: 64 kbit/s.
const LEAST_BYTES_PER_S: u64 = 8 << 10;
const SLOW_START: Duration = Duration::from_secs(15);
/// Longest wait for memory in the middle of a request.
const LONGEST_STALL: Duration = Duration::from_secs(30);

/// Why a request did not arrive.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotArrived {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("a request arrived too slowly, {arrived} of {total} bytes in {after:.0?}")]
    Slow { arrived: u64, total: u64, after: Duration },
    #[error("there was no memory for the rest of a request that came slowly")]
    NoMemory,
}

/// How a request that is not here at once comes along.
#[derive(Debug)]
struct Pace {
    total: u64,
    /// Bytes at the last look.
    before: u64,
    /// Time that was the sender's, and that was spent waiting for memory since anything arrived.
    sending: Duration,
    stalled: Duration,
}

impl Pace {
    /// What the request is to have of memory from here on, after `since` in which it was allowed no more than `allowed` bytes.
    fn look(&mut self, arrived: u64, allowed: u64, since: Duration) -> Result<u64, NotArrived> {
        if arrived >= allowed {
            self.stalled += since;
        } else {
            self.stalled = Duration::ZERO;
            self.sending += since;
        }
        if self.stalled > LONGEST_STALL {
            return Err(NotArrived::NoMemory);
        }
        let due = self.sending.saturating_sub(SLOW_START).as_secs() * LEAST_BYTES_PER_S;
        if arrived < due {
            return Err(NotArrived::Slow { arrived, total: self.total, after: self.sending });
        }
        let came = arrived.saturating_sub(self.before);
        self.before = arrived;
        Ok(self.total.min(arrived + LEAST_AHEAD.max(2 * came)))
    }
}

/// Reads a request of `total` bytes, for which `memory` was reserved, and gives back what of it is not needed meanwhile.
pub(super) async fn whole<T>(
    read: impl Future<Output = Result<T, FrameError>>,
    gauge: &Gauge,
    mut memory: Reserved,
    total: u64,
) -> Result<(T, Reserved), NotArrived> {
    tokio::pin!(read);
    let mut pace = Pace { total, before: 0, sending: Duration::ZERO, stalled: Duration::ZERO };
    let (mut last, mut wait) = (Instant::now(), GRACE);
    // What is too small to be counted needs no memory to go on.
    let counted = memory.bytes() > 0;
    loop {
        tokio::select! {
            biased;
            read = &mut read => return Ok((read?, memory)),
            () = tokio::time::sleep(wait) => wait = TICK,
        }
        let allowed = if counted { memory.bytes() } else { u64::MAX };
        let wanted = pace.look(gauge.arrived(), allowed, last.elapsed())?;
        last = Instant::now();
        if counted {
            memory.shrink_to(wanted);
            // Without room it goes on when there is some.
            let _ = memory.grow(wanted.saturating_sub(memory.bytes()), 0);
            gauge.allow(memory.bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(total: u64) -> Pace {
        Pace { total, before: 0, sending: Duration::ZERO, stalled: Duration::ZERO }
    }

    #[test]
    fn memory_follows_what_arrives() {
        let mut pace = pace(64 << 20);
        assert_eq!(
            pace.look(1, 64 << 20, GRACE).unwrap(),
            1 + LEAST_AHEAD,
            "a preamble and a byte reserve nothing more"
        );
        assert_eq!(pace.look(1 << 20, 2 << 20, TICK).unwrap(), (3 << 20) - 2, "twice what came");
        assert_eq!(pace.look((64 << 20) - 5, 64 << 20, TICK).unwrap(), 64 << 20);
    }

    #[test]
    fn a_sender_slower_than_any_link_is_given_up() {
        let (mut drip, mut slow) = (pace(1 << 20), pace(1 << 20));
        let dripped = (1..1000).find(|n| drip.look(n / 28, u64::MAX, TICK).is_err()).unwrap();
        assert!((30..40).contains(&dripped), "a byte in 14 s, after {dripped} looks");
        assert!((1..250).all(|n| slow.look(n * LEAST_BYTES_PER_S / 2, u64::MAX, TICK).is_ok()), "64 kbit/s are enough");
    }

    #[test]
    fn a_wait_for_memory_is_not_the_senders_but_does_not_last_for_ever() {
        let mut stalled = pace(1 << 20);
        let looks = (1..1000).find(|_| stalled.look(100, 100, TICK).is_err()).unwrap();
        assert!((55..65).contains(&looks), "{looks}");
        assert_eq!(stalled.sending, Duration::ZERO);
    }
}
