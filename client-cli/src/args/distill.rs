//! `petals-tune distill`.

use std::path::PathBuf;

use clap::Args;
use petals_client::{Injection, TuningMode};

use super::learning::{Learning, TeacherArgs};
use super::method::MethodArgs;
use super::shaping::ShapingArgs;
use super::start::StartArgs;
use super::train::{OptimiserArgs, ReportArgs, TrainArgs};
use super::values::{at_least, not_negative_f32};
use super::{PassArgs, SwarmArgs, TextArgs};

const EXAMPLES: &str = "\
Examples:
  petals-tune distill --model ./Llama-3.2-1B-Instruct --peers /ip4/192.0.2.1/tcp/31337/p2p/12D3Koo… \\
      --context handbook.txt --prefix-len 128 --self-study 500 --out ./handbook
  petals-tune distill … --context handbook.txt --prefix-len 128 --data questions.jsonl --eval held-out.jsonl --out ./handbook
  petals-tune chat … --adapter ./handbook";

/// Arguments of `distill`.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES, group(clap::ArgGroup::new("texts").required(true).args(["data", "self_study"])))]
pub(crate) struct DistillArgs {
    #[command(flatten)]
    pub(crate) swarm: SwarmArgs,

    /// The text that is to become a prefix of keys and values, a few tokens or as many as the model has positions for.
    #[arg(long, value_name = "FILE")]
    pub(crate) context: PathBuf,

    /// Rows of the prefix: a tenth of the context's tokens, or fewer.
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    prefix_len: usize,

    /// Directory for the adapter and the training state.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,

    /// Texts on which model with prefix and model with context are brought together: whatever is likely to be asked about it. Any data of
    /// causal-lm.
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,

    /// Have the model itself write so many texts about the context, which go to OUT/study.jsonl.
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    pub(crate) self_study: Option<usize>,

    /// With --self-study: what the model is asked, one prompt a line; a line that is a JSON string may have line ends in it [default: questions of
    /// several kinds where the model has a chat template, else beginnings of the context's sentences].
    #[arg(long, value_name = "FILE", requires = "self_study")]
    pub(crate) study_prompts: Option<PathBuf>,

    /// With --self-study: most tokens of a text.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = at_least(1))]
    pub(crate) study_tokens: usize,

    /// With --self-study: temperature of the texts.
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true, value_parser = not_negative_f32)]
    pub(crate) study_temperature: f32,

    /// Held-out texts, measured during and after training beside what model and context make of them.
    #[arg(long, value_name = "FILE")]
    eval: Option<PathBuf>,

    /// Tokens of which the teacher says how probable they are, at each place; all others count as one.
    #[arg(long, value_name = "K", default_value_t = 20, value_parser = at_least(1))]
    teacher_top_k: usize,

    #[command(flatten)]
    pub(crate) optimiser: OptimiserArgs,

    #[command(flatten)]
    pub(crate) text: TextArgs,

    #[command(flatten)]
    pub(crate) start: StartArgs,

    #[command(flatten)]
    report: ReportArgs,

    #[command(flatten)]
    passes: PassArgs,
}

impl DistillArgs {
    /// File of the texts that the model writes itself.
    pub(crate) fn study(&self) -> PathBuf {
        self.out.join("study.jsonl")
    }

    /// The run that learns from the teacher.
    pub(crate) fn into_train(self) -> TrainArgs {
        let study = self.study();
        let method = MethodArgs {
            mode: TuningMode::PREFIX,
            injection: Injection::KeysValues,
            prefix_len: Some(self.prefix_len),
            rank: None,
            alpha: None,
            targets: Vec::new(),
        };
        TrainArgs {
            swarm: self.swarm,
            method,
            learning: Learning::Distill,
            data: self.data.unwrap_or(study),
            eval: self.eval,
            out: self.out,
            validate: false,
            teacher: TeacherArgs { context: Some(self.context), teacher_top_k: self.teacher_top_k },
            optimiser: self.optimiser,
            shaping: ShapingArgs::default(),
            text: self.text,
            start: self.start,
            report: self.report,
            passes: self.passes,
        }
    }
}
