//! What goes into a pass and comes out of it, and the checks on both.

use std::fmt;

use petals_protocol::{LayoutError, Module, Modules, PassLayout, Span, WeightChange};

use super::stash::Stash;
use crate::config::ModelConfig;
use crate::engine::{DeviceFailure, are_small, is_finite};

/// Called by a pass between two blocks, on the thread that computes.
pub type Pause<'a> = &'a (dyn Fn() + Sync);

/// How a pass is run.
#[derive(Clone, Copy)]
pub struct Manner<'a> {
    /// What is done between blocks: it may run others' rows through them.
    pub pause: Pause<'a>,
    /// Blocks that a device may have before it at a time, at least one: what is asked for later comes behind them. More of them wait until those are
    /// done, and for the pause.
    pub ahead: usize,
    /// Whether results will be rounded to bf16 anyway: they may then leave a device in half as many bytes.
    pub rounded: bool,
}

impl Manner<'_> {
    /// Without pauses, with results as they are.
    pub const PLAIN: Self = Self { pause: &|| (), ahead: usize::MAX, rounded: false };

    /// The same for a part of a pass, whose results are those of the pass, or go on as they are.
    pub(super) fn of(self, last: bool) -> Self {
        Self { rounded: self.rounded && last, ..self }
    }
}

impl fmt::Debug for Manner<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manner").field("ahead", &self.ahead).field("rounded", &self.rounded).finish_non_exhaustive()
    }
}

/// Inputs of a forward. `T` text rows, `m` prefix rows, `n` blocks in the span, `d` hidden size; all row-major.
#[derive(Debug)]
pub struct ForwardPass<'a> {
    /// Shapes, span and injection.
    pub layout: &'a PassLayout,
    /// Packed hidden states of the text, `[T, d]`.
    pub text: Vec<f32>,
    /// Hidden states of the prefix, `[m, d]`, exactly if [`PassLayout::carries_prefix`].
    pub prefix: Option<Vec<f32>>,
    /// Tables of each block, `[n, block_values]` (see [`PassLayout::block_tables`]), exactly if [`PassLayout::has_tables`].
    pub tables: Option<Vec<f32>>,
}

/// Results of a forward.
#[derive(Debug)]
pub struct ForwardOutput {
    /// Hidden states of the text rows that are read, `[output_rows, d]`.
    pub text: Vec<f32>,
    /// Hidden states of the prefix, `[m, d]`, exactly if [`PassLayout::returns_prefix`].
    pub prefix: Option<Vec<f32>>,
    /// What the backward needs, if it was to be kept.
    pub stash: Option<Stash>,
    /// Keys beside values of the prefix in each block as they are attended to, `[n, m, 2·key]`, if they were asked for.
    pub keys_values: Option<Vec<f32>>,
}

/// Gradients of a forward's outputs.
#[derive(Debug)]
pub struct OutputGrads {
    /// Of the text rows that are read, `[output_rows, d]`.
    pub text: Vec<f32>,
    /// Of the prefix, `[m, d]`, exactly if [`PassLayout::returns_prefix`].
    pub prefix: Option<Vec<f32>>,
}

/// Gradients of a forward's inputs.
#[derive(Debug, Clone, PartialEq)]
pub struct InputGrads {
    /// Of the text, `[T, d]`, if asked for.
    pub text: Option<Vec<f32>>,
    /// Of the prefix, `[m, d]`, exactly if [`PassLayout::carries_prefix`]; summed over the examples.
    pub prefix: Option<Vec<f32>>,
    /// Of each block's tables, `[n, block_values]`, exactly if [`PassLayout::has_tables`]; summed over the examples.
    pub tables: Option<Vec<f32>>,
}

/// Why a pass was refused or failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PassError {
    /// The layout makes no sense for any model.
    #[error("the pass has an impossible layout")]
    Layout(#[from] LayoutError),
    /// Blocks that are not here.
    #[error("blocks {asked} were asked for, only {held} are here")]
    Span {
        /// Blocks of the layout.
        asked: Span,
        /// Blocks of the stack.
        held: Span,
    },
    /// A sequence longer than the model's positions.
    #[error("a sequence has {length} positions with its prefix, the model has {max}")]
    TooLong {
        /// Positions of the longest example.
        length: usize,
        /// `max_position_embeddings` of the model.
        max: usize,
    },
    /// More rows at a time than a step may add to a sequence where blocks have windows.
    #[error("a step adds {rows} rows to a sequence, and blocks with a sliding window take {max} at a time")]
    LongStep {
        /// Rows of the step.
        rows: usize,
        /// Most that are taken.
        max: usize,
    },
    /// A change of a matrix that these blocks do not have, or cannot change like that.
    #[error("the pass changes {module}, and of these blocks only {has:?} can be changed like that")]
    Module {
        /// The matrix.
        module: Module,
        /// Those that can.
        has: Modules,
    },
    /// An input of another size than the layout implies.
    #[error("{what}: {got} values were given, {expected} expected")]
    Size {
        /// Which input.
        what: &'static str,
        /// Values given.
        got: usize,
        /// Values implied by the layout.
        expected: usize,
    },
    /// An input that the layout needs.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// An input that the layout has no place for.
    #[error("{0} is given but has no place in this pass")]
    Superfluous(&'static str),
    /// The stash was not made by a stack of these blocks.
    #[error("the stash does not belong to these blocks")]
    ForeignStash,
    /// The cache was made by a stack on another device.
    #[error("the cache is on another device than these blocks")]
    ForeignCache,
    /// A value is NaN or infinite: the inputs were extreme, or the weights are broken.
    #[error("{0} is not finite")]
    NotFinite(&'static str),
    /// What a block gives is NaN, infinite or too large for a norm, and what came before was not: the inputs were extreme, the block's weights are broken, or its dtype is too
    /// narrow for them.
    #[error("what block {0} gives is not finite, or so large that its square is not")]
    BlockNotFinite(u32),
    /// Keys and values of a prefix where there is none.
    #[error("keys and values of a prefix were asked for, and the pass has no prefix")]
    NoPrefix,
    /// Rows to read that are not ascending or not there, or a prefix where there can be none.
    #[error("the rows of the step make no sense")]
    Rows,
    /// A matrix that a device has no place for, however much memory is free.
    #[error(
        "a matrix of the pass has {bytes} bytes, and {device} holds at most {limit} in one piece: send fewer rows at a time"
    )]
    Buffer {
        /// Which device.
        device: String,
        /// Bytes of the matrix.
        bytes: u64,
        /// The largest buffer of the device.
        limit: u64,
    },
    /// The device failed.
    #[error("the pass could not be computed")]
    Device(#[from] DeviceFailure),
}

impl ForwardPass<'_> {
    pub(super) fn check(&self, held: Span, config: &ModelConfig) -> Result<(), PassError> {
        let layout = self.layout;
        layout.validate()?;
        if !held.covers(layout.span) {
            return Err(PassError::Span { asked: layout.span, held });
        }
        changeable(layout.weights, config)?;
        let longest = layout.lengths.iter().copied().max().unwrap_or_default() as usize;
        let (length, max) = (longest + layout.prefix_rows(), config.max_position_embeddings);
        if length > max {
            return Err(PassError::TooLong { length, max });
        }
        let (m, d) = (layout.prefix_rows(), config.hidden_size);
        size("the text", &self.text, layout.tokens() * d)?;
        optional("the prefix", self.prefix.as_deref(), layout.carries_prefix(), m * d)?;
        let values = layout.span.len() * layout.block_values(config.block_widths());
        optional("the tables", self.tables.as_deref(), layout.has_tables(), values)
    }
}

impl OutputGrads {
    pub(super) fn check(&self, layout: &PassLayout, held: Span, config: &ModelConfig) -> Result<(), PassError> {
        if !held.covers(layout.span) {
            return Err(PassError::ForeignStash);
        }
        let d = config.hidden_size;
        size("the text gradient", &self.text, layout.output_rows() * d)?;
        let prefix = layout.prefix_rows() * d;
        optional("the prefix gradient", self.prefix.as_deref(), layout.returns_prefix(), prefix)
    }
}

impl InputGrads {
    pub(super) fn check_finite(&self) -> Result<(), PassError> {
        let named = [
            ("the text gradient", &self.text),
            ("the prefix gradient", &self.prefix),
            ("the gradient of the tables", &self.tables),
        ];
        for (what, values) in named {
            values.as_ref().map_or(Ok(()), |values| finite(what, values))?;
        }
        Ok(())
    }
}

/// Refuses changes of matrices that the blocks do not have.
pub(super) fn changeable(change: WeightChange, config: &ModelConfig) -> Result<(), PassError> {
    match config.lacks(change) {
        Some((module, has)) => Err(PassError::Module { module, has }),
        None => Ok(()),
    }
}

/// Refuses values that no norm can square.
pub(super) fn small_enough(what: &'static str, values: &[f32]) -> Result<(), PassError> {
    if are_small(values) { Ok(()) } else { Err(PassError::NotFinite(what)) }
}

/// Refuses NaN and infinities.
pub(super) fn finite(what: &'static str, values: &[f32]) -> Result<(), PassError> {
    if is_finite(values) { Ok(()) } else { Err(PassError::NotFinite(what)) }
}

fn size(what: &'static str, values: &[f32], expected: usize) -> Result<(), PassError> {
    let got = values.len();
    if got == expected { Ok(()) } else { Err(PassError::Size { what, got, expected }) }
}

pub(super) fn optional(
    what: &'static str,
    values: Option<&[f32]>,
    wanted: bool,
    expected: usize,
) -> Result<(), PassError> {
    match (values, wanted) {
        (Some(values), true) => size(what, values, expected),
        (None, true) => Err(PassError::Missing(what)),
        (Some(_), false) => Err(PassError::Superfluous(what)),
        (None, false) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use petals_protocol::Injection;
    use serde_json::json;

    use super::*;

    #[test]
    fn changes_of_matrices_that_are_not_there_are_refused_by_name() {
        let config = json!({
            "model_type": "bloom", "vocab_size": 16, "hidden_size": 8, "n_layer": 2, "n_head": 4,
        });
        let config = ModelConfig::from_json(&config.to_string()).unwrap();
        let span = Span::new(0, 2).unwrap();
        let check = |module: Module| {
            let weights = WeightChange::LowRank { rank: 2, modules: [module].into_iter().collect() };
            let layout = PassLayout {
                span,
                lengths: vec![3],
                prefix_len: 0,
                injection: Injection::None,
                weights,
                read_rows: None,
            };
            let tables = Some(vec![0.0; 2 * layout.block_values(config.block_widths())]);
            ForwardPass { layout: &layout, text: vec![0.0; 3 * 8], prefix: None, tables }.check(span, &config)
        };
        assert!(check(Module::Up).is_ok());
        let refused = check(Module::Gate).unwrap_err();
        assert!(matches!(refused, PassError::Module { module: Module::Gate, .. }), "{refused}");
        assert!(refused.to_string().contains("gate_proj") && refused.to_string().contains("up_proj"), "{refused}");
    }
}
