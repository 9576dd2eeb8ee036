//! Reading ahead.

/// Asks for one of `shares` parts of some values, which is in the second-level cache a little later: tiles multiply faster than values come by themselves.
pub(super) fn fetch(values: &[u16], share: usize, shares: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        /// Values of a cache line.
        const LINE: usize = 32;
        let lines = values.len().div_ceil(LINE).div_ceil(shares);
        for line in values.chunks(LINE).skip(share * lines).take(lines) {
            // SAFETY: a hint, which reads nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (values, share, shares);
}
