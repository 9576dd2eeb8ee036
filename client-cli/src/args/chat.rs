//! `petals-tune chat`.

use std::path::PathBuf;

use clap::Args;
use petals_client::Sampling;

use super::SwarmArgs;
use super::values::{adapter, at_least, not_negative_f32, probability, template_arg};
use crate::chat::Json;

/// Arguments of `chat`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  petals-tune chat --model ./Llama-3.1-8B-Instruct --peers $PEERS
  petals-tune chat --model ./Llama-3.1-8B-Instruct --peers $PEERS --adapter pirate=./pirate-prompt --system \"Be brief.\"
  echo \"Where is the barrel?\" | petals-tune chat --model demo/model --peers $PEERS --temperature 0

In the chat, /help lists the commands. Ctrl-C stops an answer; twice leaves.")]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    pub(crate) swarm: SwarmArgs,

    /// An adapter; the chat begins with the first one, and /adapter NAME changes to another.
    #[arg(long, value_name = "NAME=DIR", num_args = 1.., value_parser = adapter)]
    pub(crate) adapter: Vec<(String, PathBuf)>,

    /// A Jinja chat template instead of the model's own.
    #[arg(long, value_name = "FILE")]
    pub(crate) chat_template: Option<PathBuf>,

    /// A variable of the chat template, for example `enable_thinking=false`; may be given several times.
    #[arg(long, value_name = "NAME=JSON", value_parser = template_arg)]
    pub(crate) template_arg: Vec<(String, Json)>,

    /// What the model is told in front of the conversation.
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,

    /// Most tokens of an answer.
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = at_least(1))]
    pub(crate) max_new_tokens: usize,

    /// Divides the logits before sampling; 0 takes the most probable token.
    #[arg(long, value_name = "X", default_value_t = 0.7, allow_negative_numbers = true, value_parser = not_negative_f32)]
    temperature: f32,

    /// Sample among the N most probable tokens; 0: among all.
    #[arg(long, value_name = "N", default_value_t = 0)]
    top_k: usize,

    /// Sample among the most probable tokens that together reach this probability.
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true, value_parser = probability)]
    top_p: f32,

    /// Equal seeds sample equally [default: another one each time].
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

impl ChatArgs {
    /// How tokens are chosen.
    pub(crate) fn sampling(&self) -> Sampling {
        Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            seed: self.seed.unwrap_or_else(rand::random),
            ..Sampling::default()
        }
    }
}
