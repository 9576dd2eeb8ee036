//! What a block computes, as data: everything that families of models do differently.

/// What every block of a model computes; [`LayerDesign`] has what differs between them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BlockDesign {
    /// Which norm, everywhere but on single heads.
    pub norm: NormKind,
    /// Added to the mean square, or the variance, before its root is taken.
    pub norm_eps: f32,
    /// Where it is.
    pub norms: NormPlaces,
    /// What enters the MLP.
    pub mlp_reads: MlpReads,
    /// Whether attention and MLP add to their normed inputs, and not to what these were before (a variant of BLOOM).
    pub normed_residuals: bool,
    /// Queries, keys, values, and how they attend.
    pub attention: AttentionDesign,
    /// The dense MLP.
    pub mlp: MlpDesign,
    /// The mixture of experts, of layers that have one in place of the MLP.
    pub experts: Option<ExpertsDesign>,
}

/// How rows are normed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// `w ∘ x / sqrt(mean(x²) + eps)` (Zhang and Sennrich 2019; `LlamaRMSNorm`).
    RootMeanSquare,
    /// The same with `1 + w` (`GemmaRMSNorm`).
    RootMeanSquarePlusOne,
    /// `w ∘ (x - mean(x)) / sqrt(var(x) + eps) + b` (Ba et al. 2016; `torch.nn.LayerNorm`).
    Layer,
    /// The same without `b`.
    LayerWithoutBias,
}

/// Where a block norms what goes into attention and MLP, or comes out of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormPlaces {
    /// What goes in: nearly everywhere.
    Before,
    /// What comes out, before it is added (OLMo 2).
    After,
    /// Both (Gemma 2 and 3, GLM-4).
    Around,
}

/// What enters the MLP, before its norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MlpReads {
    /// The block's input and what attention added to it: one after the other.
    Residual,
    /// The block's input: attention and MLP side by side, each with its norm (GPT-NeoX).
    Input,
    /// The same normed rows as attention (Falcon 7B).
    AttentionInput,
}

/// Queries, keys and values, and how they attend.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionDesign {
    /// Whether the query, key and value projections have biases.
    pub qkv_bias: bool,
    /// Whether the output projection has a bias.
    pub output_bias: bool,
    /// Norms of queries and keys before they are rotated.
    pub head_norms: HeadNorms,
    /// Scores are `scale · q·k`.
    pub scale: f32,
    /// Scores `s` become `c · tanh(s / c)` (Gemma 2).
    pub soft_cap: Option<f32>,
    /// A bias of the scores that falls with the distance.
    pub alibi: Option<Alibi>,
    /// Whether each head has a score that goes to no key (gpt-oss).
    pub sinks: bool,
}

/// Which norms queries and keys have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadNorms {
    /// None.
    None,
    /// One over each head, all with the same weights (Qwen3, Gemma 3).
    PerHead,
    /// One over all heads together (OLMo 2).
    Whole,
}

/// Biases `factor · slope(head) · position(key)` of the scores (Press et al. 2021).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Alibi {
    /// What slopes are multiplied by.
    pub factor: f32,
    /// Whether slope and product are rounded to bfloat16, as Falcon does whatever its weights are kept in.
    pub rounded: bool,
}

/// An MLP: `down(act(gate(x)) ∘ up(x))` where it is gated, else `down(act(up(x)))`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MlpDesign {
    /// The activation.
    pub activation: Activation,
    /// Whether it has a gate.
    pub gated: bool,
    /// Whether its projections have biases.
    pub bias: bool,
}

/// An MLP's activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// `x · Φ(x)` with the normal distribution's `Φ`.
    Gelu,
    /// The same with `Φ` as a tanh of a cubic: `gelu_new`, `gelu_pytorch_tanh`, and BLOOM's own.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)²`.
    ReluSquared,
    /// `(up + 1) · gate · sigmoid(1.702 · gate)` with the gate at most 7 and `up` within 7 of zero (gpt-oss); has a gate always.
    ClampedSwish,
}

/// A mixture of experts: each row goes through those `used` of `count` that the router likes best.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpertsDesign {
    /// How many there are.
    pub count: usize,
    /// Through how many a row goes.
    pub used: usize,
    /// Width of each.
    pub width: usize,
    /// How the router's scores become weights.
    pub weights: ExpertWeights,
    /// Whether router and experts have biases (gpt-oss).
    pub bias: bool,
    /// One that all rows go through.
    pub shared: Option<SharedExpert>,
}

/// How the router's scores become weights of the experts' outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpertWeights {
    /// A softmax over all of them, of which those chosen keep theirs (Qwen2-MoE).
    OfAll,
    /// A softmax over those chosen: the same as one over all whose chosen part is divided by its sum (Mixtral, Qwen3-MoE, gpt-oss).
    OfChosen,
}

/// An expert that all rows go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedExpert {
    /// Its width.
    pub width: usize,
    /// Whether its output is multiplied by `sigmoid(x·g)`.
    pub gated: bool,
}

/// What blocks of a model do each in their own way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerDesign {
    /// A query at position `p` sees keys at `p - window + 1` to `p`; `None`: all before it.
    pub window: Option<usize>,
    /// Which of the model's rotary embeddings turns queries and keys; `None`: none does.
    pub rotary: Option<usize>,
    /// Whether it has a mixture of experts in place of the MLP.
    pub experts: bool,
}

/// What happens to the rows of the embedding table, and of anything else that enters a model as embeddings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EmbeddingDesign {
    /// What they are multiplied by.
    pub scale: f32,
    /// Whether that belongs to the table alone (Gemma 3), and not to prompts that enter beside its rows (Gemma, Gemma 2).
    pub scales_table_only: bool,
    /// Whether they are normed (BLOOM).
    pub norm: bool,
}

/// The head behind the last block.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeadDesign {
    /// Whether it is the embedding table.
    pub tied: bool,
    /// Logits `l` become `c · tanh(l / c)` (Gemma 2).
    pub soft_cap: Option<f32>,
    /// What logits are multiplied by.
    pub scale: f32,
}

impl Default for EmbeddingDesign {
    fn default() -> Self {
        Self { scale: 1.0, scales_table_only: false, norm: false }
    }
}

impl Default for HeadDesign {
    fn default() -> Self {
        Self { tied: false, soft_cap: None, scale: 1.0 }
    }
}

impl BlockDesign {
    /// Whether the MLP norms its input itself.
    pub fn mlp_has_own_norm(&self) -> bool {
        self.mlp_reads != MlpReads::AttentionInput
    }
}

impl NormKind {
    /// Whether it subtracts the mean.
    pub fn is_centred(self) -> bool {
        matches!(self, Self::Layer | Self::LayerWithoutBias)
    }
}

impl NormPlaces {
    /// Whether what goes in is normed.
    pub fn before(self) -> bool {
        self != Self::After
    }

    /// Whether what comes out is normed.
    pub fn after(self) -> bool {
        self != Self::Before
    }
}

impl MlpDesign {
    /// What its inside is in multiples of its width: gate and up, or up alone.
    pub fn sides(self) -> usize {
        if self.gated { 2 } else { 1 }
    }
}

impl Alibi {
    /// The slope of each of `heads` heads: powers of `2^(-8/n)` for the largest power of two `n` up to their number, and odd powers of
    /// `2^(-4/n)` for the rest, times the factor.
    pub(crate) fn slopes(self, heads: usize) -> Vec<f32> {
        let n = 1usize << heads.ilog2();
        let power = |base: f64, exponent: usize| (base.powi(exponent as i32)) as f32;
        let first = (1..=n).map(|i| power((-8.0 / n as f64).exp2(), i));
        let rest = (0..heads - n).map(|i| power((-4.0 / n as f64).exp2(), 2 * i + 1));
        first.chain(rest).collect()
    }

    /// The slopes as biases are computed with them.
    #[cfg(any(feature = "cuda", feature = "vulkan"))]
    pub(crate) fn rounded_slopes(self, heads: usize) -> Vec<f32> {
        let slopes = self.slopes(heads).into_iter();
        slopes.map(|slope| if self.rounded { rounded(slope) } else { slope }).collect()
    }

    /// The bias of a key at `position`.
    pub(crate) fn bias(self, slope: f32, position: usize) -> f32 {
        let bias = if self.rounded { rounded(rounded(slope) * position as f32) } else { slope * position as f32 };
        bias * self.factor
    }
}

/// The nearest bfloat16.
fn rounded(x: f32) -> f32 {
    half::bf16::from_f32(x).to_f32()
}

impl ExpertsDesign {
    /// Rows through experts, for so many rows.
    pub(crate) fn routed(self, rows: u64) -> u64 {
        rows.saturating_mul(self.used as u64)
    }
}
