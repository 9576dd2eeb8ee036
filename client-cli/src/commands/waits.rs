//! Waits, each of which is told once and then now and then, however many attempts are made meanwhile.

use std::time::{Duration, Instant};

/// Time between two words about the same wait.
const PERIOD: Duration = Duration::from_secs(10);
/// Time until a wait for something else is told: what is missing changes from one attempt to the next while servers come and go.
const SETTLED: Duration = Duration::from_secs(2);

/// What was said of waits so far.
#[derive(Debug, Default)]
pub(super) struct Waits {
    last: Option<(Instant, String)>,
}

impl Waits {
    /// Whether people want to hear of a wait now; if so, it counts as told.
    pub(super) fn is_worth_telling(&mut self, reason: &str, now: Instant) -> bool {
        let told = self.last.as_ref().is_some_and(|(at, said)| {
            let since = now.saturating_duration_since(*at);
            since < if said == reason { PERIOD } else { SETTLED }
        });
        if !told {
            self.last = Some((now, reason.to_owned()));
        }
        !told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_told_at_once_and_then_every_ten_seconds() {
        let (mut waits, start) = (Waits::default(), Instant::now());
        let mut told = Vec::new();
        for tenth in 0..250_u64 {
            if waits.is_worth_telling("blocks 0..4", start + Duration::from_millis(100 * tenth)) {
                told.push(tenth);
            }
        }
        assert_eq!(told, [0, 100, 200]);
        let at = |tenth: u64| start + Duration::from_millis(100 * tenth);
        assert!(!waits.is_worth_telling("blocks 2..4", at(210)));
        assert!(waits.is_worth_telling("blocks 2..4", at(220)), "something else is missing");
    }
}
