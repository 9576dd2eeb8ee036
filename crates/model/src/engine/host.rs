//! The CPU: operations on host slices with this crate's kernels, vectorised for the instruction set found at run time, spread over rayon's
//! threads, without temporaries; caches in pages.

use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::Once;

use rayon::prelude::*;

use super::rotary::{CosSin, Place, Rotary, Turn};
use super::shapes::{Area, AttentionSizes, Geometry, Grown, Heads};
use super::watch::HostWatch;
use super::{DeviceFailure, Engine, Fetched, KvMeter, Leaving};
use crate::checkpoint::NormWeights;
use crate::checkpoint::blocks::WeightColumns;
use crate::config::MlpDesign;
use crate::device::{Dtype, KvDtype};
use cache::PagedCache;
use kept::Kept;
use linear::Linear;
use matmul::{Bf16, F16};
use rows::HostRows;
use simd::{sum2, vectorized};

mod activation;
mod attention;
mod cache;
mod cached_attention;
mod in_place;
mod kept;
mod linear;
pub(crate) mod matmul;
mod memory;
pub(crate) mod norm;
mod rotary;
mod rows;
mod scores;
pub(crate) mod simd;
mod tables;

/// Just below the largest block for which glibc's malloc adapts.
const LARGE: usize = (32 << 20) - (64 << 10);

/// A pass takes and gives back some megabytes dozens of times. glibc returns such memory to the system each time, and the
/// page faults cost a tenth of a small pass; once a block of [`LARGE`] has been freed (it is never touched), malloc keeps
/// up to twice as much for itself. Elsewhere this does nothing.
static KEEP_MEMORY: Once = Once::new();

/// Values that one task of an element-wise kernel takes: enough (some ten microseconds) to be worth handing to a thread.
const TASK: usize = 1 << 14;

/// Rows of this width that one task takes.
fn rows_of_task(width: usize) -> usize {
    (TASK / width.max(1)).max(1)
}

/// A vector of `len` values whose memory is not cleared first: in a small pass that would cost as much as an operation.
///
/// # Safety
/// `fill` must write every value.
#[allow(unsafe_code)]
pub(crate) unsafe fn filled(len: usize, fill: impl FnOnce(&mut [MaybeUninit<f32>])) -> Vec<f32> {
    let mut values = Vec::with_capacity(len);
    fill(&mut values.spare_capacity_mut()[..len]);
    // SAFETY: by the contract of this function.
    unsafe { values.set_len(len) };
    values
}

/// The engine of the CPU.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Host;

impl Engine for Host {
    type Rows = HostRows;
    type Picked = Vec<u32>;
    type Linear = Linear;
    type Norm = NormWeights;
    type Angles = CosSin;
    type Attention = (Heads, Geometry);
    type CachedAttention = (Heads, Vec<Grown>);
    type Watch = HostWatch;
    type Cache = PagedCache;
    type Chosen = std::convert::Infallible;

    /// On one of rayon's threads: from any other, each part would be handed over and waited for, which takes longer than a small
    /// part itself.
    fn install<R: Send>(&self, pass: impl FnOnce() -> R + Send) -> R {
        KEEP_MEMORY.call_once(|| drop(std::hint::black_box(Vec::<u8>::with_capacity(LARGE))));
        rayon::scope(|_| pass())
    }

    fn load_linear(
        &self,
        shape: [usize; 2],
        bias: Option<Vec<f32>>,
        dtype: Dtype,
        columns: impl WeightColumns,
    ) -> Linear {
        Linear::new(shape, bias, dtype, &columns)
    }

    fn load_linear_in_place(
        &self,
        shape: [usize; 2],
        bias: Option<Vec<f32>>,
        _: Dtype,
        column: impl Fn(usize, &mut [f32]) + Send + Sync + 'static,
    ) -> Linear {
        Linear::in_place(shape, bias, column)
    }

    fn load_norm(&self, weights: NormWeights) -> NormWeights {
        weights
    }

    fn upload(&self, values: Vec<f32>, width: usize) -> HostRows {
        HostRows::new(values, width)
    }

    fn download(&self, rows: HostRows) -> Result<Vec<f32>, DeviceFailure> {
        Ok(rows.into_values())
    }

    fn watch(&self) -> HostWatch {
        HostWatch::default()
    }

    fn watched(&self, x: HostRows, place: u32, _: bool, watch: &HostWatch) -> HostRows {
        watch.enter(x.values(), place);
        x
    }

    fn fetch(&self, leaving: Vec<Leaving<HostRows>>, watch: HostWatch) -> Result<Fetched, DeviceFailure> {
        watch.leave(leaving, |rows| {
            let width = rows.width();
            Ok((rows.into_values(), width))
        })
    }

    fn pick(&self, rows: &[u32]) -> Vec<u32> {
        rows.to_vec()
    }

    fn count(&self, picked: &Vec<u32>) -> usize {
        picked.len()
    }

    fn height(&self, rows: &HostRows) -> usize {
        rows.height()
    }

    fn width(&self, rows: &HostRows) -> usize {
        rows.width()
    }

    fn bytes(rows: &HostRows) -> u64 {
        size_of_val(rows.values()) as u64
    }

    fn slice(&self, rows: &HostRows, range: Range<usize>) -> HostRows {
        HostRows::new(rows.part(range).to_vec(), rows.width())
    }

    fn split(&self, rows: HostRows, at: usize) -> (HostRows, HostRows) {
        rows.split(at)
    }

    fn first(&self, rows: HostRows, count: usize) -> HostRows {
        rows.first(count)
    }

    fn join(&self, top: &HostRows, bottom: HostRows) -> HostRows {
        HostRows::new([top.values(), bottom.values()].concat(), top.width())
    }

    fn gather(&self, rows: &HostRows, picked: &Vec<u32>) -> HostRows {
        HostRows::new(rows::gather(rows, picked), rows.width())
    }

    fn add(&self, mut sum: HostRows, part: &HostRows, first: usize) -> HostRows {
        let sums = sum.part_mut(first..first + part.height()).par_chunks_mut(TASK);
        sums.zip(part.values().par_chunks(TASK)).for_each(|(sum, part)| rows::add(sum, part));
        sum
    }

    fn add_picked(&self, mut sum: HostRows, part: &HostRows, picked: &Vec<u32>) -> HostRows {
        rows::add_picked(&mut sum, part, picked);
        sum
    }

    fn project(&self, linear: &Linear, x: &HostRows, first: usize) -> HostRows {
        linear.forward(x.part(first..x.height()))
    }

    fn project_onto(&self, linear: &Linear, x: &HostRows, mut sum: HostRows) -> HostRows {
        linear.forward_onto(x.values(), sum.values_mut());
        sum
    }

    fn project_back(&self, linear: &Linear, dy: &HostRows) -> HostRows {
        linear.backward(dy.values())
    }

    fn project_back_onto(&self, linear: &Linear, dy: &HostRows, mut sum: HostRows, first: usize) -> HostRows {
        let rows = first..sum.height();
        linear.backward_onto(dy.values(), sum.part_mut(rows));
        sum
    }

    fn times_table_back(&self, x: &HostRows, area: &Area, table: &HostRows) -> HostRows {
        tables::times_back(x, area, table)
    }

    fn add_times_table(&self, mut sum: HostRows, area: &Area, low: &HostRows, table: &HostRows) -> HostRows {
        tables::add_times(&mut sum, area, low, table);
        sum
    }

    fn table_gradient(&self, low: &HostRows, x: &HostRows, area: &Area, width: usize) -> HostRows {
        tables::gradient(low, x, area, width)
    }

    fn scale(&self, mut x: HostRows, area: &Area, scale: &HostRows) -> HostRows {
        tables::scale(&mut x, area, scale);
        x
    }

    fn scale_gradient(&self, x: &HostRows, dy: &HostRows, area: &Area, width: usize) -> HostRows {
        tables::scale_gradient(x, dy, area, width)
    }

    fn normalise(&self, norm: &NormWeights, x: &HostRows) -> HostRows {
        HostRows::new(norm::forward(norm, x.values()), x.width())
    }

    fn normalise_back(&self, norm: &NormWeights, x: &HostRows, mut dy: HostRows) -> HostRows {
        norm::backward(norm, x.values(), dy.values_mut());
        dy
    }

    fn normalise_heads(&self, norm: &NormWeights, mut x: HostRows, heads: usize) -> (HostRows, HostRows) {
        let width = heads * norm.weight.len();
        if x.width() == width {
            let normed = norm::forward(norm, x.values());
            return (HostRows::new(normed, width), x);
        }
        let before = x.left(width);
        x.set_left(&norm::forward(norm, before.values()), width);
        (x, before)
    }

    fn normalise_heads_back(&self, norm: &NormWeights, before: &HostRows, mut dy: HostRows, heads: usize) -> HostRows {
        let width = heads * norm.weight.len();
        if dy.width() == width {
            norm::backward(norm, before.values(), dy.values_mut());
            return dy;
        }
        let mut left = dy.left(width);
        norm::backward(norm, before.values(), left.values_mut());
        dy.set_left(left.values(), width);
        dy
    }

    fn angles(&self, rotary: &Rotary, places: &[Place]) -> CosSin {
        rotary.cos_sin(places)
    }

    fn rotate(&self, mut x: HostRows, heads: usize, angles: &CosSin, turn: Turn) -> HostRows {
        let width = x.width();
        rotary::rotate(x.values_mut(), width, heads, angles, turn == Turn::Back);
        x
    }

    fn activate(&self, mlp: MlpDesign, inside: &HostRows) -> HostRows {
        let width = inside.width() / mlp.sides();
        HostRows::new(activation::forward(mlp, inside.values(), width), width)
    }

    fn activate_back(&self, mlp: MlpDesign, mut inside: HostRows, dy: &HostRows) -> HostRows {
        activation::backward(mlp, inside.values_mut(), dy.values(), dy.width());
        inside
    }

    fn scale_rows(&self, mut x: HostRows, factors: &[f32]) -> HostRows {
        let width = x.width();
        let rows = x.values_mut().par_chunks_exact_mut(width).zip(factors).with_min_len(rows_of_task(width));
        rows.for_each(|(row, factor)| row.iter_mut().for_each(|v| *v *= factor));
        x
    }

    fn dot_rows(&self, a: &HostRows, b: &HostRows) -> HostRows {
        let rows = a.values().par_chunks_exact(a.width()).zip(b.values().par_chunks_exact(b.width()));
        let dot = |(a, b): (&[f32], &[f32])| {
            vectorized(
                #[inline(always)]
                || sum2(a, b, |a, b| a * b),
            )
        };
        HostRows::new(rows.with_min_len(rows_of_task(a.width())).map(dot).collect(), 1)
    }

    fn attention(&self, heads: Heads, geometry: Geometry) -> (Heads, Geometry) {
        (heads, geometry)
    }

    fn attend(
        &self,
        (heads, geometry): &(Heads, Geometry),
        q: &HostRows,
        kv: &HostRows,
        sinks: Option<&HostRows>,
    ) -> HostRows {
        let given = (q.values(), kv.values(), sinks.map(HostRows::values));
        HostRows::new(attention::forward(*heads, geometry, given), q.width())
    }

    fn attend_back(
        &self,
        (heads, geometry): &(Heads, Geometry),
        (q, kv, sinks): (&HostRows, &HostRows, Option<&HostRows>),
        d_output: &HostRows,
        prefix_only: bool,
    ) -> (HostRows, HostRows) {
        let given = (q.values(), kv.values(), sinks.map(HostRows::values));
        let (dq, dkv) = attention::backward(*heads, geometry, given, d_output.values(), prefix_only);
        (HostRows::new(dq, q.width()), HostRows::new(dkv, kv.width()))
    }

    fn cache(&self, windows: &[Option<usize>], heads: Heads, dtype: KvDtype, meter: &KvMeter) -> PagedCache {
        PagedCache::new(windows, heads, dtype, meter)
    }

    fn cached_attention(&self, heads: Heads, sequences: Vec<Grown>) -> (Heads, Vec<Grown>) {
        (heads, sequences)
    }

    fn attend_cached(
        &self,
        attention: &(Heads, Vec<Grown>),
        block: usize,
        queries: (&HostRows, Option<&HostRows>),
        caches: &[&mut PagedCache],
    ) -> HostRows {
        // All sequences of a server keep theirs alike.
        match caches.first().map(|cache| cache.dtype()) {
            None | Some(KvDtype::Auto | KvDtype::F32) => attend_cached::<f32>(attention, block, queries, caches),
            Some(KvDtype::Bf16) => attend_cached::<Bf16>(attention, block, queries, caches),
            Some(KvDtype::F16) => attend_cached::<F16>(attention, block, queries, caches),
            Some(KvDtype::Int8) => attend_cached::<i8>(attention, block, queries, caches),
        }
    }

    /// Gate and up, their gradients, and the activation, whose rows a product copies into strips.
    const MLP_VALUES: u64 = 7;

    fn attention_values(&self, sizes: AttentionSizes) -> u64 {
        memory::attention(sizes)
    }

    fn cached_attention_values(&self, heads: Heads, sequences: &[(u64, u64)]) -> u64 {
        memory::cached_attention(heads, sequences)
    }

    /// Weights are read as they lie.
    fn weight_values(&self, _: Dtype, _: u64) -> u64 {
        0
    }
}

/// [`Engine::attend_cached`] for caches that are kept as `E`.
fn attend_cached<E: Kept>(
    (heads, sequences): &(Heads, Vec<Grown>),
    block: usize,
    (q, sinks): (&HostRows, Option<&HostRows>),
    caches: &[&mut PagedCache],
) -> HostRows {
    let pages = caches.iter().map(|cache| cache.pages::<E>(block)).collect::<Vec<_>>();
    let given = (q.values(), sinks.map(HostRows::values));
    HostRows::new(cached_attention::forward(*heads, sequences, &pages, given), q.width())
}
