//! What the keys and values of a page are kept as.

use half::f16;

use super::matmul::{Bf16, F16, Stored, round_to_bf16};
use crate::device::KvDtype;
use crate::engine::shapes::PAGE_TOKENS;

/// A dtype of keys and values.
pub(super) trait Kept: Stored + Default {
    /// Whether each key and each value of a head has a scale of its own.
    const SCALED: bool = false;

    /// What is multiplied by the scale again when it is read.
    fn scale_of(_: &[f32]) -> f32 {
        1.0
    }

    /// One value, divided by the scale.
    fn keep(value: f32, scale: f32) -> Self;

    /// Those of a page, if it is of this dtype.
    fn of(values: &Values) -> Option<Part<'_, Self>>;
}

/// The keys and values of a page, and their scales if they have any: for each block and key head keys `[dim, PAGE_TOKENS]`, then values
/// `[PAGE_TOKENS, dim]`, and the scales of both, `[2, PAGE_TOKENS]`.
#[derive(Debug, Clone)]
pub(super) enum Values {
    F32(Vec<f32>),
    Bf16(Vec<Bf16>),
    F16(Vec<F16>),
    Int8 { values: Vec<i8>, scales: Vec<f32> },
}

/// A part of a page.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part<'a, E> {
    pub(super) values: &'a [E],
    pub(super) scales: &'a [f32],
}

impl<E> Default for Part<'_, E> {
    fn default() -> Self {
        Self { values: &[], scales: &[] }
    }
}

/// Values of one key head in a page.
pub(super) fn head_len(dim: usize) -> usize {
    2 * dim * PAGE_TOKENS
}

impl<'a, E> Part<'a, E> {
    /// Of these heads.
    pub(super) fn heads(self, first: usize, count: usize, dim: usize) -> Self {
        let (values, scales) = (count * head_len(dim), count * 2 * PAGE_TOKENS);
        let scales =
            if self.scales.is_empty() { self.scales } else { &self.scales[first * 2 * PAGE_TOKENS..][..scales] };
        Self { values: &self.values[first * head_len(dim)..][..values], scales }
    }
}

impl Values {
    /// Nothing yet, for so many heads of all blocks.
    pub(super) fn new(dtype: KvDtype, heads: usize, dim: usize) -> Self {
        let count = heads * head_len(dim);
        match dtype {
            KvDtype::Auto | KvDtype::F32 => Self::F32(vec![0.0; count]),
            KvDtype::Bf16 => Self::Bf16(vec![Bf16::default(); count]),
            KvDtype::F16 => Self::F16(vec![F16::default(); count]),
            KvDtype::Int8 => Self::Int8 { values: vec![0; count], scales: vec![0.0; heads * 2 * PAGE_TOKENS] },
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        let bytes = match self {
            Self::F32(values) => size_of_val(values.as_slice()),
            Self::Bf16(values) => size_of_val(values.as_slice()),
            Self::F16(values) => size_of_val(values.as_slice()),
            Self::Int8 { values, scales } => values.len() + size_of_val(scales.as_slice()),
        };
        bytes as u64
    }

    /// Writes one position of heads from `first` on: `kv` is a row of all heads' keys, then all heads' values.
    pub(super) fn write(&mut self, (first, dim): (usize, usize), place: usize, kv: &[f32]) {
        match self {
            Self::F32(values) => write(values, &mut [], (first, dim), place, kv),
            Self::Bf16(values) => write(values, &mut [], (first, dim), place, kv),
            Self::F16(values) => write(values, &mut [], (first, dim), place, kv),
            Self::Int8 { values, scales } => write(values, scales, (first, dim), place, kv),
        }
    }
}

fn write<E: Kept>(page: &mut [E], scales: &mut [f32], (first, dim): (usize, usize), place: usize, kv: &[f32]) {
    let (keys, values) = kv.split_at(kv.len() / 2);
    for (head, (keys, values)) in keys.chunks_exact(dim).zip(values.chunks_exact(dim)).enumerate() {
        let head = first + head;
        let page = &mut page[head * head_len(dim)..][..head_len(dim)];
        let (page_keys, page_values) = page.split_at_mut(dim * PAGE_TOKENS);
        let of = [keys, values].map(E::scale_of);
        page_keys[place..].iter_mut().step_by(PAGE_TOKENS).zip(keys).for_each(|(to, key)| *to = E::keep(*key, of[0]));
        let to = page_values[place * dim..][..dim].iter_mut();
        to.zip(values).for_each(|(to, value)| *to = E::keep(*value, of[1]));
        if E::SCALED {
            let scales = &mut scales[head * 2 * PAGE_TOKENS..][..2 * PAGE_TOKENS];
            (scales[place], scales[PAGE_TOKENS + place]) = (of[0], of[1]);
        }
    }
}

impl Kept for f32 {
    fn keep(value: f32, _: f32) -> Self {
        value
    }

    fn of(values: &Values) -> Option<Part<'_, Self>> {
        match values {
            Values::F32(values) => Some(Part { values, scales: &[] }),
            _ => None,
        }
    }
}

impl Kept for Bf16 {
    fn keep(value: f32, _: f32) -> Self {
        Self(round_to_bf16(value))
    }

    fn of(values: &Values) -> Option<Part<'_, Self>> {
        match values {
            Values::Bf16(values) => Some(Part { values, scales: &[] }),
            _ => None,
        }
    }
}

impl Kept for F16 {
    /// What f16 does not reach becomes the largest that it has.
    fn keep(value: f32, _: f32) -> Self {
        Self(f16::from_f32(value.clamp(-65504.0, 65504.0)).to_bits())
    }

    fn of(values: &Values) -> Option<Part<'_, Self>> {
        match values {
            Values::F16(values) => Some(Part { values, scales: &[] }),
            _ => None,
        }
    }
}

impl Kept for i8 {
    const SCALED: bool = true;

    /// The largest becomes 127. What is not finite stays so: its whole key or value does.
    fn scale_of(values: &[f32]) -> f32 {
        let bits = values.iter().map(|v| v.to_bits() & 0x7fff_ffff).fold(0, u32::max);
        f32::from_bits(bits) / 127.0
    }

    fn keep(value: f32, scale: f32) -> Self {
        // Of nothing, and of what is not finite, nothing is left but the scale.
        if scale > f32::MIN_POSITIVE { (value / scale).round_ties_even() as Self } else { 0 }
    }

    fn of(values: &Values) -> Option<Part<'_, Self>> {
        match values {
            Values::Int8 { values, scales } => Some(Part { values, scales }),
            _ => None,
        }
    }
}
