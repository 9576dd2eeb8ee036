//! GPUs by kernels of our own (the crate `petals-kernels`), on whichever runtime drives them.
//!
//! Everything between kernels is f32. Weights are packed in the layout that all products read, `[output, input]`; caches are pages in one buffer for each block. Nothing in a
//! span waits for the device but a mixture that many rows go through, or that is trained through: launches are queued, and a pass waits once, for its result.

use std::ops::Range;
use std::sync::Arc;

use cubecl::prelude::Runtime;
use petals_kernels as kernels;

use super::rotary::{Place, Rotary, Turn};
use super::shapes::{Area, AttentionSizes, Geometry, Grown, Heads};
use super::{DeviceFailure, Engine, Fetched, KvMeter, Leaving, NewRows, NormWeights};
use crate::checkpoint::blocks::WeightColumns;
use crate::config::{ExpertsDesign, MlpDesign};
use crate::device::{Dtype, KvDtype};
use attention::Attention;
use cache::PagedCache;
use cached_attention::CachedAttention;
use linear::Linear;
use norm::Norm;
use pool::Pools;
use rows::GpuRows;

mod attention;
mod cache;
mod cached_attention;
mod linear;
mod memory;
mod mixture;
mod norm;
mod open;
mod pack;
mod pool;
mod projection;
mod rotary;
mod rows;
mod transfer;

/// The engine of a GPU.
#[derive(Debug)]
pub(crate) struct Gpu<R: Runtime> {
    gpu: kernels::Gpu<R>,
    pools: Arc<Pools<R>>,
}

impl<R: Runtime> Clone for Gpu<R> {
    fn clone(&self) -> Self {
        Self { gpu: self.gpu.clone(), pools: Arc::clone(&self.pools) }
    }
}

impl<R: Runtime> Engine for Gpu<R> {
    type Rows = GpuRows;
    type Picked = kernels::Buffer;
    type Linear = Linear;
    type Norm = Norm;
    type Angles = rotary::Angles;
    type Attention = Attention;
    type CachedAttention = CachedAttention;
    type Watch = kernels::Watch;
    type Cache = PagedCache<R>;
    type Chosen = mixture::Chosen;

    fn install<T: Send>(&self, pass: impl FnOnce() -> T + Send) -> T {
        pass()
    }

    fn finish(&self) -> Result<(), DeviceFailure> {
        self.answer(self.gpu.finish())
    }

    fn load_linear(
        &self,
        shape: [usize; 2],
        bias: Option<Vec<f32>>,
        dtype: Dtype,
        columns: impl WeightColumns,
    ) -> Linear {
        Linear::new(&self.gpu, shape, bias, dtype, &columns)
    }

    fn load_linears<C: WeightColumns>(
        &self,
        shape: [usize; 2],
        dtype: Dtype,
        which: (usize, bool),
        given: impl Iterator<Item = (Option<Vec<f32>>, C)>,
    ) -> Vec<Linear> {
        Linear::several(&self.gpu, shape, dtype, which, given)
    }

    fn load_norm(&self, weights: NormWeights) -> Norm {
        Norm::new(&self.gpu, weights)
    }

    fn load_beside(&self, first: Linear, second: Linear) -> (Linear, Linear) {
        Linear::beside(&self.gpu, first, second)
    }

    fn upload(&self, values: Vec<f32>, width: usize) -> GpuRows {
        GpuRows::new(self.gpu.upload(&values), values.len() / width, width)
    }

    fn download(&self, rows: GpuRows) -> Result<Vec<f32>, DeviceFailure> {
        self.downloaded(rows)
    }

    fn watch(&self) -> kernels::Watch {
        self.gpu.watch()
    }

    fn watched(&self, x: GpuRows, place: u32, normed: bool, watch: &kernels::Watch) -> GpuRows {
        self.noting(x, place, normed, watch)
    }

    fn fetch(&self, leaving: Vec<Leaving<GpuRows>>, watch: kernels::Watch) -> Result<Fetched, DeviceFailure> {
        self.fetched(leaving, watch)
    }

    fn pick(&self, rows: &[u32]) -> kernels::Buffer {
        self.gpu.upload_words(rows)
    }

    fn count(&self, picked: &kernels::Buffer) -> usize {
        picked.len()
    }

    fn height(&self, rows: &GpuRows) -> usize {
        rows.height
    }

    fn width(&self, rows: &GpuRows) -> usize {
        rows.width
    }

    fn bytes(rows: &GpuRows) -> u64 {
        (rows.len() * size_of::<f32>()) as u64
    }

    fn slice(&self, rows: &GpuRows, range: Range<usize>) -> GpuRows {
        if range == (0..rows.height) {
            return rows.clone();
        }
        let part = self.empty(range.len(), rows.width);
        kernels::copy(&self.gpu, (&rows.values, range.start * rows.width), (&part.values, 0), part.len());
        part
    }

    fn split(&self, rows: GpuRows, at: usize) -> (GpuRows, GpuRows) {
        let rest = self.slice(&rows, at..rows.height);
        (self.slice(&rows, 0..at), rest)
    }

    fn first(&self, rows: GpuRows, count: usize) -> GpuRows {
        self.slice(&rows, 0..count)
    }

    fn join(&self, top: &GpuRows, bottom: GpuRows) -> GpuRows {
        let all = self.empty(top.height + bottom.height, top.width);
        kernels::copy(&self.gpu, (&top.values, 0), (&all.values, 0), top.len());
        kernels::copy(&self.gpu, (&bottom.values, 0), (&all.values, top.len()), bottom.len());
        all
    }

    fn gather(&self, rows: &GpuRows, picked: &kernels::Buffer) -> GpuRows {
        let own = self.empty(picked.len(), rows.width);
        kernels::gather(&self.gpu, &rows.values, picked, &own.values, rows.width);
        own
    }

    fn add(&self, sum: GpuRows, part: &GpuRows, first: usize) -> GpuRows {
        let sum = self.own(sum);
        kernels::add(&self.gpu, &part.values, (&sum.values, first * sum.width), part.len());
        sum
    }

    fn add_picked(&self, sum: GpuRows, part: &GpuRows, picked: &kernels::Buffer) -> GpuRows {
        let sum = self.own(sum);
        kernels::add_picked(&self.gpu, &part.values, picked, &sum.values, sum.width);
        sum
    }

    fn project(&self, linear: &Linear, x: &GpuRows, first: usize) -> GpuRows {
        let y = self.empty(x.height - first, linear.outputs());
        self.product(linear, x, first, kernels::Inside::Plain, kernels::Onto::Write(&y.values));
        y
    }

    fn project_both(&self, first: &Linear, second: &Linear, x: &GpuRows) -> (GpuRows, GpuRows) {
        let Some(both) = first.with(second) else { return (self.project(first, x, 0), self.project(second, x, 0)) };
        let [a, b] = [first, second].map(|linear| self.empty(x.height, linear.outputs()));
        let onto = kernels::Onto::WriteTwo(&a.values, a.width, &b.values);
        self.product(&both, x, 0, kernels::Inside::Plain, onto);
        (a, b)
    }

    fn project_onto(&self, linear: &Linear, x: &GpuRows, sum: GpuRows) -> GpuRows {
        let sum = self.own(sum);
        self.product(linear, x, 0, kernels::Inside::Plain, kernels::Onto::Add(&sum.values, 0));
        sum
    }

    fn project_back(&self, linear: &Linear, dy: &GpuRows) -> GpuRows {
        let dx = self.empty(dy.height, linear.weight().inputs);
        self.product_back(linear, dy, kernels::Onto::Write(&dx.values));
        dx
    }

    fn project_back_onto(&self, linear: &Linear, dy: &GpuRows, sum: GpuRows, first: usize) -> GpuRows {
        let sum = self.own(sum);
        self.product_back(linear, dy, kernels::Onto::Add(&sum.values, first));
        sum
    }

    fn times_table_back(&self, x: &GpuRows, area: &Area, table: &GpuRows) -> GpuRows {
        let low = self.empty(area.rows.len(), table.height);
        let shape = [low.height, table.width, table.height];
        kernels::small_product(&self.gpu, (x.area(area), table.turned()), low.all(), shape, false);
        low
    }

    fn add_times_table(&self, sum: GpuRows, area: &Area, low: &GpuRows, table: &GpuRows) -> GpuRows {
        let sum = self.own(sum);
        let shape = [area.rows.len(), table.height, table.width];
        kernels::small_product(&self.gpu, (low.all(), table.all()), sum.area(area), shape, true);
        sum
    }

    fn table_gradient(&self, low: &GpuRows, x: &GpuRows, area: &Area, width: usize) -> GpuRows {
        let gradient = self.empty(low.width, width);
        let shape = [low.width, area.rows.len(), width];
        kernels::small_product(&self.gpu, (low.turned(), x.area(area)), gradient.all(), shape, false);
        gradient
    }

    fn scale(&self, x: GpuRows, area: &Area, scale: &GpuRows) -> GpuRows {
        let x = self.own(x);
        kernels::scale_area(&self.gpu, &scale.values, x.area(area), [area.rows.len(), scale.width]);
        x
    }

    fn scale_gradient(&self, x: &GpuRows, dy: &GpuRows, area: &Area, width: usize) -> GpuRows {
        let gradient = self.empty(1, width);
        kernels::column_sums(&self.gpu, (x.area(area), dy.area(area)), &gradient.values, area.rows.len());
        gradient
    }

    fn normalise(&self, norm: &Norm, x: &GpuRows) -> GpuRows {
        let y = self.empty(x.height, x.width);
        norm.forward(&self.gpu, x, 1, (&y, None));
        y
    }

    fn normalise_back(&self, norm: &Norm, x: &GpuRows, dy: GpuRows) -> GpuRows {
        norm.backward(&self.gpu, x, &dy, 1, self.empty(dy.height, dy.width))
    }

    fn normalise_heads(&self, norm: &Norm, x: GpuRows, heads: usize) -> (GpuRows, GpuRows) {
        let (y, before) = (self.empty(x.height, x.width), self.empty(x.height, heads * norm.width()));
        norm.forward(&self.gpu, &x, heads, (&y, Some(&before)));
        (y, before)
    }

    fn normalise_heads_back(&self, norm: &Norm, before: &GpuRows, dy: GpuRows, heads: usize) -> GpuRows {
        norm.backward(&self.gpu, before, &dy, heads, self.empty(dy.height, dy.width))
    }

    fn angles(&self, rotary: &Rotary, places: &[Place]) -> rotary::Angles {
        rotary::Angles::new(&self.gpu, rotary.cos_sin(places), rotary.pairs())
    }

    fn rotate(&self, x: GpuRows, heads: usize, angles: &rotary::Angles, turn: Turn) -> GpuRows {
        let x = self.own(x);
        angles.rotate(&self.gpu, &x, heads, turn);
        x
    }

    fn activate(&self, mlp: MlpDesign, inside: &GpuRows) -> GpuRows {
        let y = self.empty(inside.height, inside.width / mlp.sides());
        kernels::activate(&self.gpu, (rows::activation(mlp), mlp.gated), &inside.values, &y.values, y.width);
        y
    }

    fn project_activated(&self, mlp: MlpDesign, inside: &Linear, x: &GpuRows) -> GpuRows {
        if !mlp.gated || x.height >= kernels::MANY_ROWS {
            return self.activate(mlp, &self.project(inside, x, 0));
        }
        let y = self.empty(x.height, inside.outputs() / 2);
        let gated = kernels::Inside::Gated(rows::activation(mlp));
        self.product(inside, x, 0, gated, kernels::Onto::Write(&y.values));
        y
    }

    fn activate_back(&self, mlp: MlpDesign, inside: GpuRows, dy: &GpuRows) -> GpuRows {
        let inside = self.own(inside);
        kernels::activate_back(&self.gpu, (rows::activation(mlp), mlp.gated), &dy.values, &inside.values, dy.width);
        inside
    }

    fn choose(
        &self,
        experts: &ExpertsDesign,
        first: [&Linear; 2],
        scores: &GpuRows,
        gates: Option<&GpuRows>,
    ) -> Option<mixture::Chosen> {
        self.chosen(experts, first, scores, gates)
    }

    fn scale_rows(&self, x: GpuRows, factors: &[f32]) -> GpuRows {
        let x = self.own(x);
        kernels::scale_rows(&self.gpu, &x.values, &self.gpu.upload(factors), x.width);
        x
    }

    fn dot_rows(&self, a: &GpuRows, b: &GpuRows) -> GpuRows {
        let products = self.empty(a.height, 1);
        kernels::dot_rows(&self.gpu, (&a.values, &b.values), &products.values, a.width);
        products
    }

    fn attention(&self, heads: Heads, geometry: Geometry) -> Attention {
        Attention::new(&self.gpu, heads, geometry)
    }

    fn attend(&self, attention: &Attention, q: &GpuRows, kv: &GpuRows, sinks: Option<&GpuRows>) -> GpuRows {
        let output = self.empty(q.height, q.width);
        attention.forward(&self.gpu, (q, kv, sinks), &output);
        output
    }

    fn attend_back(
        &self,
        attention: &Attention,
        (q, kv, sinks): (&GpuRows, &GpuRows, Option<&GpuRows>),
        d_output: &GpuRows,
        _prefix_only: bool,
    ) -> (GpuRows, GpuRows) {
        let (dq, dkv) = (self.empty(q.height, q.width), self.empty(kv.height, kv.width));
        attention.backward(&self.gpu, (q, kv, sinks), d_output, (&dq, &dkv));
        (dq, dkv)
    }

    fn cache(&self, windows: &[Option<usize>], heads: Heads, dtype: KvDtype, meter: &KvMeter) -> PagedCache<R> {
        PagedCache::new(self.pools.pool(&self.gpu, windows, heads, dtype), meter)
    }

    fn cached_attention(&self, heads: Heads, sequences: Vec<Grown>) -> CachedAttention {
        CachedAttention::new(&self.gpu, heads, sequences)
    }

    fn attend_cached(
        &self,
        attention: &CachedAttention,
        block: usize,
        (q, sinks): (&GpuRows, Option<&GpuRows>),
        caches: &[&mut PagedCache<R>],
    ) -> GpuRows {
        let output = self.empty(q.height, q.width);
        attention.forward(&self.gpu, block, (q, sinks), caches, &output);
        output
    }

    fn attend_new(
        &self,
        attention: &CachedAttention,
        block: usize,
        new: NewRows<'_, Self>,
        caches: &mut [&mut PagedCache<R>],
    ) -> GpuRows {
        let NewRows { queries, keys_values, query_angles, key_angles, heads: _, sinks, sequences } = new;
        let queries = self.own(queries);
        attention.keep(&self.gpu, block, (&queries, query_angles), (&keys_values, key_angles), sequences, caches);
        self.attend_cached(attention, block, (&queries, sinks), caches)
    }

    /// Gate and up, their gradients, what the activation gives and its gradient.
    const MLP_VALUES: u64 = 7;

    fn attention_values(&self, sizes: AttentionSizes) -> u64 {
        memory::attention(sizes)
    }

    fn cached_attention_values(&self, heads: Heads, sequences: &[(u64, u64)]) -> u64 {
        memory::cached_attention(heads, sequences)
    }

    /// Weights are read as they are packed.
    fn weight_values(&self, _: Dtype, _: u64) -> u64 {
        0
    }
}

#[cfg(all(test, feature = "vulkan"))]
mod tests;
