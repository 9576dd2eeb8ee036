//! Blocks as wider values, for products of many rows and for gradients: in f32, or rounded to pairs of bf16 where those are multiplied.

use std::ops::Range;

use super::{BlockMatrix, GROUP, LINE, Line};
#[cfg(not(target_arch = "aarch64"))]
use crate::checkpoint::blocks::Table;
use crate::checkpoint::blocks::{BLOCK, Bits};
use crate::engine::host::matmul::PANEL;
use crate::engine::host::matmul::driver::Panels;
use crate::engine::host::matmul::micro::{Micro, Tile};
use crate::engine::host::matmul::pairs::{self, PairPanels, TASK_PANELS, round_to_bf16};
use crate::engine::host::simd::vectorized;

#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;

#[cfg(target_arch = "aarch64")]
use neon::look_up;

/// Lines of eight bits that make a tile.
const TILE_LINES: usize = PANEL / GROUP;

impl BlockMatrix {
    /// Rows `number · PANEL` and on of a panel, as many as a tile has.
    #[inline(always)]
    fn tile(&self, panel: usize, number: usize, out: &mut Tile) {
        let (block, half) = (number * PANEL / BLOCK, number % (BLOCK / PANEL));
        let (lines, _) = self.panel(panel, block);
        let mut widened = [Line([0; LINE]); TILE_LINES];
        match &self.bits {
            Bits::Eight => widened.copy_from_slice(&lines[half * TILE_LINES..][..TILE_LINES]),
            Bits::Four(_) | Bits::Offset => {
                let table = self.bits.table();
                let lines = &lines[half * TILE_LINES / 2..][..TILE_LINES / 2];
                for (to, line) in widened.as_chunks_mut().0.iter_mut().zip(lines) {
                    look_up(line, &table, to);
                }
            }
        }
        let [scales, offsets] = self.affine(panel, block);
        let (rows, _) = out.as_chunks_mut::<GROUP>();
        for (Line(bytes), rows) in widened.iter().zip(rows) {
            let (columns, _) = bytes.as_chunks::<GROUP>();
            for (depth, row) in rows.iter_mut().enumerate() {
                for n in 0..PANEL {
                    let word = i32::from_le_bytes(columns[n]) << (24 - 8 * depth) >> 24;
                    row[n] = word as f32 * scales[n] + offsets[n];
                }
            }
        }
    }
}

impl Panels for BlockMatrix {
    type Element = f32;

    fn plain(&self) -> Option<&[f32]> {
        None
    }

    fn widen(&self, panel: usize, rows: Range<usize>, out: &mut [f32]) {
        let tiles = out.as_chunks_mut().0.as_chunks_mut().0;
        vectorized(
            #[inline(always)]
            || {
                (rows.start / PANEL..rows.end.div_ceil(PANEL))
                    .zip(tiles)
                    .for_each(|(number, to)| self.tile(panel, number, to))
            },
        );
    }

    unsafe fn turn<S: Micro>(&self, panel: usize, first: usize, height: usize, out: &mut Tile) {
        let mut tile = [[0.0; PANEL]; PANEL];
        vectorized(
            #[inline(always)]
            || self.tile(panel, first / PANEL, &mut tile),
        );
        // SAFETY: by the contract of this function.
        unsafe { S::turn(tile.as_flattened(), PANEL, height, out) };
    }
}

impl PairPanels for BlockMatrix {
    fn shape(&self) -> [usize; 2] {
        [self.depth, self.width]
    }

    fn plain(&self, _: usize, _: Range<usize>) -> Option<&[u16]> {
        None
    }

    fn widen(&self, panel: usize, part: Range<usize>, out: &mut [u16]) {
        self.pairs(panel, part.start / PANEL, out.as_chunks_mut().0);
    }

    fn tiles(&self, panel: usize, tiles: Range<usize>, each: impl FnMut(&pairs::Tile)) {
        let mut pairs = [[0; PANEL * PANEL]; TASK_PANELS];
        let pairs = &mut pairs[..tiles.len()];
        self.pairs(panel, tiles.start, pairs);
        pairs.iter().for_each(each);
    }
}

impl BlockMatrix {
    /// Tiles from number `first` on as pairs of neighbours along the depth.
    fn pairs(&self, panel: usize, first: usize, to: &mut [pairs::Tile]) {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx512bf16") && std::arch::is_x86_feature_detected!("avx512bw") {
            // SAFETY: the processor has the instructions.
            return unsafe { avx512::pairs(self, panel, first, to) };
        }
        vectorized(
            #[inline(always)]
            || to.iter_mut().zip(first..).for_each(|(to, number)| self.rounded(panel, number, to)),
        );
    }

    #[inline(always)]
    fn rounded(&self, panel: usize, number: usize, to: &mut pairs::Tile) {
        let mut tile = [[0.0; PANEL]; PANEL];
        self.tile(panel, number, &mut tile);
        let (to, _) = to.as_chunks_mut::<{ 2 * PANEL }>();
        for ([a, b], to) in tile.as_chunks::<2>().0.iter().zip(to) {
            for n in 0..PANEL {
                to[2 * n] = round_to_bf16(a[n]);
                to[2 * n + 1] = round_to_bf16(b[n]);
            }
        }
    }
}

/// What the lower and the upper halves of a line's bytes stand for.
#[cfg(not(target_arch = "aarch64"))]
#[inline(always)]
fn look_up(line: &Line, table: &Table, to: &mut [Line; 2]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { look_up_avx2(line, table, to) };
    }
    let [low, high] = to;
    for ((&byte, low), high) in line.0.iter().zip(&mut low.0).zip(&mut high.0) {
        *low = table[usize::from(byte & 15)] as u8;
        *high = table[usize::from(byte >> 4)] as u8;
    }
}

/// # Safety
/// The processor has AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn look_up_avx2(line: &Line, table: &Table, [low, high]: &mut [Line; 2]) {
    use std::arch::x86_64::*;
    // SAFETY: lines have 64 bytes, a table sixteen.
    unsafe {
        let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
        let half = _mm256_set1_epi8(15);
        for at in [0, 32] {
            let bytes = _mm256_loadu_si256(line.0[at..].as_ptr().cast());
            let upper = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), half);
            let lower = _mm256_shuffle_epi8(table, _mm256_and_si256(bytes, half));
            _mm256_storeu_si256(low.0[at..].as_mut_ptr().cast(), lower);
            _mm256_storeu_si256(high.0[at..].as_mut_ptr().cast(), _mm256_shuffle_epi8(table, upper));
        }
    }
}
