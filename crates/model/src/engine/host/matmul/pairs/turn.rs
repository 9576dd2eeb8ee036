//! Turning a tile of pairs.

use crate::engine::host::matmul::PANEL;

/// A tile of 16 x 16 values, as pairs: `[8][PANEL][2]`.
pub(in super::super) type Tile = [u16; PANEL * PANEL];

/// From pairs along `k` of a tile `(k, n)` to pairs along `n`: value `(k, n)` moves from `[k / 2][n][k % 2]` to
/// `[n / 2][k][n % 2]`.
#[inline]
pub(super) fn turn(from: &Tile, to: &mut Tile) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        #[allow(unsafe_code)]
        // SAFETY: the processor has AVX2.
        return unsafe { turn_avx2(from, to) };
    }
    turn_plain(from, to);
}

fn turn_plain(from: &Tile, to: &mut Tile) {
    for n in 0..PANEL {
        for k in 0..PANEL {
            to[n / 2 * 2 * PANEL + 2 * k + n % 2] = from[k / 2 * 2 * PANEL + 2 * n + k % 2];
        }
    }
}

/// Turns the pairs as 32-bit values first, in two squares of eight by eight; then exchanges halves of neighbouring rows.
///
/// # Safety
/// The processor has AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
#[allow(unsafe_code)]
unsafe fn turn_avx2(from: &Tile, to: &mut Tile) {
    use std::arch::x86_64::*;
    let low_half = _mm256_set1_epi32(0xffff);
    for n in [0, 8] {
        // SAFETY: eight rows of 2·PANEL values, read from column pairs n..n+8; writes are within `to`, as computed below.
        unsafe {
            let mut r = [_mm256_setzero_si256(); 8];
            for (row, values) in r.iter_mut().zip(from.chunks_exact(2 * PANEL)) {
                *row = _mm256_loadu_si256(values[2 * n..].as_ptr().cast());
            }
            let low = |i: usize| _mm256_unpacklo_epi32(r[i], r[i + 1]);
            let high = |i: usize| _mm256_unpackhi_epi32(r[i], r[i + 1]);
            let (t0, t1, t2, t3) = (low(0), high(0), low(2), high(2));
            let (t4, t5, t6, t7) = (low(4), high(4), low(6), high(6));
            // Row `c` of the turned square, and row `c + 4`, in two halves each.
            let halves = [
                [_mm256_unpacklo_epi64(t0, t2), _mm256_unpacklo_epi64(t4, t6)],
                [_mm256_unpackhi_epi64(t0, t2), _mm256_unpackhi_epi64(t4, t6)],
                [_mm256_unpacklo_epi64(t1, t3), _mm256_unpacklo_epi64(t5, t7)],
                [_mm256_unpackhi_epi64(t1, t3), _mm256_unpackhi_epi64(t5, t7)],
            ];
            let mut columns = [_mm256_setzero_si256(); 8];
            for (i, [a, b]) in halves.into_iter().enumerate() {
                columns[i] = _mm256_permute2x128_si256::<0x20>(a, b);
                columns[i + 4] = _mm256_permute2x128_si256::<0x31>(a, b);
            }
            for (pair, [a, b]) in columns.as_chunks::<2>().0.iter().enumerate() {
                // Even rows `k` are the low halves of both, odd ones the high halves.
                let even = _mm256_or_si256(_mm256_and_si256(*a, low_half), _mm256_slli_epi32::<16>(*b));
                let odd = _mm256_or_si256(_mm256_srli_epi32::<16>(*a), _mm256_andnot_si256(low_half, *b));
                let (first, second) = (_mm256_unpacklo_epi32(even, odd), _mm256_unpackhi_epi32(even, odd));
                let at = to[(n / 2 + pair) * 2 * PANEL..].as_mut_ptr().cast::<__m256i>();
                _mm256_storeu_si256(at, _mm256_permute2x128_si256::<0x20>(first, second));
                _mm256_storeu_si256(at.add(1), _mm256_permute2x128_si256::<0x31>(first, second));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tile_turned_fast_is_a_tile_turned_plainly() {
        let from: Tile = std::array::from_fn(|i| (i * 257 + 3) as u16);
        let (mut fast, mut plain) = ([0; PANEL * PANEL], [0; PANEL * PANEL]);
        turn(&from, &mut fast);
        turn_plain(&from, &mut plain);
        assert_eq!(fast, plain);
        let mut back = [0; PANEL * PANEL];
        turn(&fast, &mut back);
        assert_eq!(back, from, "turning twice changes nothing");
    }
}
