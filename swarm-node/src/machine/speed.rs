//! How fast this node computes and sends, learnt from what it does.

use std::sync::Mutex;
use std::time::Duration;

use super::measure::Rates;
use crate::lock::lock;

/// Rows of a pass from which its time says something of throughput: with fewer, reading the weights is what takes the time.
const LEAST_ROWS: usize = 32;
/// Passes after which their mean counts instead of the measurement at the start.
const FEW_PASSES: u32 = 8;
/// What is left of an earlier pass's weight after each new one.
const MEMORY: f64 = 0.95;
/// Fewer bytes say more of the way's length than of its width.
const LEAST_BYTES: u64 = 64 << 10;
/// A write that took less may have ended in the buffers of this machine.
const LEAST_WRITE: Duration = Duration::from_millis(50);
/// Part of the difference by which a slower transfer takes the estimate down. A faster one counts at once: a link that was
/// seen to carry so much can.
const SLOWER_WEIGHT: f64 = 0.05;

/// Measured at the start, kept current by what is served.
#[derive(Debug)]
pub(crate) struct Speed(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Said instead of what is true.
    fixed: Option<Rates>,
    measured: Rates,
    forward: Mean,
    decode: Mean,
    network_bytes_per_s: Option<f64>,
}

/// A mean of work over time in which later passes weigh more.
#[derive(Debug, Default)]
struct Mean {
    work: f64,
    seconds: f64,
    passes: u32,
}

impl Mean {
    fn add(&mut self, work: f64, seconds: f64) {
        self.work = MEMORY * self.work + work;
        self.seconds = MEMORY * self.seconds + seconds;
        self.passes = self.passes.saturating_add(1);
    }

    fn rate(&self) -> Option<f64> {
        (self.passes >= FEW_PASSES && self.seconds > 0.0).then(|| self.work / self.seconds)
    }
}

impl State {
    fn forward_rate(&self) -> f64 {
        self.forward.rate().unwrap_or(self.measured.forward)
    }
}

impl Speed {
    pub(crate) fn new(measured: Rates) -> Self {
        let (forward, decode) = (Mean::default(), Mean::default());
        Self(Mutex::new(State { fixed: None, measured, forward, decode, network_bytes_per_s: None }))
    }

    /// A forward of `rows` rows through `blocks` blocks.
    pub(crate) fn ran(&self, rows: usize, blocks: usize, elapsed: Duration) {
        let mut state = lock(&self.0);
        let (work, seconds) = ((rows * blocks) as f64, elapsed.as_secs_f64());
        match rows {
            1 => state.decode.add(work, seconds),
            LEAST_ROWS.. => state.forward.add(work, seconds),
            _ => {}
        }
    }

    /// Rows that another server acknowledged after `elapsed`.
    pub(crate) fn handed_over(&self, bytes: u64, elapsed: Duration) {
        if bytes < LEAST_BYTES || elapsed.is_zero() {
            return;
        }
        let seen = bytes as f64 / elapsed.as_secs_f64();
        let mut state = lock(&self.0);
        let mixed = |old: f64| if seen > old { seen } else { old + SLOWER_WEIGHT * (seen - old) };
        state.network_bytes_per_s = Some(state.network_bytes_per_s.map_or(seen, mixed));
    }

    /// A reply that a stream took within `elapsed`.
    pub(crate) fn replied(&self, bytes: u64, elapsed: Duration) {
        if elapsed >= LEAST_WRITE {
            self.handed_over(bytes, elapsed);
        }
    }

    /// Tells others these rates from now on, whatever is measured.
    pub(crate) fn fix(&self, rates: Rates) {
        lock(&self.0).fixed = Some(rates);
    }

    /// Rows times blocks per second of forwards, and blocks per second of one row.
    pub(crate) fn rates(&self) -> Rates {
        let state = lock(&self.0);
        if let Some(fixed) = state.fixed {
            return fixed;
        }
        Rates { forward: state.forward_rate(), decode: state.decode.rate().unwrap_or(state.measured.decode) }
    }

    /// Rows times blocks per second of forwards, whatever others are told.
    pub(crate) fn forward_rate(&self) -> f64 {
        lock(&self.0).forward_rate()
    }

    /// Bytes per second that the link was seen to carry, if anything was.
    pub(crate) fn network_bytes_per_s(&self) -> Option<f64> {
        lock(&self.0).network_bytes_per_s
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn served_passes_count_when_there_were_a_few() {
        let speed = Speed::new(Rates { forward: 100.0, decode: 10.0 });
        for pass in 0..FEW_PASSES {
            assert_eq!(speed.rates().forward, 100.0, "after {pass} passes");
            speed.ran(50, 4, SECOND);
        }
        assert!((speed.rates().forward - 200.0).abs() < 1e-6);
        assert_eq!(speed.rates().decode, 10.0, "that is another kind of work");
        for _ in 0..100 {
            speed.ran(1, 4, SECOND);
            speed.ran(50, 8, SECOND);
            speed.ran(2, 1, SECOND);
        }
        let Rates { forward, decode } = speed.rates();
        assert!((decode - 4.0).abs() < 1e-6 && (forward - 400.0).abs() < 5.0, "{forward}, {decode}");
    }

    #[test]
    fn the_link_is_as_wide_as_it_was_seen_to_be() {
        let speed = Speed::new(Rates { forward: 1.0, decode: 1.0 });
        speed.handed_over(100, SECOND);
        speed.replied(1 << 20, Duration::from_millis(1));
        assert_eq!(speed.network_bytes_per_s(), None, "too little, and too soon");
        speed.handed_over(1 << 20, SECOND);
        speed.replied(1 << 21, SECOND);
        assert_eq!(speed.network_bytes_per_s(), Some(f64::from(1 << 21)));
        speed.handed_over(1 << 20, SECOND);
        let after = speed.network_bytes_per_s().unwrap();
        assert!(after < f64::from(1 << 21) && after > 0.9 * f64::from(1 << 21), "{after}");
    }
}
