//! Arguments of `bench`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use petals_protocol::Span;

use super::HubArgs;
use super::device::DeviceArgs;

/// Examples in the help.
pub(super) const EXAMPLES: &str = "\
Examples:
  petals-node bench forward train decode --model ./Llama-3.1-8B --blocks 0..4
  petals-node bench train --task seq-cls --batch 32 --device cuda --dtype bf16 --json --model ./Llama-3.1-8B";

/// Arguments of `bench`.
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// What to time, one after the other.
    #[arg(value_name = "WHAT", required = true, num_args = 1..)]
    pub what: Vec<BenchKind>,
    /// The model: a directory with config.json and model.safetensors (or its shards and index), a GGUF, or a name on Hugging Face's hub,
    /// org/name or org/name@revision, of which only what is needed is fetched.
    #[arg(long, value_name = "MODEL")]
    pub model: PathBuf,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub hub: HubArgs,
    /// Blocks to load, for example 0..12. Default: all.
    #[arg(long, value_name = "A..B")]
    pub blocks: Option<Span>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub compute: DeviceArgs,
    /// Examples of a batch. Default: 4, for decode 1.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub batch: Option<u32>,
    /// Tokens of each example.
    #[arg(long, default_value_t = 128, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub length: u32,
    /// With train: rows of the prefix; 0 trains nothing, and only times the passes.
    #[arg(long, default_value_t = 16, value_name = "N")]
    pub prefix_len: u32,
    /// With train: where prompts enter, in front of the embeddings or of every block.
    #[arg(long, value_enum, default_value = "deep_ptune")]
    pub mode: BenchMode,
    /// With train and deep_ptune: each block's prompt replaces the prefix, or is added to it.
    #[arg(long, value_enum, default_value = "replace")]
    pub injection: BenchInjection,
    /// With train: rows that are read behind the last block, all or one of each example.
    #[arg(long, value_enum, default_value = "causal-lm")]
    pub task: BenchTask,
    /// Timed repetitions. Default: 7, for decode 50.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub repeat: Option<u32>,
    /// Repetitions before those that count.
    #[arg(long, default_value_t = 2, value_name = "N")]
    pub warmup: u32,
    /// Print one JSON object per line on stdout.
    #[arg(long)]
    pub json: bool,
}

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BenchKind {
    /// A batch through the blocks.
    Forward,
    /// A batch through the blocks, leaving a stash, and its gradient back.
    Train,
    /// A batch through the blocks, of which only each example's last row is read behind the model's last block: what a text costs before its first new token.
    Prompt,
    /// One row of each example through the blocks, without attention to earlier ones.
    Decode,
}

/// Where prompts enter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum BenchMode {
    /// In front of the embeddings.
    Ptune,
    /// In front of every block.
    DeepPtune,
}

/// What a block's prompt does to the prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BenchInjection {
    /// Takes its place.
    Replace,
    /// Is added to it.
    Add,
}

/// What is learnt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BenchTask {
    /// Next tokens.
    CausalLm,
    /// Classes of texts.
    SeqCls,
}
