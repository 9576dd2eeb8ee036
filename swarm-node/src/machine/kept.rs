//! Memory that was freed and that the allocator keeps for what comes next.
//!
//! That is what makes passes fast, and stays after the last of them: glibc gives back what is at the end of its heaps, and one small allocation behind
//! a hundred megabytes keeps those. So whatever made a node take memory once, for example somebody who asked for all of it, would seem to hold it for
//! ever.
//!
//! One thing stays: what is free at the very end of the heaps of other threads than the first, which glibc cuts off only where it is more than its threshold,
//! 64 MiB since `petals_model::engine::host` has it keep memory for passes. It is what the next passes take first.

use std::time::{Duration, Instant};

use super::memory::resident;

/// Nothing was computed for so long when memory is given back: whoever computes step after step has no such pauses, and finds memory where it left it.
pub(crate) const QUIET: Duration = Duration::from_secs(2);
/// Time between two attempts, which take some milliseconds for each hundred megabytes; twice as long after each that was in vain, up to the longest.
const PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(320);
/// What a node must have beyond the least that it ever had for an attempt to be worth it.
const WORTH: u64 = 16 << 20;
/// What an attempt gives back that was not in vain.
const GAIN: u64 = 1 << 20;

/// When memory was given back, and what was left. In bytes of resident memory.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    last: Option<Attempt>,
}

#[derive(Debug)]
struct Attempt {
    at: Instant,
    /// What was left.
    left: u64,
    /// The least that was ever left.
    least: u64,
    /// Time until the next attempt.
    pause: Duration,
}

impl Kept {
    /// Gives back what the allocator keeps, if it may be much. To be called when nothing is computed: what is given back costs page faults when it is
    /// taken again.
    pub(crate) fn give_back(&mut self, now: Instant) {
        let Some(before) = resident().filter(|resident| self.is_due(*resident, now)) else { return };
        trim();
        let left = resident().unwrap_or(before);
        tracing::debug!(before, left, took = ?now.elapsed(), "gave back memory that nothing needs");
        self.attempted(before, left, now);
    }

    fn is_due(&mut self, resident: u64, now: Instant) -> bool {
        let Some(last) = &mut self.last else { return true };
        if resident >= last.left + WORTH {
            last.pause = PAUSE;
        }
        resident >= last.least + WORTH && now >= last.at + last.pause
    }

    fn attempted(&mut self, before: u64, left: u64, now: Instant) {
        let (least, pause) = self.last.as_ref().map_or((left, PAUSE), |last| (last.least.min(left), last.pause));
        let pause = if before >= left + GAIN { PAUSE } else { (2 * pause).min(LONGEST_PAUSE) };
        self.last = Some(Attempt { at: now, left, least, pause });
    }
}

/// Gives back, now and then, as long as this is polled: for nodes that compute nothing.
pub(crate) async fn keep_giving_back() -> std::convert::Infallible {
    let mut kept = Kept::default();
    loop {
        tokio::time::sleep(PAUSE).await;
        let given = tokio::task::spawn_blocking(move || {
            kept.give_back(Instant::now());
            kept
        });
        kept = given.await.unwrap_or_default();
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)]
fn trim() {
    unsafe extern "C" {
        fn malloc_trim(pad: usize) -> std::ffi::c_int;
    }
    // SAFETY: any thread may call it at any time (man 3 malloc_trim); it touches free memory only.
    unsafe { malloc_trim(0) };
}

/// Other allocators give memory back by themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn trim() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_when_there_is_much_and_not_too_often() {
        let (mut kept, start) = (Kept::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        assert!(kept.is_due(100 << 20, start), "what was left when it started");
        kept.attempted(100 << 20, 90 << 20, start);
        assert!(!kept.is_due(200 << 20, after(5)), "too early");
        assert!(!kept.is_due(105 << 20, after(10)), "not worth it");
        assert!(kept.is_due(106 << 20, after(10)));
        // Others need it: then it is tried less and less often, until there is more of it.
        kept.attempted(106 << 20, 106 << 20, after(10));
        assert!(!kept.is_due(106 << 20, after(25)) && kept.is_due(106 << 20, after(30)));
        kept.attempted(106 << 20, 106 << 20, after(30));
        assert!(!kept.is_due(106 << 20, after(65)) && kept.is_due(106 << 20, after(70)));
        assert!(kept.is_due(122 << 20, after(40)));
        kept.attempted(122 << 20, 80 << 20, after(40));
        assert!(!kept.is_due(95 << 20, after(60)) && kept.is_due(96 << 20, after(60)), "more than the least");
    }

    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[test]
    fn what_a_small_allocation_keeps_is_given_back() {
        const MIB: usize = 1 << 20;
        // Below what malloc takes from the system on its own.
        let mut blocks: Vec<Vec<u8>> = (0..4096).map(|_| vec![1; 64 << 10]).collect();
        let last = blocks.pop();
        drop(blocks);
        let held = resident().unwrap();
        Kept::default().give_back(Instant::now());
        let left = resident().unwrap();
        // Other tests take memory meanwhile.
        assert!(left + (128 * MIB) as u64 <= held, "{} MiB of {} MiB", left >> 20, held >> 20);
        assert_eq!(last.map(|block| block.len()), Some(64 << 10));
    }
}
