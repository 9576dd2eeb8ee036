//! burn's operations, on the CPU: the reference for every other engine, whose kernels are our own.

use std::ops::Range;

use burn::tensor::IndexingUpdateOp;

use super::rotary::{Place, Rotary, Turn};
use super::shapes::{Area, AttentionSizes, Geometry, Grown, Heads};
use super::watch::HostWatch;
use super::{DeviceFailure, Engine, Fetched, KvMeter, Leaving, NormWeights};
use crate::checkpoint::blocks::WeightColumns;
use crate::config::MlpDesign;
use crate::device::{Dtype, KvDtype};
use attention::Group;
use cache::GrowingCache;
use cached_attention::CachedAttention;
use linear::Linear;
use norm::Norm;
use tensor::{Indices, RawDevice, Tensor, columns, from_vec, height, indices, into_vec, rows, width_of};

mod activation;
mod attention;
mod cache;
mod cached_attention;
mod kept;
mod linear;
mod memory;
mod norm;
mod packed;
mod rotary;
mod scores;
mod tensor;

/// The engine of the CPU by burn's backend `Flex`.
#[derive(Debug, Clone)]
pub(crate) struct Burn {
    raw: RawDevice,
}

impl Burn {
    pub(crate) fn new() -> Self {
        Self { raw: RawDevice::Flex(Default::default()) }
    }
}

impl Engine for Burn {
    type Rows = Tensor<2>;
    type Picked = Indices;
    type Linear = Linear;
    type Norm = Norm;
    type Angles = rotary::Angles;
    type Attention = (Heads, Vec<Group>);
    type CachedAttention = CachedAttention;
    type Watch = HostWatch;
    type Cache = GrowingCache;
    type Chosen = std::convert::Infallible;

    fn install<R: Send>(&self, pass: impl FnOnce() -> R + Send) -> R {
        pass()
    }

    fn load_linear(
        &self,
        shape: [usize; 2],
        bias: Option<Vec<f32>>,
        dtype: Dtype,
        columns: impl WeightColumns,
    ) -> Linear {
        Linear::new(self, shape, bias, dtype, &columns)
    }

    fn load_norm(&self, weights: NormWeights) -> Norm {
        Norm::new(weights, &self.raw)
    }

    fn upload(&self, values: Vec<f32>, width: usize) -> Tensor<2> {
        let height = values.len() / width;
        from_vec(values, [height, width], &self.raw)
    }

    fn download(&self, rows: Tensor<2>) -> Result<Vec<f32>, DeviceFailure> {
        into_vec(rows)
    }

    fn watch(&self) -> HostWatch {
        HostWatch::default()
    }

    fn watched(&self, x: Tensor<2>, place: u32, _: bool, watch: &HostWatch) -> Tensor<2> {
        // What cannot be had is told when the pass is fetched.
        if let Ok(values) = into_vec(x.clone()) {
            watch.enter(&values, place);
        }
        x
    }

    fn fetch(&self, leaving: Vec<Leaving<Tensor<2>>>, watch: HostWatch) -> Result<Fetched, DeviceFailure> {
        watch.leave(leaving, |rows| {
            let width = width_of(&rows);
            Ok((into_vec(rows)?, width))
        })
    }

    fn pick(&self, rows: &[u32]) -> Indices {
        indices(rows, &self.raw)
    }

    fn count(&self, picked: &Indices) -> usize {
        let [count] = picked.dims();
        count
    }

    fn height(&self, rows: &Tensor<2>) -> usize {
        height(rows)
    }

    fn width(&self, rows: &Tensor<2>) -> usize {
        width_of(rows)
    }

    fn bytes(rows: &Tensor<2>) -> u64 {
        let [height, width] = rows.dims();
        (height * width * size_of::<f32>()) as u64
    }

    fn slice(&self, all: &Tensor<2>, range: Range<usize>) -> Tensor<2> {
        rows(all, range)
    }

    fn split(&self, all: Tensor<2>, at: usize) -> (Tensor<2>, Tensor<2>) {
        (rows(&all, 0..at), rows(&all, at..height(&all)))
    }

    fn first(&self, all: Tensor<2>, count: usize) -> Tensor<2> {
        rows(&all, 0..count)
    }

    fn join(&self, top: &Tensor<2>, bottom: Tensor<2>) -> Tensor<2> {
        Tensor::cat(vec![top.clone(), bottom], 0)
    }

    fn gather(&self, rows: &Tensor<2>, picked: &Indices) -> Tensor<2> {
        rows.clone().select(0, picked.clone())
    }

    fn add(&self, sum: Tensor<2>, part: &Tensor<2>, first: usize) -> Tensor<2> {
        let ([all, width], count) = (sum.dims(), height(part));
        if count == all {
            return sum + part.clone();
        }
        let range = first..first + count;
        let added = rows(&sum, range.clone()) + part.clone();
        sum.slice_assign([range, 0..width], added)
    }

    fn add_picked(&self, sum: Tensor<2>, part: &Tensor<2>, picked: &Indices) -> Tensor<2> {
        sum.select_assign(0, picked.clone(), part.clone(), IndexingUpdateOp::Add)
    }

    fn project(&self, linear: &Linear, x: &Tensor<2>, first: usize) -> Tensor<2> {
        linear.forward(rows(x, first..height(x)))
    }

    fn project_onto(&self, linear: &Linear, x: &Tensor<2>, sum: Tensor<2>) -> Tensor<2> {
        linear.forward(x.clone()) + sum
    }

    fn project_back(&self, linear: &Linear, dy: &Tensor<2>) -> Tensor<2> {
        linear.backward(dy.clone())
    }

    fn project_back_onto(&self, linear: &Linear, dy: &Tensor<2>, sum: Tensor<2>, first: usize) -> Tensor<2> {
        self.add(sum, &linear.backward(dy.clone()), first)
    }

    fn times_table_back(&self, x: &Tensor<2>, at: &Area, table: &Tensor<2>) -> Tensor<2> {
        area(x, at, width_of(table)).matmul(table.clone().transpose())
    }

    fn add_times_table(&self, sum: Tensor<2>, at: &Area, low: &Tensor<2>, table: &Tensor<2>) -> Tensor<2> {
        let width = width_of(table);
        let added = area(&sum, at, width) + low.clone().matmul(table.clone());
        set_area(sum, at, added)
    }

    fn table_gradient(&self, low: &Tensor<2>, x: &Tensor<2>, at: &Area, width: usize) -> Tensor<2> {
        low.clone().transpose().matmul(area(x, at, width))
    }

    fn scale(&self, x: Tensor<2>, at: &Area, scale: &Tensor<2>) -> Tensor<2> {
        let scaled = area(&x, at, width_of(scale)) * scale.clone();
        set_area(x, at, scaled)
    }

    fn scale_gradient(&self, x: &Tensor<2>, dy: &Tensor<2>, at: &Area, width: usize) -> Tensor<2> {
        (area(x, at, width) * area(dy, at, width)).sum_dim(0)
    }

    fn normalise(&self, norm: &Norm, x: &Tensor<2>) -> Tensor<2> {
        norm.forward(x)
    }

    fn normalise_back(&self, norm: &Norm, x: &Tensor<2>, dy: Tensor<2>) -> Tensor<2> {
        norm.backward(x, dy)
    }

    fn normalise_heads(&self, norm: &Norm, x: Tensor<2>, heads: usize) -> (Tensor<2>, Tensor<2>) {
        let dim = norm.width();
        let (before, rest) = split_columns(&x, heads * dim);
        let normed = norm.forward(&by_head(before.clone(), dim));
        (join_columns(normed.reshape([height(&x), heads * dim]), rest), before)
    }

    fn normalise_heads_back(&self, norm: &Norm, before: &Tensor<2>, dy: Tensor<2>, heads: usize) -> Tensor<2> {
        let dim = norm.width();
        let (gradient, rest) = split_columns(&dy, heads * dim);
        let dx = norm.backward(&by_head(before.clone(), dim), by_head(gradient, dim));
        join_columns(dx.reshape([height(&dy), heads * dim]), rest)
    }

    fn angles(&self, rotary: &Rotary, places: &[Place]) -> rotary::Angles {
        rotary::Angles::new(rotary.cos_sin(places), [places.len(), rotary.pairs()], &self.raw)
    }

    fn rotate(&self, x: Tensor<2>, heads: usize, angles: &rotary::Angles, turn: Turn) -> Tensor<2> {
        let (turned, rest) = split_columns(&x, heads * angles.head_dim());
        join_columns(angles.rotate(turned, heads, turn), rest)
    }

    fn activate(&self, mlp: MlpDesign, inside: &Tensor<2>) -> Tensor<2> {
        activation::forward(mlp, inside)
    }

    fn activate_back(&self, mlp: MlpDesign, inside: Tensor<2>, dy: &Tensor<2>) -> Tensor<2> {
        activation::backward(mlp, inside, dy)
    }

    fn scale_rows(&self, x: Tensor<2>, factors: &[f32]) -> Tensor<2> {
        x * from_vec(factors.to_vec(), [factors.len(), 1], &self.raw)
    }

    fn dot_rows(&self, a: &Tensor<2>, b: &Tensor<2>) -> Tensor<2> {
        (a.clone() * b.clone()).sum_dim(1)
    }

    fn attention(&self, heads: Heads, geometry: Geometry) -> (Heads, Vec<Group>) {
        (heads, attention::groups(heads, &geometry, &self.raw))
    }

    fn attend(
        &self,
        (heads, groups): &(Heads, Vec<Group>),
        q: &Tensor<2>,
        kv: &Tensor<2>,
        sinks: Option<&Tensor<2>>,
    ) -> Tensor<2> {
        attention::forward(groups, *heads, (q, kv, sinks))
    }

    fn attend_back(
        &self,
        (heads, groups): &(Heads, Vec<Group>),
        given: (&Tensor<2>, &Tensor<2>, Option<&Tensor<2>>),
        d_output: &Tensor<2>,
        _prefix_only: bool,
    ) -> (Tensor<2>, Tensor<2>) {
        attention::backward(groups, *heads, given, d_output)
    }

    /// Keeps everything, whatever the windows.
    fn cache(&self, windows: &[Option<usize>], heads: Heads, dtype: KvDtype, meter: &KvMeter) -> GrowingCache {
        GrowingCache::new(windows.len(), heads, dtype, &self.raw, meter)
    }

    fn cached_attention(&self, heads: Heads, sequences: Vec<Grown>) -> CachedAttention {
        CachedAttention::new(heads, &sequences, &self.raw)
    }

    fn attend_cached(
        &self,
        attention: &CachedAttention,
        block: usize,
        given: (&Tensor<2>, Option<&Tensor<2>>),
        caches: &[&mut GrowingCache],
    ) -> Tensor<2> {
        attention.forward(block, given, caches)
    }

    /// Gate and up, copies of both, within limits and not; which of them are beyond; the output's gradient, theirs apart and side by side; and what
    /// slopes are made of.
    const MLP_VALUES: u64 = 14;

    fn attention_values(&self, sizes: AttentionSizes) -> u64 {
        memory::attention(sizes)
    }

    fn cached_attention_values(&self, heads: Heads, sequences: &[(u64, u64)]) -> u64 {
        memory::cached_attention(heads, sequences)
    }

    /// A weight that is kept narrower is widened for its product; one of eight or four bits takes its parts, all of them together, and with their scales.
    fn weight_values(&self, dtype: Dtype, values: u64) -> u64 {
        if dtype == Dtype::F32 { 0 } else { 3 * values }
    }
}

/// The values of an area that is `width` wide.
fn area(x: &Tensor<2>, at: &Area, width: usize) -> Tensor<2> {
    x.clone().slice([at.rows.clone(), at.column..at.column + width])
}

/// Replaces those of an area.
fn set_area(x: Tensor<2>, at: &Area, values: Tensor<2>) -> Tensor<2> {
    let columns = at.column..at.column + width_of(&values);
    x.slice_assign([at.rows.clone(), columns], values)
}

/// `[rows, heads·dim]` as `[rows·heads, dim]`.
fn by_head(x: Tensor<2>, dim: usize) -> Tensor<2> {
    let [height, width] = x.dims();
    x.reshape([height * width / dim, dim])
}

/// The first `at` columns, and the others if there are any.
fn split_columns(x: &Tensor<2>, at: usize) -> (Tensor<2>, Option<Tensor<2>>) {
    let width = width_of(x);
    if at == width { (x.clone(), None) } else { (columns(x, 0..at), Some(columns(x, at..width))) }
}

fn join_columns(left: Tensor<2>, right: Option<Tensor<2>>) -> Tensor<2> {
    match right {
        Some(right) => Tensor::cat(vec![left, right], 1),
        None => left,
    }
}
