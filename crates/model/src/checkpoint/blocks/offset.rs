//! Four bits with an offset: `scale · number + offset`, the offset never above zero (the form of llama.cpp's `Q4_1` and `Q4_K`, and of GPTQ and AWQ with zero points).
//!
//! Scales and offsets of a column are whole steps of the column's largest ones, [`STEPS`] of them, so that engines keep both in the sixteen bits that
//! a scale alone has in other blocks.

use half::f16;

use super::{BLOCK, Column, inverse, scale_of, whole};

/// So many steps lead to the largest scale of a column, and to its largest offset.
pub(crate) const STEPS: f32 = 255.0;
/// Numbers of four bits.
const NUMBERS: f32 = 15.0;

/// Blocks that are fitted side by side, one in each lane of a vector.
const LANES: usize = 16;
/// Values of [`LANES`] blocks: the first of each, the second of each, and so on.
type Lanes = [[f32; LANES]; BLOCK];

/// Rounds a column of any length to whole blocks.
#[inline(always)]
pub(super) fn round(values: &[f32], to: &mut Column) {
    let mut lanes = [[0.0; LANES]; BLOCK];
    let mut block = [0.0; BLOCK];
    for values in values.chunks(LANES * BLOCK) {
        for (lane, values) in values.chunks(BLOCK).enumerate() {
            fill(values, &mut block);
            lanes.iter_mut().zip(&block).for_each(|(to, &v)| to[lane] = v);
        }
        let [scales, offsets] = fit(&lanes);
        let blocks = values.len().div_ceil(BLOCK);
        to.scales.extend(scales[..blocks].iter().map(|&scale| scale_of(scale)));
        to.offsets.extend(offsets[..blocks].iter().map(|&offset| scale_of(offset)));
    }
    settle(to);
    for (values, (scale, offset)) in values.chunks(BLOCK).zip(to.scales.iter().zip(&to.offsets)) {
        fill(values, &mut block);
        let (inverse, offset) = (inverse(scale.to_f32()), offset.to_f32());
        to.values.extend(block.map(|v| whole(((v - offset) * inverse).clamp(0.0, NUMBERS)) as i8));
    }
}

/// The last block is filled up with what changes none of its ends.
#[inline(always)]
fn fill(values: &[f32], block: &mut [f32; BLOCK]) {
    block.fill(values[0]);
    block[..values.len()].copy_from_slice(values);
    // What is not finite in a checkpoint becomes finite weights here.
    block.iter_mut().for_each(|v| *v = if v.is_finite() { v.clamp(-65504.0, 65504.0) } else { 0.0 });
}

/// Moves scales and offsets to the nearest steps of their column.
#[inline(always)]
fn settle(column: &mut Column) {
    let [of_scale, of_offset] = column.steps();
    let settled = |value: f32, step: f32| value.signum() * step * (value.abs() * inverse(step)).round();
    // A scale of nothing would lose the block.
    column.scales.iter_mut().filter(|scale| **scale != f16::ZERO).for_each(|scale| {
        *scale = f16::from_f32(settled(scale.to_f32(), of_scale).max(of_scale));
    });
    column.offsets.iter_mut().for_each(|offset| *offset = f16::from_f32(settled(offset.to_f32(), of_offset)));
}

/// The scales and the offsets with the least squared error of those tried: for some numbers of steps between the least and the largest value the nearest numbers are
/// taken, and of these the scale and the offset by least squares (as llama.cpp's `make_qkx2_quants`, without weights).
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "counted loops over lanes read better than nested iterators")]
fn fit(values: &Lanes) -> [[f32; LANES]; 2] {
    /// Steps tried, in eighths.
    const TRIES: std::ops::RangeInclusive<i32> = 10 * 8..=16 * 8;
    // Weights of one sign only begin at zero: no offset is above it.
    let (mut least, mut most, mut sum) = ([0.0f32; LANES], [0.0f32; LANES], [0.0f32; LANES]);
    for values in values {
        for l in 0..LANES {
            least[l] = least[l].min(values[l]);
            most[l] = most[l].max(values[l]);
            sum[l] += values[l];
        }
    }
    let range: [f32; LANES] = std::array::from_fn(|l| most[l] - least[l]);
    let (mut best_scale, mut best_offset) = (range.map(|range| range / NUMBERS), least);
    let mut best_gain = [f32::NEG_INFINITY; LANES];
    for eighths in TRIES {
        let inverse = range.map(|range| if range > 0.0 { eighths as f32 / 8.0 / range } else { 0.0 });
        let (mut numbers, mut squares, mut along) = ([0.0f32; LANES], [0.0f32; LANES], [0.0f32; LANES]);
        for values in values {
            for l in 0..LANES {
                let number = whole(((values[l] - least[l]) * inverse[l]).min(NUMBERS));
                numbers[l] += number;
                squares[l] += number * number;
                along[l] += number * values[l];
            }
        }
        for l in 0..LANES {
            let count = BLOCK as f32;
            let determinant = count * squares[l] - numbers[l] * numbers[l];
            let scale = (count * along[l] - sum[l] * numbers[l]) / determinant;
            let offset = (squares[l] * sum[l] - numbers[l] * along[l]) / determinant;
            let above = offset > 0.0;
            let scale = if above { along[l] / squares[l] } else { scale };
            let offset = if above { 0.0 } else { offset };
            // By so much the squared error is less than without any weights.
            let gain = scale * along[l] + offset * sum[l];
            let better = determinant > 0.0 && scale > 0.0 && gain > best_gain[l];
            best_scale[l] = if better { scale } else { best_scale[l] };
            best_offset[l] = if better { offset } else { best_offset[l] };
            best_gain[l] = if better { gain } else { best_gain[l] };
        }
    }
    [best_scale, best_offset]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::blocks::{self, Bits};

    /// The column that `values` are rounded to, and what it stands for.
    fn rounded(values: &[f32]) -> (Column, Vec<f32>) {
        let mut column = Column::default();
        blocks::round(Bits::Offset, values, &mut column);
        let stands_for = (0..values.len()).map(|at| column.value(Bits::Offset, at)).collect();
        (column, stands_for)
    }

    #[test]
    fn weights_that_lay_on_sixteen_steps_are_found_again() {
        // As `Q4_1` has them: each block with a scale and an offset of its own, its ends not always in use.
        let steps: Vec<f32> = (0..64 * BLOCK)
            .map(|i| {
                let (block, number) = (i / BLOCK, (i * 7 + i / 3) % 16);
                let number = if block % 3 == 0 { number.clamp(1, 14) } else { number };
                let scale = 0.01 * (1.0 + (block % 7) as f32 / 5.0);
                scale * number as f32 - scale * (6.0 + (block % 4) as f32)
            })
            .collect();
        let (_, got) = rounded(&steps);
        let worst = got.iter().zip(&steps).fold(0.0f32, |worst, (a, b)| worst.max((a - b).abs()));
        assert!(worst < 0.2 * 0.01, "{worst}");
    }

    #[test]
    fn steps_of_a_column_are_found_again_in_its_scales() {
        let values: Vec<f32> =
            (0..40 * BLOCK + 5).map(|i| ((i * i + 13 * i) % 251) as f32 * 0.001 * (1 + i / 300) as f32 - 0.1).collect();
        let (column, _) = rounded(&values);
        let [of_scale, of_offset] = column.steps();
        for (scale, offset) in column.scales.iter().zip(&column.offsets) {
            for steps in [scale.to_f32() / of_scale, -offset.to_f32() / of_offset] {
                assert!((steps - steps.round()).abs() < 0.3 && (0.0..=255.3).contains(&steps), "{steps}");
            }
        }
        assert_eq!(column.values.len(), 41 * BLOCK);
    }
}
