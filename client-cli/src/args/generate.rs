//! `petals-tune generate`.

use std::path::PathBuf;

use clap::Args;
use petals_client::Sampling;

use super::SwarmArgs;
use super::values::{at_least, not_negative_f32, probability};

/// Arguments of `generate`.
#[derive(Debug, Clone, Args)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    pub(crate) swarm: SwarmArgs,

    /// Directory of an adapter.
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,

    /// The text to continue.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) prompt: String,

    /// Most tokens to generate; the model's end-of-sequence token ends the text earlier.
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    pub(crate) max_new_tokens: usize,

    /// Divides the logits before sampling; 0 takes the most probable token.
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true, value_parser = not_negative_f32)]
    temperature: f32,

    /// Sample among the N most probable tokens; 0: among all.
    #[arg(long, value_name = "N", default_value_t = 0)]
    top_k: usize,

    /// Sample among the most probable tokens that together reach this probability.
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true, value_parser = probability)]
    top_p: f32,

    /// Equal seeds sample equally.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

impl GenerateArgs {
    /// How tokens are chosen.
    pub(crate) fn sampling(&self) -> Sampling {
        Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            seed: self.seed,
            ..Sampling::default()
        }
    }
}
