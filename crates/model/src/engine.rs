//! What a block needs of a device, and the devices that have it.
//!
//! An [`Engine`] multiplies with frozen weights, norms, turns, attends, activates and moves rows; a block, its backward, stashes,
//! plans and steps are written once above it, in [`crate::stack`]. Which engine computes is decided once per pass ([`OnEngine`]): inside
//! of a pass all types are those of one engine.
//!
//! [`host`] computes on slices with this crate's kernels and keeps caches in pages. `gpu` (features `cuda` and `vulkan`) does the same with kernels for GPUs. `burn`
//! (feature `burn`) computes in burn's operations, on the CPU: it is what the others are tested against.
//!
//! Weights are frozen, so a backward gives input gradients only. Operations cannot fail; what goes wrong on a device is told
//! when its results are fetched ([`Engine::download`]).

use std::fmt;
use std::ops::Range;

use crate::checkpoint::NormWeights;
use crate::checkpoint::blocks::WeightColumns;
use crate::config::{ExpertsDesign, MlpDesign};
use crate::device::{Dtype, KvDtype};
use rotary::{Place, Rotary, Turn};
use shapes::{Area, AttentionSizes, Geometry, Grown, Heads};

#[cfg(feature = "burn")]
pub(crate) mod burn;
mod cache;
mod failure;
#[cfg(any(feature = "cuda", feature = "vulkan"))]
pub(crate) mod gpu;
pub(crate) mod host;
mod meter;
mod mixture;
mod on_engine;
pub(crate) mod rotary;
pub(crate) mod shapes;
mod watch;

pub(crate) use cache::{Cache, NewRows, write};
pub use failure::DeviceFailure;
pub use meter::KvMeter;
pub(crate) use mixture::Chosen;
#[cfg(feature = "cuda")]
pub(crate) use on_engine::Cuda;
#[cfg(feature = "vulkan")]
pub(crate) use on_engine::Vulkan;
pub(crate) use on_engine::{Listed, OnEngine, PerEngine, map_engine, on_engine};
pub(crate) use watch::{are_small, is_finite};

/// The operations of a block on one kind of device. `R` rows, `A` of them active; matrices are `[rows, width]`.
pub(crate) trait Engine: fmt::Debug + Clone + Send + Sync + 'static {
    /// A matrix of f32.
    type Rows: fmt::Debug + Clone + Send + Sync;
    /// Numbers of rows.
    type Picked: fmt::Debug + Send + Sync;
    /// A frozen projection, see [`Self::linear`].
    type Linear: fmt::Debug + Send + Sync;
    /// A norm, see [`Self::load_norm`].
    type Norm: fmt::Debug + Send + Sync;
    /// Cosines and sines for the rows of a matrix.
    type Angles: fmt::Debug + Send + Sync;
    /// A [`Geometry`] made ready for [`Self::attend`].
    type Attention: fmt::Debug + Send + Sync;
    /// Sequences of a step made ready for [`Self::attend_cached`].
    type CachedAttention: fmt::Debug;
    /// What remembers where a pass stopped to be finite.
    type Watch: fmt::Debug;
    /// Keys and values of one sequence in several blocks.
    type Cache: Cache<Rows = Self::Rows>;
    /// Which experts of a mixture rows have chosen, see [`Self::choose`].
    type Chosen: Chosen<Self>;

    /// Runs a whole pass where its parts are best started from.
    fn install<R: Send>(&self, pass: impl FnOnce() -> R + Send) -> R;

    /// Waits until what was asked for is done, where that is done later.
    fn finish(&self) -> Result<(), DeviceFailure> {
        Ok(())
    }

    // Weights.

    /// A projection `y = x·W + b` with `W` `[input, output]` in `dtype` and `b` `[output]` in f32. `columns` has the weight's columns,
    /// `input` values each. (A checkpoint's `[output, input]` matrix has them as its rows.)
    fn load_linear(
        &self,
        shape: [usize; 2],
        bias: Option<Vec<f32>>,
        dtype: Dtype,
        columns: impl WeightColumns,
    ) -> Self::Linear;

    /// A projection as [`Self::load_linear`] makes it whose weight stays where `column` reads it from, if the device can do that.
    fn load_linear_in_place(
        &self,
        shape: [usize; 2],
        bias: Option<Vec<f32>>,
        dtype: Dtype,
        column: impl Fn(usize, &mut [f32]) + Send + Sync + 'static,
    ) -> Self::Linear {
        self.load_linear(shape, bias, dtype, column)
    }

    /// Projections of one shape, `count` of them, each as [`Self::load_linear`] makes it; one behind the other, if the device chooses among them ([`Self::choose`]) and `alike` says that
    /// their columns lie alike.
    fn load_linears<C: WeightColumns>(
        &self,
        shape: [usize; 2],
        dtype: Dtype,
        (_count, _alike): (usize, bool),
        given: impl Iterator<Item = (Option<Vec<f32>>, C)>,
    ) -> Vec<Self::Linear> {
        given.map(|(bias, columns)| self.load_linear(shape, bias, dtype, columns)).collect()
    }

    /// A norm, row by row.
    fn load_norm(&self, weights: NormWeights) -> Self::Norm;

    /// Two projections of the same rows, laid out so that [`Self::project_both`] is as fast as it can be.
    fn load_beside(&self, first: Self::Linear, second: Self::Linear) -> (Self::Linear, Self::Linear) {
        (first, second)
    }

    // Between host and device, and rows of matrices.

    /// Row-major `values` as rows of `width`.
    fn upload(&self, values: Vec<f32>, width: usize) -> Self::Rows;

    /// The values of a matrix, row-major.
    ///
    /// # Errors
    /// If the device failed, at whatever led to this matrix.
    fn download(&self, rows: Self::Rows) -> Result<Vec<f32>, DeviceFailure>;

    /// A watch over a pass.
    fn watch(&self) -> Self::Watch;

    /// `x`, if a value of which cannot be squared, as a norm does, `watch` remembers `place`, a number from 1 on, unless it remembers one already. `normed` says that
    /// the next thing that happens to `x` is a norm of its rows.
    fn watched(&self, x: Self::Rows, place: u32, normed: bool, watch: &Self::Watch) -> Self::Rows;

    /// Waits for what leaves the device at the end of a pass, all of it at once.
    ///
    /// # Errors
    /// If the device failed, at whatever led to these matrices.
    fn fetch(&self, leaving: Vec<Leaving<Self::Rows>>, watch: Self::Watch) -> Result<Fetched, DeviceFailure>;

    /// Numbers of rows, ascending, for [`Self::gather`] and [`Self::add_picked`].
    fn pick(&self, rows: &[u32]) -> Self::Picked;

    /// How many row numbers there are.
    fn count(&self, picked: &Self::Picked) -> usize;

    /// Number of rows.
    fn height(&self, rows: &Self::Rows) -> usize;

    /// Values of a row.
    fn width(&self, rows: &Self::Rows) -> usize;

    /// Bytes that a matrix occupies.
    fn bytes(rows: &Self::Rows) -> u64;

    /// A copy of some rows, or a view where the engine has views.
    fn slice(&self, rows: &Self::Rows, range: Range<usize>) -> Self::Rows;

    /// The rows before `at` and those from there on.
    fn split(&self, rows: Self::Rows, at: usize) -> (Self::Rows, Self::Rows);

    /// The first `count` rows.
    fn first(&self, rows: Self::Rows, count: usize) -> Self::Rows;

    /// `top` above `bottom`.
    fn join(&self, top: &Self::Rows, bottom: Self::Rows) -> Self::Rows;

    /// The picked rows.
    fn gather(&self, rows: &Self::Rows, picked: &Self::Picked) -> Self::Rows;

    /// Adds `part` to the rows of `sum` from `first` on, as many as `part` has.
    fn add(&self, sum: Self::Rows, part: &Self::Rows, first: usize) -> Self::Rows;

    /// Adds the rows of `part` to the picked ones of `sum`.
    fn add_picked(&self, sum: Self::Rows, part: &Self::Rows, picked: &Self::Picked) -> Self::Rows;

    // Projections.

    /// The projection of the rows of `x` from `first` on.
    fn project(&self, linear: &Self::Linear, x: &Self::Rows, first: usize) -> Self::Rows;

    /// Two projections of `x`, of [`Self::load_beside`].
    fn project_both(&self, first: &Self::Linear, second: &Self::Linear, x: &Self::Rows) -> (Self::Rows, Self::Rows) {
        (self.project(first, x, 0), self.project(second, x, 0))
    }

    /// `sum` and the projection of `x`, added.
    fn project_onto(&self, linear: &Self::Linear, x: &Self::Rows, sum: Self::Rows) -> Self::Rows;

    /// `dx = dy·Wᵀ`.
    fn project_back(&self, linear: &Self::Linear, dy: &Self::Rows) -> Self::Rows;

    /// Adds `dy·Wᵀ` to the rows of `sum` from `first` on.
    fn project_back_onto(&self, linear: &Self::Linear, dy: &Self::Rows, sum: Self::Rows, first: usize) -> Self::Rows;

    // Products with small trained tables, which have few rows. An area is as wide as the table.

    /// `x·tableᵀ`, `[rows, table's rows]`, for the area of `x`.
    fn times_table_back(&self, x: &Self::Rows, area: &Area, table: &Self::Rows) -> Self::Rows;

    /// Adds `low·table` to the area of `sum`.
    fn add_times_table(&self, sum: Self::Rows, area: &Area, low: &Self::Rows, table: &Self::Rows) -> Self::Rows;

    /// `lowᵀ·x`, `[low's width, width]`, for the `width` columns of the area of `x`.
    fn table_gradient(&self, low: &Self::Rows, x: &Self::Rows, area: &Area, width: usize) -> Self::Rows;

    /// Multiplies every row of the area by `scale`, `[1, width]`.
    fn scale(&self, x: Self::Rows, area: &Area, scale: &Self::Rows) -> Self::Rows;

    /// The sum over rows of `x ∘ dy`, `[1, width]`, for the `width` columns of the area of both.
    fn scale_gradient(&self, x: &Self::Rows, dy: &Self::Rows, area: &Area, width: usize) -> Self::Rows;

    // Element-wise and row-wise.

    /// The normed rows.
    fn normalise(&self, norm: &Self::Norm, x: &Self::Rows) -> Self::Rows;

    /// The normed rows and `sum`, added.
    fn normalise_onto(&self, norm: &Self::Norm, x: &Self::Rows, sum: &Self::Rows) -> Self::Rows {
        self.add(self.normalise(norm, x), sum, 0)
    }

    /// The gradient of `x` from that of [`Self::normalise`]'s result. With `g = w ∘ dy`: `dx = g / r - x · mean(g ∘ x) / r³`; a norm that
    /// subtracts the mean does the same with `x - mean(x)`, and subtracts the mean of the result.
    fn normalise_back(&self, norm: &Self::Norm, x: &Self::Rows, dy: Self::Rows) -> Self::Rows;

    /// Norms each of the first `heads` heads of every row (a head is as wide as the norm) and leaves the rest alone. Returns these heads as
    /// they were too, `[rows, heads·dim]`.
    fn normalise_heads(&self, norm: &Self::Norm, x: Self::Rows, heads: usize) -> (Self::Rows, Self::Rows);

    /// The gradient of [`Self::normalise_heads`], given the heads as they were.
    fn normalise_heads_back(&self, norm: &Self::Norm, before: &Self::Rows, dy: Self::Rows, heads: usize) -> Self::Rows;

    /// Angles of rows at these places.
    fn angles(&self, rotary: &Rotary, places: &[Place]) -> Self::Angles;

    /// Rotates the first `heads` heads of every row and leaves the rest alone: `(a, b) -> (a·cos - b·sin, b·cos + a·sin)` for
    /// pairs `a`, `b` of a head's first values (Su et al. 2021): the halves of those, as in Llama's checkpoints, or neighbours.
    fn rotate(&self, x: Self::Rows, heads: usize, angles: &Self::Angles, turn: Turn) -> Self::Rows;

    /// The inside of an MLP behind its activation, `[rows, width]`: `act(gate) ∘ up` (Shazeer 2020) of gate and up side by side, `[rows, 2·width]`,
    /// or `act(up)`.
    fn activate(&self, mlp: MlpDesign, inside: &Self::Rows) -> Self::Rows;

    /// [`Self::activate`] of a projection of which nothing else is needed.
    fn project_activated(&self, mlp: MlpDesign, inside: &Self::Linear, x: &Self::Rows) -> Self::Rows {
        self.activate(mlp, &self.project(inside, x, 0))
    }

    /// The gradients of what [`Self::activate`] was given, in its shape.
    fn activate_back(&self, mlp: MlpDesign, inside: Self::Rows, dy: &Self::Rows) -> Self::Rows;

    // Single rows, for mixtures of experts.

    /// What `scores`, `[rows, count]`, choose, if the device does that itself for so many rows of a mixture whose first expert has the projections `first`. Where not, the host
    /// does. `gates` have a value for each row, of which the sigmoid is taken.
    fn choose(
        &self,
        _experts: &ExpertsDesign,
        _first: [&Self::Linear; 2],
        _scores: &Self::Rows,
        _gates: Option<&Self::Rows>,
    ) -> Option<Self::Chosen> {
        None
    }

    /// Multiplies each row by its factor.
    fn scale_rows(&self, x: Self::Rows, factors: &[f32]) -> Self::Rows;

    /// The products of the rows of `a` with those of `b`, `[rows, 1]`.
    fn dot_rows(&self, a: &Self::Rows, b: &Self::Rows) -> Self::Rows;

    // Attention, see [`shapes`].

    /// Makes a geometry ready.
    fn attention(&self, heads: Heads, geometry: Geometry) -> Self::Attention;

    /// The output `[A, query_heads·dim]` for queries `q` of the same shape and keys beside values `kv` `[R, 2·key_heads·dim]`. `sinks` has a
    /// score for each query head.
    fn attend(
        &self,
        attention: &Self::Attention,
        q: &Self::Rows,
        kv: &Self::Rows,
        sinks: Option<&Self::Rows>,
    ) -> Self::Rows;

    /// The gradients of `q` and `kv`, in their shapes, from that of the output; `inputs` are queries, keys beside values, and sinks. With `prefix_only`, what belongs to text rows may
    /// be left zero or out.
    fn attend_back(
        &self,
        attention: &Self::Attention,
        inputs: (&Self::Rows, &Self::Rows, Option<&Self::Rows>),
        d_output: &Self::Rows,
        prefix_only: bool,
    ) -> (Self::Rows, Self::Rows);

    // Caches.

    /// An empty cache for as many blocks as there are `windows`, which say how far each sees; its memory is counted by `meter`. Keys and values are kept
    /// in `dtype`, which the device has.
    fn cache(&self, windows: &[Option<usize>], heads: Heads, dtype: KvDtype, meter: &KvMeter) -> Self::Cache;

    /// Makes the queries of a step ready.
    fn cached_attention(&self, heads: Heads, sequences: Vec<Grown>) -> Self::CachedAttention;

    /// The output `[queries, query_heads·dim]` of queries, given with sinks, that attend to the caches' block `block`, one cache per sequence, in
    /// which the new rows' keys and values have been written.
    fn attend_cached(
        &self,
        attention: &Self::CachedAttention,
        block: usize,
        queries: (&Self::Rows, Option<&Self::Rows>),
        caches: &[&mut Self::Cache],
    ) -> Self::Rows;

    /// Turns the queries and keys of new rows, writes keys and values to the caches' block `block`, and gives what [`Self::attend_cached`] does.
    fn attend_new(
        &self,
        attention: &Self::CachedAttention,
        block: usize,
        new: NewRows<'_, Self>,
        caches: &mut [&mut Self::Cache],
    ) -> Self::Rows {
        let NewRows { queries, keys_values, query_angles, key_angles, heads, sinks, sequences } = new;
        let turned = |x, heads, angles: Option<&Self::Angles>| match angles {
            Some(angles) => self.rotate(x, heads, angles, Turn::Forward),
            None => x,
        };
        let queries = turned(queries, heads.query, query_angles);
        let keys_values = turned(keys_values, heads.key_value, key_angles);
        write(block, &keys_values, sequences, caches);
        self.attend_cached(attention, block, (&queries, sinks), caches)
    }

    // Memory, in values of f32, known before anything is allocated. Upper bounds, which may saturate.

    /// What the inside of the MLP takes for each active row and each of its features, at most at a time.
    const MLP_VALUES: u64;

    /// What a pass's attention takes beside its inputs and outputs.
    fn attention_values(&self, sizes: AttentionSizes) -> u64;

    /// The same for a step whose sequences have so many new rows behind so many positions, `(new, kept)`.
    fn cached_attention_values(&self, heads: Heads, sequences: &[(u64, u64)]) -> u64;

    /// What a product takes for a weight of so many values that is kept in `dtype`.
    fn weight_values(&self, dtype: Dtype, values: u64) -> u64;
}

/// Rows that leave the device.
#[derive(Debug)]
pub(crate) struct Leaving<R> {
    pub(crate) rows: R,
    /// The first of them that is wanted.
    pub(crate) first: usize,
    /// What is remembered if one of their values is not finite.
    pub(crate) place: u32,
    /// Whether they may be rounded to bf16.
    #[cfg_attr(not(any(feature = "cuda", feature = "vulkan")), expect(dead_code, reason = "what a GPU saves by it"))]
    pub(crate) rounded: bool,
}

/// What a pass gave.
#[derive(Debug)]
pub(crate) struct Fetched {
    /// Values of the wanted rows of each matrix, row-major.
    pub(crate) matrices: Vec<Vec<f32>>,
    /// The first place that was remembered.
    pub(crate) not_finite: Option<u32>,
}
