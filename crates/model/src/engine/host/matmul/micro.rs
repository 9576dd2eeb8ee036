//! The micro-kernel: a few rows times a panel or two, with all sums in registers.

use super::PANEL;
#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};
use super::simd::{Portable, Simd};

/// How a weight is stored in memory; it is widened as it is loaded.
pub(crate) trait Stored: Copy + Send + Sync + 'static {
    /// # Safety
    /// As [`Simd`].
    unsafe fn load<S: Simd>(values: *const Self) -> S::Vector;

    /// One value.
    fn widen(self) -> f32;
}

/// The bits of a bf16.
#[derive(Debug, Clone, Copy, Default)]
#[repr(transparent)]
pub(crate) struct Bf16(pub(crate) u16);

/// The bits of an f16.
#[derive(Debug, Clone, Copy, Default)]
#[repr(transparent)]
pub(crate) struct F16(pub(crate) u16);

impl Stored for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(values: *const Self) -> S::Vector {
        // SAFETY: by the contract of the trait, as in the others.
        unsafe { S::load(values) }
    }

    fn widen(self) -> f32 {
        self
    }
}

/// Whole numbers.
impl Stored for i8 {
    #[inline(always)]
    unsafe fn load<S: Simd>(values: *const Self) -> S::Vector {
        unsafe { S::load_i8(values) }
    }

    fn widen(self) -> f32 {
        f32::from(self)
    }
}

impl Stored for Bf16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(values: *const Self) -> S::Vector {
        unsafe { S::load_bf16(values.cast()) }
    }

    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }
}

impl Stored for F16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(values: *const Self) -> S::Vector {
        unsafe { S::load_f16(values.cast()) }
    }

    fn widen(self) -> f32 {
        half::f16::from_bits(self.0).to_f32()
    }
}

/// Steps of the depth that a packed block takes between two looks at the counter.
const UNROLLED: usize = 4;

/// Rows of the left matrix: element `(row, k)` is at `data + row·row_stride + k·depth_stride`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Left {
    pub(super) data: *const f32,
    pub(super) row_stride: usize,
    pub(super) depth_stride: usize,
}

/// Panels of the right matrix, `panel_stride` elements apart, each `depth` rows of [`PANEL`] values.
#[derive(Debug, Clone, Copy)]
pub(super) struct Right<E> {
    pub(super) data: *const E,
    pub(super) panel_stride: usize,
    /// From one value of the depth to the next; [`PANEL`] in a packed panel.
    pub(super) depth_stride: usize,
    /// Elements between what is read and what is fetched into the cache for later; 0 where all of it is there already.
    pub(super) ahead: usize,
}

/// Where the product goes: rows `row_stride` apart.
#[derive(Debug, Clone, Copy)]
pub(super) struct Out {
    pub(super) data: *mut f32,
    pub(super) row_stride: usize,
    /// Multiplies the sums.
    pub(super) scale: f32,
    /// Adds to what is there.
    pub(super) accumulate: bool,
}

/// Adds up `depth` products for `ROWS` rows and `PANELS` panels of `VECTORS` vectors each. (One or two rows do not fill the multipliers' pipelines,
/// but they wait for memory: sums in several chains, which compilers keep in memory too, made them three to six times slower.) `PACKED` says that the left matrix is a strip of just
/// these rows: with distances that are known the compiler needs no arithmetic for addresses, which would take turns with the multiplications.
///
/// # Safety
/// The processor has the instruction set of `S`, and the operands cover what the sizes say.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "counted loops over registers read better than nested iterators")]
unsafe fn block<
    S: Simd,
    E: Stored,
    const ROWS: usize,
    const PANELS: usize,
    const VECTORS: usize,
    const PACKED: bool,
>(
    depth: usize,
    left: Left,
    right: Right<E>,
    out: Out,
) {
    // SAFETY: by the contract of this function; strides and counts are those of the operands.
    unsafe {
        let mut sums = [[[S::zero(); VECTORS]; PANELS]; ROWS];
        let (mut a, mut b) = (left.data, right.data);
        let [row_stride, depth_stride] = if PACKED { [1, ROWS] } else { [left.row_stride, left.depth_stride] };
        let right_stride = if PACKED { PANEL } else { right.depth_stride };
        // Sums go in and out: as a part of what the closure holds they would be in memory.
        let mut step = |sums: &mut [[[S::Vector; VECTORS]; PANELS]; ROWS]| {
            let mut weights = [[S::zero(); VECTORS]; PANELS];
            for panel in 0..PANELS {
                for vector in 0..VECTORS {
                    let at = b.wrapping_add(panel * right.panel_stride + vector * S::LANES);
                    weights[panel][vector] = E::load::<S>(at);
                }
                if !PACKED {
                    S::prefetch(b.wrapping_add(panel * right.panel_stride + right.ahead).cast());
                }
            }
            for row in 0..ROWS {
                let value = S::splat(a.wrapping_add(row * row_stride));
                for panel in 0..PANELS {
                    for vector in 0..VECTORS {
                        let sum = &mut sums[row][panel][vector];
                        *sum = S::multiply_add(value, weights[panel][vector], *sum);
                    }
                }
            }
            a = a.wrapping_add(depth_stride);
            b = b.wrapping_add(right_stride);
        };
        let unrolled = if PACKED { depth / UNROLLED } else { 0 };
        for _ in 0..unrolled {
            for _ in 0..UNROLLED {
                step(&mut sums);
            }
        }
        for _ in unrolled * UNROLLED..depth {
            step(&mut sums);
        }
        let scale = S::splat(&out.scale);
        for row in 0..ROWS {
            for panel in 0..PANELS {
                for vector in 0..VECTORS {
                    let sum = sums[row][panel][vector];
                    let at = out.data.wrapping_add(row * out.row_stride + panel * PANEL + vector * S::LANES);
                    let before = if out.accumulate { S::load(at) } else { S::zero() };
                    S::store(at, S::multiply_add(sum, scale, before));
                }
            }
        }
    }
}

/// Whether the left matrix is a strip of as many rows as the kernel has, and all of the right one is near.
fn is_strip<S: Simd, E>(rows: usize, left: Left, right: Right<E>) -> bool {
    let strip = rows == S::ROWS && left.row_stride == 1 && left.depth_stride == S::ROWS;
    strip && right.depth_stride == PANEL && right.ahead == 0
}

/// An instruction set's micro-kernels.
pub(super) trait Micro: Simd + Send + Sync + 'static {
    /// Multiplies `rows` rows (1 to [`Simd::ROWS`]) by `panels` panels (1 to [`Simd::PANELS`]) over `depth`.
    ///
    /// # Safety
    /// The processor has the instruction set; `left` has `rows` by `depth` values, `right` `panels` panels of `depth`
    /// rows, and `out` room for `rows` rows of `panels·PANEL` values that nobody else uses.
    unsafe fn multiply<E: Stored>(shape: [usize; 2], depth: usize, left: Left, right: Right<E>, out: Out);

    /// `out[n][k]` becomes value `n` of row `k` in f32, for the first `height` (at most [`PANEL`]) rows, `stride` apart; the
    /// rest of `out` becomes zero.
    ///
    /// # Safety
    /// The processor has the instruction set.
    unsafe fn turn<E: Stored>(rows: &[E], stride: usize, height: usize, out: &mut Tile);
}

/// Part of a panel.
pub(super) type Tile = [[f32; PANEL]; PANEL];

/// Picks the kernel for a number of rows.
macro_rules! by_rows {
    ($set:ty, $element:ty, $panels:literal, $vectors:literal, $rows:expr, $arguments:tt, $($more:literal)*) => {
        match $rows {
            $($more => block::<$set, $element, $more, $panels, $vectors, false> $arguments,)*
            _ => unreachable!("more rows than the kernel has"),
        }
    };
}

#[cfg(target_arch = "aarch64")]
mod neon;

impl Micro for Portable {
    unsafe fn multiply<E: Stored>([rows, _]: [usize; 2], depth: usize, left: Left, right: Right<E>, out: Out) {
        // SAFETY: by the contract of the trait.
        unsafe { by_rows!(Self, E, 1, 4, rows, (depth, left, right, out), 1 2 3 4) }
    }

    unsafe fn turn<E: Stored>(rows: &[E], stride: usize, height: usize, out: &mut Tile) {
        *out = [[0.0; PANEL]; PANEL];
        for k in 0..height {
            for n in (0..PANEL).step_by(Self::LANES) {
                // SAFETY: the row has PANEL values.
                let values = unsafe { E::load::<Self>(rows[k * stride..][..PANEL][n..].as_ptr()) };
                values.iter().enumerate().for_each(|(lane, &value)| out[n + lane][k] = value);
            }
        }
    }
}

/// Turns a tile in squares of eight by eight values.
///
/// # Safety
/// The processor has AVX2, FMA and F16C.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn turn_avx2<E: Stored>(rows: &[E], stride: usize, height: usize, out: &mut Tile) {
    use std::arch::x86_64::*;
    for k in [0, 8] {
        for n in [0, 8] {
            // SAFETY: rows that the tile has are PANEL values long; rows of `out` as well.
            unsafe {
                let mut r = [_mm256_setzero_ps(); 8];
                for (i, row) in r.iter_mut().enumerate().take(height.saturating_sub(k)) {
                    *row = E::load::<Avx2>(rows[(k + i) * stride..][..PANEL][n..].as_ptr());
                }
                let low = |i: usize| _mm256_unpacklo_ps(r[i], r[i + 1]);
                let high = |i: usize| _mm256_unpackhi_ps(r[i], r[i + 1]);
                let (t0, t1, t2, t3) = (low(0), high(0), low(2), high(2));
                let (t4, t5, t6, t7) = (low(4), high(4), low(6), high(6));
                let halves = [
                    [_mm256_shuffle_ps::<0x44>(t0, t2), _mm256_shuffle_ps::<0x44>(t4, t6)],
                    [_mm256_shuffle_ps::<0xee>(t0, t2), _mm256_shuffle_ps::<0xee>(t4, t6)],
                    [_mm256_shuffle_ps::<0x44>(t1, t3), _mm256_shuffle_ps::<0x44>(t5, t7)],
                    [_mm256_shuffle_ps::<0xee>(t1, t3), _mm256_shuffle_ps::<0xee>(t5, t7)],
                ];
                for (i, [a, b]) in halves.into_iter().enumerate() {
                    let (first, second) = (_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b));
                    _mm256_storeu_ps(out[n + i][k..].as_mut_ptr(), first);
                    _mm256_storeu_ps(out[n + 4 + i][k..].as_mut_ptr(), second);
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl Micro for Avx2 {
    #[inline]
    unsafe fn multiply<E: Stored>([rows, _]: [usize; 2], depth: usize, left: Left, right: Right<E>, out: Out) {
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn run<E: Stored>(rows: usize, depth: usize, left: Left, right: Right<E>, out: Out) {
            // SAFETY: by the contract of the trait.
            unsafe { by_rows!(Avx2, E, 1, 2, rows, (depth, left, right, out), 1 2 3 4 5 6) }
        }
        // SAFETY: by the contract of the trait.
        unsafe { run(rows, depth, left, right, out) }
    }

    unsafe fn turn<E: Stored>(rows: &[E], stride: usize, height: usize, out: &mut Tile) {
        // SAFETY: by the contract of the trait.
        unsafe { turn_avx2(rows, stride, height, out) }
    }
}

#[cfg(target_arch = "x86_64")]
impl Micro for Avx512 {
    #[inline]
    unsafe fn multiply<E: Stored>([rows, panels]: [usize; 2], depth: usize, left: Left, right: Right<E>, out: Out) {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
        unsafe fn run<E: Stored>(rows: usize, panels: usize, depth: usize, left: Left, right: Right<E>, out: Out) {
            // SAFETY: by the contract of the trait.
            unsafe {
                if panels == 2 && is_strip::<Avx512, E>(rows, left, right) {
                    block::<Avx512, E, 12, 2, 1, true>(depth, left, right, out)
                } else if panels == 2 {
                    by_rows!(Avx512, E, 2, 1, rows, (depth, left, right, out), 1 2 3 4 5 6 7 8 9 10 11 12)
                } else {
                    by_rows!(Avx512, E, 1, 1, rows, (depth, left, right, out), 1 2 3 4 5 6 7 8 9 10 11 12)
                }
            }
        }
        // SAFETY: by the contract of the trait.
        unsafe { run(rows, panels, depth, left, right, out) }
    }

    unsafe fn turn<E: Stored>(rows: &[E], stride: usize, height: usize, out: &mut Tile) {
        // SAFETY: AVX-512 comes with AVX2, as `Isa::available` checks.
        unsafe { turn_avx2(rows, stride, height, out) }
    }
}
