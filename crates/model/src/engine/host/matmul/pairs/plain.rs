//! The kernels' arithmetic in plain Rust, so that everything around them is tested on every processor.

use super::{Block, DEPTH, Kernel};
use crate::engine::host::matmul::PANEL;

pub(in super::super) struct Plain;

impl Kernel for Plain {
    const ROWS: usize = 12;

    fn height(rows: usize) -> usize {
        rows.min(Self::ROWS)
    }

    unsafe fn session(calls: impl FnOnce()) {
        calls();
    }

    unsafe fn multiply(block: Block, sums: &mut [f32]) {
        let wide = |bits: u16| f32::from_bits(u32::from(bits) << 16);
        for row in 0..block.rows {
            for (panel, right) in block.panels.into_iter().enumerate() {
                for n in 0..PANEL {
                    // SAFETY: by the contract of the trait.
                    let term = |k: usize| unsafe {
                        let left = *block.left.add((k / DEPTH * block.height + row) * DEPTH + k % DEPTH);
                        wide(left) * wide(*right.add(k / 2 * 2 * PANEL + 2 * n + k % 2))
                    };
                    let sum = &mut sums[(panel * Self::ROWS + row) * PANEL + n];
                    *sum = (0..block.depth).map(term).sum::<f32>() + if block.onto { *sum } else { 0.0 };
                }
            }
        }
    }
}
