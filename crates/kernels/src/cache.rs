//! Keys and values of sequences in pages: turned, packed and written where they belong, and read again.
//!
//! The pages of a block are one buffer of words, `[pages][keys, values][key heads][PAGE positions][words of a head]`. In eight bits each position of a head has
//! a scale besides, in a buffer of the same order.

use cubecl::prelude::*;

use crate::attention::Four;
use crate::gpu::{Buffer, Gpu};
use crate::words::half_to_float;
use crate::{LANES, launch};

/// Positions of a page.
pub(crate) const PAGE: usize = 64;

/// How keys and values are packed in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kept {
    /// One in a word.
    F32,
    /// Two in a word.
    Bf16,
    /// Two in a word, IEEE 754 half precision; what it does not reach becomes the largest that it has.
    F16,
    /// Four in a word, with a scale for each head and position, which makes 127 of the largest.
    Int8,
}

impl Kept {
    /// Values in a word.
    pub fn of_word(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16 | Self::F16 => 2,
            Self::Int8 => 4,
        }
    }

    /// Words of a head of so many values.
    pub fn words_of_head(self, dim: usize) -> usize {
        dim.div_ceil(self.of_word())
    }

    /// Words of a page of one block.
    pub fn words_of_page(self, key_heads: usize, dim: usize) -> usize {
        2 * key_heads * PAGE * self.words_of_head(dim)
    }

    /// Scales of a page of one block.
    pub fn scales_of_page(self, key_heads: usize) -> usize {
        if self == Self::Int8 { 2 * key_heads * PAGE } else { 0 }
    }
}

/// The pages of a block.
#[derive(Debug, Clone, Copy)]
pub struct Kv<'a> {
    /// How they are packed.
    pub kept: Kept,
    /// [`Kept::words_of_page`] for each page.
    pub words: &'a Buffer,
    /// [`Kept::scales_of_page`] for each page.
    pub scales: Option<&'a Buffer>,
}

/// Four values of a head; zeros behind its end.
#[cube]
pub(crate) fn quad_of_words(
    words: &Array<u32>,
    scales: &Array<f32>,
    slot: usize,
    quad: usize,
    #[comptime] dim: usize,
    #[comptime] kept: Kept,
) -> Four {
    let of_head = comptime!(kept.words_of_head(dim));
    let of_word = comptime!(kept.of_word());
    let mut four = Four::new(0.0);
    #[unroll]
    for i in 0..comptime!(4 / of_word) {
        let at = quad * comptime!(4 / of_word) + i;
        if at < of_head {
            let word = words[slot * of_head + at];
            if comptime!(kept == Kept::F32) {
                four[i] = f32::reinterpret(word);
            } else if comptime!(kept == Kept::Bf16) {
                four[comptime!(2 * i)] = f32::reinterpret(word << 16u32);
                four[comptime!(2 * i + 1)] = f32::reinterpret(word & 0xffff_0000u32);
            } else if comptime!(kept == Kept::F16) {
                four[comptime!(2 * i)] = half_to_float(word & 0xffffu32);
                four[comptime!(2 * i + 1)] = half_to_float(word >> 16u32);
            } else {
                let scale = scales[slot];
                #[unroll]
                for j in 0..4usize {
                    let byte = ((word ^ 0x8080_8080u32) >> comptime!(8 * j as u32)) & 0xffu32;
                    four[j] = (f32::cast_from(byte) - 128.0) * scale;
                }
            }
        }
    }
    four
}

/// Rotates queries in place, and rotates keys and writes them to their pages with their values.
#[derive(Debug, Clone, Copy)]
pub struct Turning<'a> {
    /// Rows of queries, `[rows, query heads·dim]`, and their cosines and sines, `[rows, pairs]`, if they are rotated.
    pub queries: (&'a Buffer, usize, Option<(&'a Buffer, &'a Buffer)>),
    /// Rows of keys beside values, `[rows, 2·key heads·dim]`, likewise.
    pub keys_values: (&'a Buffer, usize, Option<(&'a Buffer, &'a Buffer)>),
    /// Query heads, key heads, and values of a head.
    pub heads: [usize; 3],
    /// Pairs of a head that are rotated.
    pub pairs: usize,
    /// Whether neighbours are pairs.
    pub interleaved: bool,
    /// Where each row of keys and values goes: page times [`crate::attention`]'s positions of a page, and the position in it.
    pub slots: &'a Buffer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    query_heads: usize,
    key_heads: usize,
    dim: usize,
    pairs: usize,
    turns: bool,
    interleaved: bool,
    kept: Kept,
    planes: bool,
}

/// Does what [`Turning`] says; nothing else may be in the pages' places.
pub fn turn_and_keep<R: Runtime>(gpu: &Gpu<R>, turning: Turning<'_>, pages: Kv<'_>) {
    let Turning { queries: (q, query_rows, of_q), keys_values: (kv, rows, of_k), heads, pairs, interleaved, slots } =
        turning;
    let [query_heads, key_heads, dim] = heads;
    let turns = of_q.is_some() || of_k.is_some();
    let shape =
        Shape { query_heads, key_heads, dim, pairs, turns, interleaved, kept: pages.kept, planes: gpu.limits().planes };
    // Queries that are not turned are left alone.
    let of_queries = if of_q.is_some() { query_rows * query_heads } else { 0 };
    let cubes = of_queries + rows * 2 * key_heads;
    if cubes == 0 {
        return;
    }
    launch!(
        gpu,
        gpu.cubes(cubes),
        LANES,
        turn_and_keep_kernel,
        gpu.arg(kv),
        gpu.input(of_q.map(|angles| angles.0)),
        gpu.input(of_q.map(|angles| angles.1)),
        gpu.input(of_k.map(|angles| angles.0)),
        gpu.input(of_k.map(|angles| angles.1)),
        gpu.arg(slots),
        gpu.arg(q),
        gpu.arg(pages.words),
        gpu.output(pages.scales),
        of_queries as u32,
        cubes as u32,
        shape,
    );
}

#[cube(launch_unchecked)]
fn turn_and_keep_kernel(
    kv: &Array<f32>,
    query_cos: &Array<f32>,
    query_sin: &Array<f32>,
    key_cos: &Array<f32>,
    key_sin: &Array<f32>,
    slots: &Array<u32>,
    q: &mut Array<f32>,
    words: &mut Array<u32>,
    scales: &mut Array<f32>,
    of_queries: u32,
    count: u32,
    #[comptime] shape: Shape,
) {
    let unit = UNIT_POS as usize;
    let (dim, pairs) = (comptime!(shape.dim), comptime!(shape.pairs));
    let cube = CUBE_POS;
    if cube < of_queries as usize {
        let row = cube / shape.query_heads;
        let first = cube * dim;
        for pair in range_stepped(unit, pairs, LANES) {
            let (mut one, mut other) = (first + pair, first + pair + pairs);
            if comptime!(shape.interleaved) {
                one = first + 2 * pair;
                other = one + 1;
            }
            let (a, b) = (q[one], q[other]);
            let (cos, sin) = (query_cos[row * pairs + pair], query_sin[row * pairs + pair]);
            q[one] = a * cos - b * sin;
            q[other] = b * cos + a * sin;
        }
    } else if cube < count as usize {
        let cube = cube - of_queries as usize;
        let of_row = comptime!(2 * shape.key_heads);
        let (row, part) = (cube / of_row, cube % of_row);
        let (side, head) = (part / shape.key_heads, part % shape.key_heads);
        let first = cube * dim;
        let mut values = SharedMemory::<f32>::new(comptime!(dim.next_multiple_of(4)));
        for i in range_stepped(unit, comptime!(dim.next_multiple_of(4)), LANES) {
            let mut value = f32::new(0.0);
            if i < dim {
                value = kv[first + i];
            }
            values[i] = value;
        }
        sync_cube();
        if comptime!(shape.turns) {
            if side == 0 {
                for pair in range_stepped(unit, pairs, LANES) {
                    let (mut one, mut other) = (pair, pair + pairs);
                    if comptime!(shape.interleaved) {
                        one = 2 * pair;
                        other = one + 1;
                    }
                    let (a, b) = (values[one], values[other]);
                    let (cos, sin) = (key_cos[row * pairs + pair], key_sin[row * pairs + pair]);
                    values[one] = a * cos - b * sin;
                    values[other] = b * cos + a * sin;
                }
            }
            sync_cube();
        }
        let of_head = comptime!(shape.kept.words_of_head(dim));
        let slot = slots[row] as usize;
        let place = (((slot / PAGE) * 2 + side) * shape.key_heads + head) * PAGE + slot % PAGE;
        let mut inverse = f32::new(0.0);
        if comptime!(shape.kept == Kept::Int8) {
            // Few values: every unit looks at all of them.
            let mut largest = f32::new(0.0);
            for i in 0..dim {
                largest = max(largest, f32::abs(values[i]));
            }
            let scale = largest / 127.0;
            inverse = select(largest > 0.0, 1.0 / max(scale, f32::new(1.175_494_4e-38)), f32::new(0.0));
            if unit == 0 {
                scales[place] = scale;
            }
        }
        for word in range_stepped(unit, of_head, LANES) {
            words[place * of_head + word] = pack(&values, word, inverse, shape.kept);
        }
    }
}

/// A word of values in shared memory.
#[cube]
fn pack(values: &SharedMemory<f32>, word: usize, inverse: f32, #[comptime] kept: Kept) -> u32 {
    if comptime!(kept == Kept::F32) {
        u32::reinterpret(values[word])
    } else if comptime!(kept == Kept::Bf16) {
        (rounded_bits(values[2 * word]) >> 16u32) | (rounded_bits(values[2 * word + 1]) & 0xffff_0000u32)
    } else if comptime!(kept == Kept::F16) {
        float_to_half(values[2 * word]) | (float_to_half(values[2 * word + 1]) << 16u32)
    } else {
        let mut packed = 0u32;
        #[unroll]
        for i in 0..4usize {
            // Twelve million and more: whole numbers, rounded to even, are in the low bits.
            let number = u32::reinterpret(values[4 * word + i] * inverse + 12_582_912.0);
            packed |= (number & 0xffu32) << comptime!(8 * i as u32);
        }
        packed
    }
}

/// Bits of which the upper half is the nearest bf16.
#[cube]
pub(crate) fn rounded_bits(value: f32) -> u32 {
    let bits = u32::reinterpret(value);
    bits + 0x7fffu32 + ((bits >> 16u32) & 1u32)
}

/// The nearest f16, as its bits.
#[cube]
fn float_to_half(value: f32) -> u32 {
    let sign = (u32::reinterpret(value) >> 16u32) & 0x8000u32;
    let size = min(f32::abs(value), f32::new(65504.0));
    let bits = u32::reinterpret(size);
    let normal = ((bits + 0xfffu32 + ((bits >> 13u32) & 1u32)) >> 13u32) - 0x1_c000u32;
    // In units of the least: whole numbers, rounded to even, are in the low bits of 2^23.
    let small = u32::reinterpret(size * 16_777_216.0 + 8_388_608.0) & 0x7fffu32;
    sign | select(bits < 0x3880_0000u32, small, normal)
}

/// Copies page `from` of a block to page `to`.
pub fn copy_page<R: Runtime>(gpu: &Gpu<R>, pages: Kv<'_>, [key_heads, dim]: [usize; 2], from: usize, to: usize) {
    let len = pages.kept.words_of_page(key_heads, dim);
    within(gpu, pages.words, from * len, to * len, len);
    if let Some(scales) = pages.scales {
        let len = pages.kept.scales_of_page(key_heads);
        within(gpu, scales, from * len, to * len, len);
    }
}

/// Copies inside of one buffer, between places that do not touch.
fn within<R: Runtime>(gpu: &Gpu<R>, buffer: &Buffer, from: usize, to: usize, len: usize) {
    let units = 8 * LANES;
    launch!(
        gpu,
        gpu.cubes(len.div_ceil(units)),
        units,
        within_kernel,
        gpu.arg(buffer),
        from as u32,
        to as u32,
        len as u32
    );
}

#[cube(launch_unchecked)]
fn within_kernel(buffer: &mut Array<u32>, from: u32, to: u32, len: u32) {
    let at = CUBE_POS * comptime!(8 * LANES) + UNIT_POS as usize;
    if at < len as usize {
        buffer[to as usize + at] = buffer[from as usize + at];
    }
}
