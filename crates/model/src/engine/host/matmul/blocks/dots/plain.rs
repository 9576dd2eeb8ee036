//! Integer products in plain Rust.

use super::{Integers, Left, Out, Panel, by_rows};
use crate::checkpoint::blocks::{Bits, Table};
use crate::engine::host::matmul::PANEL;

/// Columns at a time.
const COLUMNS: usize = 4;

#[derive(Debug, Clone, Copy)]
pub(super) struct Plain;

impl Integers for Plain {
    type Bytes = [[i8; 4]; COLUMNS];
    type Ints = [i32; COLUMNS];
    type Floats = [f32; COLUMNS];
    type Table = Table;
    const COLUMNS: usize = COLUMNS;
    const ROWS: usize = 4;

    #[inline(always)]
    unsafe fn eight(line: *const u8) -> Self::Bytes {
        // SAFETY: by the contract of the trait, as everywhere below.
        unsafe { line.cast::<[[i8; 4]; COLUMNS]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn table(values: &Table) -> Table {
        *values
    }
    #[inline(always)]
    unsafe fn four(line: *const u8, table: Table) -> [Self::Bytes; 2] {
        let bytes = unsafe { line.cast::<[[u8; 4]; COLUMNS]>().read_unaligned() };
        let part = |shift: u8| bytes.map(|column| column.map(|byte| table[usize::from(byte >> shift & 15)]));
        [part(0), part(4)]
    }
    #[inline(always)]
    unsafe fn start(_: *const i32) -> Self::Ints {
        [0; COLUMNS]
    }
    #[inline(always)]
    unsafe fn dot(sums: Self::Ints, weights: Self::Bytes, quants: *const i8) -> Self::Ints {
        let quants = unsafe { quants.cast::<[i8; 4]>().read_unaligned() };
        std::array::from_fn(|n| {
            let products = weights[n].iter().zip(quants).map(|(&w, q)| i32::from(w) * i32::from(q));
            sums[n] + products.sum::<i32>()
        })
    }
    #[inline(always)]
    unsafe fn zero() -> Self::Floats {
        [0.0; COLUMNS]
    }
    #[inline(always)]
    unsafe fn load(values: *const f32) -> Self::Floats {
        unsafe { values.cast::<[f32; COLUMNS]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_f16(values: *const u16) -> Self::Floats {
        let values = unsafe { values.cast::<[u16; COLUMNS]>().read_unaligned() };
        values.map(|bits| half::f16::from_bits(bits).to_f32())
    }
    #[inline(always)]
    unsafe fn affine(numbers: *const u16, steps: *const f32) -> [Self::Floats; 2] {
        let (numbers, [of_scales, of_offsets]) = unsafe {
            let steps = [steps, steps.add(PANEL)].map(|at| at.cast::<[f32; COLUMNS]>().read_unaligned());
            (numbers.cast::<[u16; COLUMNS]>().read_unaligned(), steps)
        };
        let scales = std::array::from_fn(|n| f32::from(numbers[n] & 255) * of_scales[n]);
        [scales, std::array::from_fn(|n| f32::from(numbers[n] >> 8) * of_offsets[n])]
    }
    #[inline(always)]
    unsafe fn store(at: *mut f32, values: Self::Floats) {
        unsafe { at.cast::<[f32; COLUMNS]>().write_unaligned(values) }
    }
    #[inline(always)]
    unsafe fn add_scaled(
        sums: Self::Floats,
        ints: Self::Ints,
        scales: Self::Floats,
        scale: *const f32,
    ) -> Self::Floats {
        let scale = unsafe { *scale };
        std::array::from_fn(|n| sums[n] + ints[n] as f32 * (scales[n] * scale))
    }
    #[inline(always)]
    unsafe fn add_offsets(sums: Self::Floats, offsets: Self::Floats, factor: f32) -> Self::Floats {
        std::array::from_fn(|n| sums[n] + offsets[n] * factor)
    }
    #[inline(always)]
    unsafe fn add(a: Self::Floats, b: Self::Floats) -> Self::Floats {
        std::array::from_fn(|n| a[n] + b[n])
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}

    unsafe fn multiply<const VECTORS: usize>(rows: usize, bits: &Bits, panel: Panel, left: Left, out: Out) {
        let table = &bits.table();
        // SAFETY: by the contract of the trait.
        unsafe { by_rows!(Self, VECTORS, rows, bits, (table, panel, left, out), 1 2 3 4) }
    }
}
