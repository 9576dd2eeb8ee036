//! `petals-tune generate`.

use std::path::PathBuf;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use petals_client::{BeamConfig, EarlyStopping, Sampling, Speculation};

use super::SwarmArgs;
use super::values::{at_least, not_empty, not_negative_f32, part, positive_f32, probability, signed_f32, template_arg};
use crate::chat::Json;

const EXAMPLES: &str = "\
Examples:
  petals-tune generate --model meta-llama/Llama-3.1-8B --peers $PEERS --prompt 'Once upon a time' --max-new-tokens 200 \\
      --temperature 0.8 --top-p 0.95 --stop 'The End' -v
  petals-tune generate --model ./Llama-3.1-8B --peers $PEERS --prompt 'The capital of France is' --max-new-tokens 8 --beams 4
  petals-tune generate --model ./Qwen3-8B --peers $PEERS --chat --prompt 'Where is Nairobi?' --max-new-tokens 200 \\
      --template-arg enable_thinking=false
  petals-tune generate --model ./Llama-3.1-8B --peers $PEERS --prompt 'def quicksort(' --max-new-tokens 200 \\
      --draft-model ./Llama-3.2-1B";

/// Arguments of `generate`.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    pub(crate) swarm: SwarmArgs,

    /// Directory of an adapter.
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,

    /// The text to continue.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) prompt: String,

    /// Take the prompt as a user's message, and let the model's chat template make the text to continue of it.
    #[arg(long)]
    pub(crate) chat: bool,

    /// A Jinja chat template instead of the model's own.
    #[arg(long, value_name = "FILE", requires = "chat")]
    pub(crate) chat_template: Option<PathBuf>,

    /// A variable of the chat template, for example `enable_thinking=false`; may be given several times.
    #[arg(long, value_name = "NAME=JSON", requires = "chat", value_parser = template_arg)]
    pub(crate) template_arg: Vec<(String, Json)>,

    /// Most tokens to generate; the model's end-of-sequence token ends the text earlier.
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    pub(crate) max_new_tokens: usize,

    /// End before this text comes; may be given several times.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, value_parser = not_empty)]
    pub(crate) stop: Vec<String>,

    #[command(flatten)]
    sampling: SamplingArgs,

    #[command(flatten)]
    pub(crate) speculation: SpeculationArgs,

    #[command(flatten)]
    beams: BeamArgs,
}

/// How each token is chosen.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Sampling")]
struct SamplingArgs {
    /// Divides the logits before sampling; 0 takes the most probable token.
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true, value_parser = not_negative_f32)]
    temperature: f32,

    /// Sample among the N most probable tokens; 0: among all.
    #[arg(long, value_name = "N", default_value_t = 0)]
    top_k: usize,

    /// Sample among the most probable tokens that together reach this probability.
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true, value_parser = probability)]
    top_p: f32,

    /// Sample among the tokens that are at least this many times as probable as the most probable one; 0: among all.
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true, value_parser = part)]
    min_p: f32,

    /// Above 1: tokens that the text has already, the prompt's included, become less probable; below 1 more.
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true, value_parser = positive_f32)]
    repetition_penalty: f32,

    /// Equal seeds sample equally.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Sample as many texts; the first with --seed, each other one with the next seed.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1, value_parser = at_least(1))]
    num_return: usize,
}

/// How tokens are foreseen.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Speculation (changes how long it takes, not the text)")]
pub(crate) struct SpeculationArgs {
    /// Do not foresee that the text goes on as it did at an earlier place that ended alike.
    #[arg(long)]
    no_lookup: bool,

    /// Directory or name of a small model with the same tokenizer that runs on this machine and foresees tokens.
    #[arg(long, value_name = "MODEL")]
    pub(crate) draft_model: Option<PathBuf>,

    /// Most foreseen tokens of one step; how many are worth it is measured.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = at_least(1))]
    max_draft: usize,
}

/// Beam search.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Beam search")]
struct BeamArgs {
    /// Look for the most probable text as a whole among so many at a time, instead of taking token after token.
    #[arg(long, value_name = "N", value_parser = at_least(1), conflicts_with_all = ["temperature", "top_k", "top_p", "min_p", "seed", "num_return", "draft_model", "no_lookup", "max_draft"])]
    beams: Option<usize>,

    /// Above 0 favours long texts, below 0 short ones.
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true, requires = "beams", value_parser = signed_f32)]
    length_penalty: f32,

    /// End the search with the first N finished texts (yes), when no better one is likely (no), or when none can come (never).
    #[arg(long, value_name = "WHEN", default_value = "no", requires = "beams", value_parser = early_stopping())]
    early_stopping: EarlyStopping,
}

impl GenerateArgs {
    /// How tokens of the first text are chosen.
    pub(crate) fn sampling(&self) -> Sampling {
        let SamplingArgs { temperature, top_k, top_p, min_p, repetition_penalty, seed, .. } = self.sampling;
        Sampling { temperature, top_k, top_p, min_p, repetition_penalty, seed, ..Sampling::default() }
    }

    /// Number of texts.
    pub(crate) fn num_return(&self) -> usize {
        self.sampling.num_return
    }

    /// How tokens are foreseen.
    pub(crate) fn speculation(&self) -> Speculation {
        Speculation { lookup: !self.speculation.no_lookup, max_draft: self.speculation.max_draft }
    }

    /// The beam search, if there is to be one.
    pub(crate) fn beams(&self, stop_tokens: &[u32]) -> Option<BeamConfig> {
        let BeamArgs { beams, length_penalty, early_stopping } = self.beams;
        Some(BeamConfig {
            beams: beams?,
            max_new_tokens: self.max_new_tokens,
            stop_tokens: stop_tokens.to_vec(),
            length_penalty,
            early_stopping,
            repetition_penalty: self.sampling.repetition_penalty,
        })
    }
}

/// `no`, `yes` or `never`.
fn early_stopping() -> impl TypedValueParser<Value = EarlyStopping> {
    PossibleValuesParser::new(["no", "yes", "never"]).map(|text| match text.as_str() {
        "yes" => EarlyStopping::First,
        "never" => EarlyStopping::Never,
        _ => EarlyStopping::Heuristic,
    })
}
