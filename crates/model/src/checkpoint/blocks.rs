//! Weights in blocks: 32 neighbours of a column have one scale, an f16, some an offset besides, and eight or four bits each. What files and engines have in common.

use half::f16;

use crate::device::Dtype;

mod offset;

pub(crate) use offset::STEPS;

/// Neighbours along the depth that have a scale together.
pub(crate) const BLOCK: usize = 32;

/// What four bits stand for, before the scale; it ascends.
pub(crate) type Table = [i8; 16];

/// Bits of a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bits {
    /// Whole numbers.
    Eight,
    /// Entries of a table.
    Four(Table),
    /// Numbers from 0 to 15, whose blocks have an offset.
    Offset,
}

/// Blocks of a column: a scale for each, and the weights in units of it, or their numbers in the table. With [`Bits::Offset`] an offset for each too, which is
/// added and never above zero.
#[derive(Debug, Default, Clone)]
pub(crate) struct Column {
    pub(crate) scales: Vec<f16>,
    pub(crate) offsets: Vec<f16>,
    pub(crate) values: Vec<i8>,
}

impl Column {
    pub(crate) fn clear(&mut self) {
        self.scales.clear();
        self.offsets.clear();
        self.values.clear();
    }

    /// What value `at` stands for.
    pub(crate) fn value(&self, bits: Bits, at: usize) -> f32 {
        let (number, block) = (self.values[at], at / BLOCK);
        let unit = match bits {
            Bits::Eight | Bits::Offset => number,
            Bits::Four(table) => table[usize::from(number as u8 & 15)],
        };
        f32::from(unit) * self.scales[block].to_f32() + self.offsets.get(block).map_or(0.0, |offset| offset.to_f32())
    }

    /// The steps that scales and offsets are counted in where both have eight bits.
    pub(crate) fn steps(&self) -> [f32; 2] {
        [&self.scales, &self.offsets].map(|all| all.iter().fold(0.0f32, |most, v| most.max(v.to_f32().abs())) / STEPS)
    }
}

/// Sixteen steps that lie as weights do, closer around zero: llama.cpp's `kvalues_iq4nl`. On normally distributed weights their error is a fifth
/// below that of even steps (see `docs/quantisation.md`).
pub(crate) const FITTED: Table = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Sixteen even steps: those of `Q4_0` and of symmetric integers of four bits.
pub(crate) const EVEN: Table = [-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7];

/// Weights given as their columns, which an engine lays out for its products.
pub(crate) trait WeightColumns: Sync {
    /// Writes column `n`.
    fn column(&self, n: usize, values: &mut [f32]);

    /// Of how many bits the columns are, if they lie in blocks.
    fn bits(&self) -> Option<Bits> {
        None
    }

    /// Column `n` as it lies, if [`Self::bits`] says that it can be had. `values` is as long as a column.
    fn blocks(&self, n: usize, values: &mut [f32], to: &mut Column) {
        let _ = (n, values, to);
        unreachable!("the columns do not lie in blocks");
    }
}

impl<F: Fn(usize, &mut [f32]) + Sync> WeightColumns for F {
    fn column(&self, n: usize, values: &mut [f32]) {
        self(n, values);
    }
}

impl Bits {
    /// What four bits stand for, before the scale.
    pub(crate) fn table(self) -> Table {
        match self {
            Self::Four(table) => table,
            Self::Offset | Self::Eight => std::array::from_fn(|number| number as i8),
        }
    }

    /// Bytes of the weights of a block.
    pub(crate) fn bytes_of_block(self) -> usize {
        match self {
            Self::Eight => BLOCK,
            Self::Four(_) | Self::Offset => BLOCK / 2,
        }
    }

    /// Those of a dtype, if its weights are in blocks.
    pub(crate) fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::Int8 => Some(Self::Eight),
            Dtype::Int4 => Some(Self::Offset),
            Dtype::Auto | Dtype::F32 | Dtype::Bf16 | Dtype::F16 => None,
        }
    }

    /// What weights that are to be kept in as many bits as `self` are kept in, given how they lie: as they do, if they have no more bits.
    pub(crate) fn kept(self, lie: Option<Bits>) -> Bits {
        match (self, lie) {
            (Bits::Four(_) | Bits::Offset, Some(lie @ (Bits::Four(_) | Bits::Offset))) => lie,
            (kept, _) => kept,
        }
    }

    /// Whether blocks of these bits become blocks of `kept` without rounding.
    pub(crate) fn fit_into(self, kept: Bits) -> bool {
        self == kept || kept == Bits::Eight && self != Bits::Offset
    }
}

/// How many steps a scale or an offset of [`Bits::Offset`] is.
pub(crate) fn in_steps(value: f16, step: f32) -> u8 {
    if step == 0.0 { 0 } else { (value.to_f32().abs() / step).round() as u8 }
}

/// Column `n` in blocks of `bits`, which are what [`Bits::kept`] says: as it lies, or rounded. `values` is as long as a column.
pub(crate) fn blocks_of(columns: &impl WeightColumns, bits: Bits, n: usize, values: &mut [f32], to: &mut Column) {
    match columns.bits().filter(|lie| lie.fit_into(bits)) {
        None => {
            columns.column(n, values);
            round(bits, values, to);
        }
        Some(lie) => {
            columns.blocks(n, values, to);
            if let (Bits::Four(table), Bits::Eight) = (lie, bits) {
                to.values.iter_mut().for_each(|number| *number = table[usize::from(*number as u8 & 15)]);
            }
        }
    }
}

/// Rounds a column of any length to whole blocks, the last one filled up with zeros.
pub(crate) fn round(bits: Bits, values: &[f32], to: &mut Column) {
    to.clear();
    pulp::Arch::new().dispatch(
        #[inline(always)]
        || match bits {
            Bits::Eight => each_block(values, to, eight),
            Bits::Four(table) => each_block(values, to, |block| four(block, &table)),
            Bits::Offset => offset::round(values, to),
        },
    );
}

#[inline(always)]
fn each_block(values: &[f32], to: &mut Column, round: impl Fn(&[f32; BLOCK]) -> (f16, [i8; BLOCK])) {
    let mut block = [0.0; BLOCK];
    for values in values.chunks(BLOCK) {
        block[..values.len()].copy_from_slice(values);
        block[values.len()..].fill(0.0);
        let (scale, quants) = round(&block);
        to.scales.push(scale);
        to.values.extend_from_slice(&quants);
    }
}

#[inline(always)]
fn largest(values: &[f32; BLOCK]) -> f32 {
    // NaN compares as nothing: what is not finite in a checkpoint becomes a finite weight here, as large as there is.
    let mut most = [0.0f32; 16];
    for (i, v) in values.iter().enumerate() {
        most[i % 16] = if v.abs() > most[i % 16] { v.abs() } else { most[i % 16] };
    }
    most.into_iter().fold(0.0, f32::max).min(f32::MAX)
}

/// A scale that f16 has.
#[inline(always)]
fn scale_of(value: f32) -> f16 {
    f16::from_f32(value.clamp(-65504.0, 65504.0))
}

/// The largest value becomes 127 (`quantize_row_q8_0_ref`).
#[inline(always)]
fn eight(values: &[f32; BLOCK]) -> (f16, [i8; BLOCK]) {
    let scale = scale_of(largest(values) / 127.0);
    let inverse = inverse(scale.to_f32());
    (scale, values.map(|v| whole((v * inverse).clamp(-127.0, 127.0)) as i8))
}

/// The nearest whole number, ties to even ones, of one that is small. (A processor without an instruction for it would call a function for each.)
#[inline(always)]
fn whole(number: f32) -> f32 {
    /// Adding it leaves no bits for what is behind the point.
    const ROUND: f32 = 12_582_912.0;
    number + ROUND - ROUND
}

#[inline(always)]
fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// Tries scales around the one that makes the largest value an end of the table, and takes the one with the least squared error: for each choice of entries
/// the best scale is `sum(q·x) / sum(q²)`, with an error less by `sum(q·x)² / sum(q²)` than without any (as `quantize_row_iq4_nl_impl`).
#[inline(always)]
fn four(values: &[f32; BLOCK], table: &Table) -> (f16, [i8; BLOCK]) {
    /// Scales tried on either side, and how far they are apart.
    const TRIES: i32 = 7;
    const STEP: f32 = 0.015;
    let most = largest(values);
    if most == 0.0 {
        return (f16::ZERO, [nearest_to_zero(table); BLOCK]);
    }
    let end = f32::from(table[0]);
    let (mut best, mut best_gain) = (0.0, f32::NEG_INFINITY);
    for sign in [1.0, -1.0] {
        for attempt in -TRIES..=TRIES {
            let inverse = sign * end * (1.0 + STEP * attempt as f32) / most;
            let (along, square) = entries(values, table, inverse);
            let gain = along * along / square;
            if square > 0.0 && gain > best_gain {
                (best, best_gain) = (along / square, gain);
            }
        }
    }
    let scale = scale_of(best);
    let inverse = inverse(scale.to_f32());
    let mut quants = [0; BLOCK];
    for (quant, &v) in quants.iter_mut().zip(values) {
        *quant = number_of(table, v * inverse);
    }
    (scale, quants)
}

/// `sum(q·x)` and `sum(q²)` of the entries `q` nearest to `x·inverse`.
#[inline(always)]
fn entries(values: &[f32; BLOCK], table: &Table, inverse: f32) -> (f32, f32) {
    let (mut along, mut square) = ([0.0f32; 16], [0.0f32; 16]);
    let mut nearest = [0.0f32; BLOCK];
    for (nearest, &v) in nearest.iter_mut().zip(values) {
        let scaled = v * inverse;
        let mut entry = f32::from(table[0]);
        for pair in table.windows(2) {
            let (low, high) = (f32::from(pair[0]), f32::from(pair[1]));
            entry = if scaled > 0.5 * (low + high) { high } else { entry };
        }
        *nearest = entry;
    }
    for (i, (&q, &v)) in nearest.iter().zip(values).enumerate() {
        along[i % 16] += q * v;
        square[i % 16] += q * q;
    }
    (along.iter().sum(), square.iter().sum())
}

/// The number of the entry nearest to `scaled`; the table ascends.
#[inline(always)]
fn number_of(table: &Table, scaled: f32) -> i8 {
    let mut number = 0;
    for pair in table.windows(2) {
        let middle = 0.5 * (f32::from(pair[0]) + f32::from(pair[1]));
        number += i8::from(scaled > middle);
    }
    number
}

fn nearest_to_zero(table: &Table) -> i8 {
    number_of(table, 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Normally distributed, the same each time.
    fn normal(count: usize) -> Vec<f32> {
        let mut state = 1u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 + 0.5) / (1u64 << 24) as f32
        };
        (0..count).map(|_| (-2.0 * uniform().ln()).sqrt() * (std::f32::consts::TAU * uniform()).cos()).collect()
    }

    /// The root of the mean square of the errors.
    fn error(bits: Bits, values: &[f32]) -> f32 {
        let mut column = Column::default();
        round(bits, values, &mut column);
        let squares = values.iter().enumerate().map(|(at, v)| (column.value(bits, at) - v).powi(2));
        (squares.sum::<f32>() / values.len() as f32).sqrt()
    }

    #[test]
    fn blocks_with_offsets_are_as_good_as_fitted_steps_and_better_than_even_ones() {
        let values = normal(1 << 14);
        let kinds = [Bits::Eight, Bits::Offset, Bits::Four(FITTED), Bits::Four(EVEN)];
        let [eight, offset, fitted, even] = kinds.map(|bits| error(bits, &values));
        println!("eight bits {eight}, with offsets {offset}, fitted {fitted}, even {even}");
        assert!(
            eight < 0.006 && offset < 0.076 && fitted < 0.076 && fitted < 0.95 * even,
            "{eight} {offset} {fitted} {even}"
        );
    }

    #[test]
    fn blocks_of_nothing_tiny_huge_and_wrong_values_are_finite() {
        for bits in [Bits::Eight, Bits::Four(FITTED), Bits::Offset] {
            for value in [0.0, -0.0, 1e-30, 1e-7, 1e30, f32::MAX, f32::NAN, f32::INFINITY] {
                let mut column = Column::default();
                round(bits, &[value, -1.0, 0.5], &mut column);
                assert_eq!((column.scales.len(), column.values.len()), (1, BLOCK));
                assert!((0..3).all(|at| column.value(bits, at).is_finite()), "{bits:?} {value}");
            }
        }
    }
}
