//! The kernels' arithmetic in plain Rust, so that everything around them is tested on every processor.

use super::{BLOCK_COLUMNS, Kernel, Sums};
use crate::engine::host::matmul::PANEL;

pub(in super::super) struct Plain;

impl Kernel for Plain {
    const ROWS: usize = 12;

    unsafe fn session(calls: impl FnOnce()) {
        calls();
    }

    unsafe fn multiply(
        rows: usize,
        depth: usize,
        (left, stride): (*const u16, usize),
        panels: [*const u16; 2],
        sums: &mut Sums,
    ) {
        let wide = |bits: u16| f32::from_bits(u32::from(bits) << 16);
        for row in 0..rows {
            for column in 0..BLOCK_COLUMNS {
                let (panel, n) = (panels[column / PANEL], column % PANEL);
                // SAFETY: by the contract of the trait.
                let term = |k: usize| unsafe {
                    wide(*left.add(row * stride + k)) * wide(*panel.add(k / 2 * 2 * PANEL + 2 * n + k % 2))
                };
                sums[row * BLOCK_COLUMNS + column] = (0..depth).map(term).sum();
            }
        }
    }
}
