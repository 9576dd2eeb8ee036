//! `petals-tune bench`.

use clap::{Args, ValueEnum};
use petals_client::{Injection, Task, TunerConfig, TuningMode, Workload};

use super::values::{at_least, injection, mode, task};
use super::{PassArgs, SwarmArgs};

const EXAMPLES: &str = "\
Examples:
  petals-tune bench forward train hop --model ./Llama-3.2-1B --peers /ip4/192.0.2.1/tcp/31337/p2p/12D3Koo…
  petals-tune bench train --task seq-cls --batch 32 --repeat 20 --json --model … --peers …

What is timed:
  forward  the hidden states of a batch through all blocks and back
  train    an optimiser step: forward, loss, backward, update
  decode   one row of each example through all blocks, without attention to earlier ones
  hop      what a request costs besides its computation, for one row and for 8 KiB; give
           --relay star, in a chain hops are not seen one by one";

/// Arguments of `bench`.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct BenchArgs {
    /// What to time, one after the other.
    #[arg(value_name = "WHAT", required = true, num_args = 1..)]
    pub(crate) what: Vec<BenchKind>,

    #[command(flatten)]
    pub(crate) swarm: SwarmArgs,

    /// Examples of a batch [default: 4, for decode 1].
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    batch: Option<usize>,

    /// Tokens of each example.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = at_least(2))]
    pub(crate) length: usize,

    /// Timed repetitions [default: 7, for decode 50, for hop 200].
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    repeat: Option<usize>,

    /// Repetitions before those that count.
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(crate) warmup: usize,

    #[command(flatten)]
    pub(crate) training: BenchTrainArgs,

    #[command(flatten)]
    pub(crate) passes: PassArgs,
}

/// What `bench train` trains.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Training")]
pub(crate) struct BenchTrainArgs {
    /// Where prompts enter: in front of the embeddings, or in front of every block.
    #[arg(long, default_value = "deep_ptune", value_parser = mode())]
    mode: TuningMode,

    /// With deep_ptune: each block's prompt replaces the prefix, or is added to it.
    #[arg(long, default_value = "replace", value_parser = injection())]
    injection: Injection,

    /// Number of trained prompt vectors in front of the text.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = at_least(1))]
    pub(crate) prefix_len: usize,

    /// Predict the next token, or classify texts.
    #[arg(long, default_value = "causal-lm", value_parser = task())]
    pub(crate) task: Task,
}

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BenchKind {
    /// The hidden states of a batch through all blocks and back.
    Forward,
    /// An optimiser step.
    Train,
    /// One row of each example through all blocks.
    Decode,
    /// What a request costs besides its computation.
    Hop,
}

impl BenchKind {
    /// As on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Train => "train",
            Self::Decode => "decode",
            Self::Hop => "hop",
        }
    }
}

impl BenchArgs {
    /// The batch of one kind of work.
    pub(crate) fn workload(&self, kind: BenchKind) -> Workload {
        let default = if kind == BenchKind::Decode { 1 } else { 4 };
        let BenchTrainArgs { mode, injection, prefix_len, task } = self.training;
        Workload {
            batch: self.batch.unwrap_or(default),
            length: self.length,
            prefix_len,
            injection: if mode == TuningMode::Ptune { Injection::None } else { injection },
            task,
            passes: TunerConfig {
                micro_batch_tokens: self.passes.micro_batch_tokens,
                in_flight: self.passes.in_flight,
                ..TunerConfig::default()
            },
        }
    }

    /// Repetitions of one kind of work: short work is repeated more often.
    pub(crate) fn repeat(&self, kind: BenchKind) -> usize {
        self.repeat.unwrap_or(match kind {
            BenchKind::Forward | BenchKind::Train => 7,
            BenchKind::Decode => 50,
            BenchKind::Hop => 200,
        })
    }
}
