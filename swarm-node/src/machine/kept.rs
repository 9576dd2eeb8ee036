//! Memory that was freed and that the allocator keeps for what comes next.
//!
//! That is what makes passes fast, and stays after the last of them: glibc gives back what is at the end of its heaps, and one small allocation behind
//! a hundred megabytes keeps those. So whatever made a node take memory once, for example somebody who asked for all of it, would seem to hold it for
//! ever.

use std::time::{Duration, Instant};

use super::memory::resident;

/// Nothing was computed for so long when memory is given back: whoever computes step after step has no such pauses, and finds memory where it left it.
pub(crate) const QUIET: Duration = Duration::from_secs(2);
/// Time between two attempts. One takes some milliseconds for each hundred megabytes.
const PAUSE: Duration = Duration::from_secs(10);
/// What a node must have taken since the last attempt for another to be worth it.
const WORTH: u64 = 16 << 20;

/// When memory was given back, and what was left.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// Resident memory in bytes after the last attempt, or the least that was seen since.
    least: u64,
    not_before: Option<Instant>,
}

impl Kept {
    /// Gives back what the allocator keeps, if it may be much. To be called when nothing is computed: what is given back costs page faults when it is
    /// taken again.
    pub(crate) fn give_back(&mut self, now: Instant) {
        let Some(before) = resident() else { return };
        if !self.is_due(before, now) {
            return;
        }
        trim();
        self.least = resident().unwrap_or(before);
        tracing::debug!(before, after = self.least, took = ?now.elapsed(), "gave back memory that nothing needs");
    }

    fn is_due(&mut self, resident: u64, now: Instant) -> bool {
        self.least = self.least.min(resident);
        if resident < self.least + WORTH || self.not_before.is_some_and(|before| now < before) {
            return false;
        }
        self.not_before = Some(now + PAUSE);
        true
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
        let (mut kept, now) = (Kept::default(), Instant::now());
        assert!(kept.is_due(100 << 20, now), "what was left when it started");
        kept.least = 90 << 20;
        assert!(!kept.is_due(200 << 20, now + PAUSE / 2), "too early");
        assert!(!kept.is_due(100 << 20, now + PAUSE), "not worth it");
        assert!(kept.is_due(106 << 20, now + PAUSE));
        kept.least = 200 << 20;
        assert!(!kept.is_due(80 << 20, now + 3 * PAUSE), "it gave back by itself");
        assert!(kept.is_due(96 << 20, now + 3 * PAUSE), "more than the least");
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
