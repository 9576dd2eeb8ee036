//! Weights of eight and of four bits: for 32 neighbours along the depth one scale in f16, as in llama.cpp's `Q8_0`, `Q4_0` and `IQ4_NL`.
//!
//! Four bits are the number of an entry in a table of the matrix. So one layout holds even steps (`Q4_0`, symmetric GPTQ), those of FP4 (MXFP4)
//! and fitted ones (`IQ4_NL`), and a kernel reads all of them with the same shuffle. Blocks with an offset ([`Bits::Offset`]) have eight bits for it and
//! eight for the scale, in steps of their column: as many bytes.
//!
//! A matrix is in panels as the others are, `[panel][block of the depth][line]`. A line has 64 bytes: eight bits of 16 columns by four values of the
//! depth, which is what integer dot products take, or four bits of eight values, the first four in the lower halves. The scales lie beside, `[panel][block][PANEL]`.
//!
//! A few rows are multiplied as integers ([`dots`]): they are rounded to eight bits themselves, block by block, a single one beside eight bits to sixteen. Many rows are worth widening the weights,
//! a part of a panel at a time ([`widen`]), and are multiplied by the kernels of wider weights; so is every gradient.

use half::f16;
use rayon::prelude::*;

use super::PANEL;
use super::aligned::Aligned;
use crate::checkpoint::blocks::{self, BLOCK, Bits, Column, WeightColumns, in_steps};

#[allow(unsafe_code)]
mod dots;
mod left;
#[allow(unsafe_code)]
mod widen;

pub(super) use dots::Dots;
#[cfg(test)]
pub(super) use dots::parts_of;

/// Bytes of a line.
const LINE: usize = 64;
/// Values of the depth that lie beside each other in a line.
const GROUP: usize = 4;

/// Lines of a block.
fn lines_of_block(bits: Bits) -> usize {
    match bits {
        Bits::Eight => BLOCK / GROUP,
        Bits::Four(_) | Bits::Offset => BLOCK / GROUP / 2,
    }
}

#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; LINE]);

/// A weight `[depth, width]` of eight or four bits.
#[derive(Debug)]
pub(super) struct BlockMatrix {
    depth: usize,
    width: usize,
    bits: Bits,
    lines: Vec<Line>,
    /// Bits of f16; with [`Bits::Offset`] the number of steps of the scale, in the low byte, and of the offset.
    scales: Aligned<u16>,
    /// With [`Bits::Offset`], the steps of each column's scales and then of its offsets, negative, `[panel][2][PANEL]`.
    steps: Aligned<f32>,
}

/// Values of [`BlockMatrix::steps`] for a panel.
const STEPS: usize = 2 * PANEL;

impl BlockMatrix {
    /// Lays out a weight given as its columns, rounded to `bits` if they do not lie in blocks that can stay as they are.
    pub(super) fn from_columns([depth, width]: [usize; 2], bits: Bits, columns: &impl WeightColumns) -> Self {
        let bits = bits.kept(columns.bits());
        let blocks = depth.div_ceil(BLOCK);
        let (panels, of_panel) = (width.div_ceil(PANEL), blocks * lines_of_block(bits));
        let mut lines = vec![Line([0; LINE]); panels * of_panel];
        let mut scales = Aligned::new(panels * blocks * PANEL);
        let mut steps = Aligned::new(if bits == Bits::Offset { panels * STEPS } else { 0 });
        let parts = lines.par_chunks_mut(of_panel.max(1)).zip(scales.par_chunks_mut((blocks * PANEL).max(1)));
        let of_panels: Vec<[[f32; PANEL]; 2]> = parts
            .enumerate()
            .map_init(
                || (vec![0.0; depth], Column::default()),
                |(scratch, column), (panel, (lines, scales))| {
                    let mut steps = [[0.0; PANEL]; 2];
                    for n in 0..PANEL.min(width - panel * PANEL) {
                        blocks::blocks_of(columns, bits, panel * PANEL + n, scratch, column);
                        let [of_scale, of_offset] = column.steps();
                        (steps[0][n], steps[1][n]) = (of_scale, -of_offset);
                        for (block, scales) in scales.chunks_exact_mut(PANEL).enumerate() {
                            scales[n] = match column.offsets.get(block) {
                                None => column.scales[block].to_bits(),
                                Some(offset) => u16::from_le_bytes([
                                    in_steps(column.scales[block], of_scale),
                                    in_steps(*offset, of_offset),
                                ]),
                            };
                        }
                        place(bits, &column.values, n, lines);
                    }
                    steps
                },
            )
            .collect();
        steps.chunks_exact_mut(STEPS).zip(&of_panels).for_each(|(to, steps)| to.copy_from_slice(steps.as_flattened()));
        Self { depth, width, bits, lines, scales, steps }
    }

    /// Bytes of the weights and their scales, without what fills up the last panel.
    pub(super) fn bytes(&self) -> u64 {
        let of_blocks = self.depth.div_ceil(BLOCK) * (self.bits.bytes_of_block() + size_of::<f16>());
        let of_steps = if self.bits == Bits::Offset { 2 * size_of::<f32>() } else { 0 };
        (self.width * (of_blocks + of_steps)) as u64
    }

    /// Blocks of the depth.
    fn blocks(&self) -> usize {
        self.depth.div_ceil(BLOCK)
    }

    /// The lines of block `block` of a panel and of those behind it, and their scales.
    fn panel(&self, panel: usize, block: usize) -> (&[Line], &[u16]) {
        let at = panel * self.blocks() + block;
        (&self.lines[at * lines_of_block(self.bits)..], &self.scales[at * PANEL..])
    }

    /// The scales and the offsets of a block's columns.
    #[inline(always)]
    fn affine(&self, panel: usize, block: usize) -> [[f32; PANEL]; 2] {
        let (_, words) = self.panel(panel, block);
        let mut affine = [[0.0; PANEL]; 2];
        let [scales, offsets] = &mut affine;
        if self.bits == Bits::Offset {
            let (of_scales, of_offsets) = self.steps[panel * STEPS..][..STEPS].split_at(PANEL);
            for n in 0..PANEL {
                scales[n] = f32::from(words[n] & 255) * of_scales[n];
                offsets[n] = f32::from(words[n] >> 8) * of_offsets[n];
            }
        } else {
            scales.iter_mut().zip(words).for_each(|(to, &bits)| *to = f16::from_bits(bits).to_f32());
        }
        affine
    }
}

/// Writes a column, whole blocks of it, to its place in the lines of a panel.
fn place(bits: Bits, values: &[i8], n: usize, lines: &mut [Line]) {
    let (groups, _) = values.as_chunks::<GROUP>();
    let at = GROUP * n;
    match bits {
        Bits::Eight => {
            for (Line(line), group) in lines.iter_mut().zip(groups) {
                line[at..at + GROUP].copy_from_slice(&group.map(|v| v as u8));
            }
        }
        Bits::Four(_) | Bits::Offset => {
            for (Line(line), [low, high]) in lines.iter_mut().zip(groups.as_chunks::<2>().0) {
                for (byte, (low, high)) in line[at..at + GROUP].iter_mut().zip(low.iter().zip(high)) {
                    *byte = *low as u8 | (*high as u8) << 4;
                }
            }
        }
    }
}
