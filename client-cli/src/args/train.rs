//! `petals-tune train`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use petals_client::{Method, Schedule, Task};

use super::learning::{Learning, TeacherArgs};
use super::method::MethodArgs;
use super::shaping::ShapingArgs;
use super::start::StartArgs;
use super::usual;
use super::values::{Rate, at_least, learning_rate, not_negative, schedule};
use super::{PassArgs, SwarmArgs, TextArgs};
use crate::data::BatchOrder;

const EXAMPLES: &str = "\
Examples:
  petals-tune train --model ./Llama-3.2-1B --peers /ip4/192.0.2.1/tcp/31337/p2p/12D3Koo… \\
      --mode deep_ptune --prefix-len 16 --task seq-cls --data train.jsonl --eval dev.jsonl --out ./sst2-prompt
  petals-tune train … --mode lora --rank 16 --targets q_proj,v_proj,up_proj --task causal-lm --data notes.jsonl --out ./notes
  petals-tune train … --mode ptune --prefix-len 20 --task causal-lm --data notes.txt --steps 500 --out ./notes --resume
  petals-tune train … --mode ptune --prefix-len 20 --task causal-lm --data chats.jsonl --out ./chats --validate";

/// Arguments of `train`.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct TrainArgs {
    #[command(flatten)]
    pub(crate) swarm: SwarmArgs,

    #[command(flatten)]
    pub(crate) method: MethodArgs,

    /// What is learnt.
    #[arg(long = "task", value_name = "TASK", value_enum)]
    pub(crate) learning: Learning,

    /// Training data: JSON lines, a JSON list, CSV or TSV with a header, or plain text (.txt) for causal-lm. Rows have `text` and
    /// `label` for seq-cls; for causal-lm `text`, `prompt` and `completion`, `instruction`, `input` and `output`, or `messages`
    /// or `conversations`, of which the assistant's turns are learnt, with `tools` beside them. Compressed by gzip or not; `-` is
    /// standard input.
    #[arg(long, value_name = "FILE")]
    pub(crate) data: PathBuf,

    /// Held-out data in the same form, measured during and after training.
    #[arg(long, value_name = "FILE")]
    pub(crate) eval: Option<PathBuf>,

    /// Directory for the adapter and the training state.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,

    /// Check flags, data and adapter, report what would be trained, and stop: no swarm is joined and nothing written.
    #[arg(long)]
    pub(crate) validate: bool,

    #[command(flatten)]
    pub(crate) teacher: TeacherArgs,

    #[command(flatten)]
    pub(crate) optimiser: OptimiserArgs,

    #[command(flatten)]
    pub(crate) shaping: ShapingArgs,

    #[command(flatten)]
    pub(crate) text: TextArgs,

    #[command(flatten)]
    pub(crate) start: StartArgs,

    #[command(flatten)]
    pub(crate) report: ReportArgs,

    #[command(flatten)]
    pub(crate) passes: PassArgs,
}

/// Length of the run, batches and AdamW.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Training")]
pub(crate) struct OptimiserArgs {
    /// Passes over the training data [default: 1].
    #[arg(long, value_name = "N", conflicts_with = "steps", value_parser = clap::value_parser!(u64).range(1..))]
    epochs: Option<u64>,

    /// Optimiser steps.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    steps: Option<u64>,

    /// Examples per batch.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = at_least(1))]
    pub(crate) batch_size: usize,

    /// Batches per optimiser step; the step's loss is the mean over all of them.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least(1))]
    pub(crate) accumulation: usize,

    /// Highest learning rate [default, for models up to 256 wide: 0.03 for ptune, 0.01 for deep_ptune and lora, 0.1 for ia3, 0.02 for prefix, the
    /// smaller one of two; for wider ones less in proportion, so a sixteenth at 4096]. `auto` tries six rates, from a tenth to thirty times that,
    /// for ten steps each on the first batches, and takes the one that learns most.
    #[arg(long, value_name = "X|auto", allow_negative_numbers = true, value_parser = learning_rate)]
    lr: Option<Rate>,

    /// What is usual for mode and model, once [`TrainArgs::settle`] knows it.
    #[arg(skip)]
    usual_lr: f64,

    /// Decoupled weight decay of AdamW, on every trained table.
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true, value_parser = not_negative)]
    pub(crate) weight_decay: f64,

    /// How the learning rate moves after the warm-up [default: linear].
    #[arg(long, value_parser = schedule())]
    schedule: Option<Schedule>,

    /// Steps over which the learning rate rises from 0 [default: a twentieth of all, at most 100].
    #[arg(long, value_name = "N")]
    warmup: Option<u64>,

    /// Largest global norm of the gradients; 0 is off.
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true, value_parser = not_negative)]
    pub(crate) clip: f64,

    /// Seed of the tables' first values and of the order of the data.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,

    /// Take consecutive lines in file order, wrapping round, instead of shuffled batches of similar lengths.
    #[arg(long)]
    no_shuffle: bool,
}

/// What is saved and reported when.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Reports")]
pub(crate) struct ReportArgs {
    /// Save adapter and training state every N steps, and at the end; 0: only at the end.
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub(crate) save_every: u64,

    /// Measure --eval every N steps, and at the end; 0: only at the end.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) eval_every: u64,

    /// Which adapter is kept: that of the last step, or that with the lowest loss on --eval, which is measured every --eval-every steps.
    #[arg(long, value_enum, default_value = "last")]
    pub(crate) select: Select,

    /// End the run when the loss on --eval has not become lower N times in a row.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) patience: Option<u64>,

    /// Measure --eval before the first step too.
    #[arg(long)]
    pub(crate) eval_first: bool,

    /// At every measurement of --eval, show how its first N examples go on with the tables as they are: behind the prompt, the
    /// conversation so far, or the first half of a text; causal-lm only, the most probable token each time.
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    pub(crate) eval_generate: Option<usize>,

    /// With --eval-generate: most tokens of each.
    #[arg(long, value_name = "N", default_value_t = 48, value_parser = at_least(1))]
    pub(crate) eval_generate_tokens: usize,

    /// Write what is measured for TensorBoard too, into OUT/tensorboard.
    #[arg(long)]
    pub(crate) tensorboard: bool,

    /// With --json, print every N-th step.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) log_every: u64,
}

/// Which adapter a run leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Select {
    /// That of the last step.
    Last,
    /// That with the lowest loss on held-out data.
    Best,
}

/// How long a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TrainLength {
    /// Passes over the data.
    Epochs(u64),
    /// Optimiser steps.
    Steps(u64),
}

impl TrainArgs {
    /// The flags that shape the loss curve, for [`petals_client::TrainingRecord::settings`]; `data` is the digest of the
    /// training data before it is cut to `max_length`, `context` what the teacher has in front.
    pub(crate) fn settings(
        &self,
        method: &Method,
        data: &str,
        max_length: usize,
        context: Option<&[u32]>,
    ) -> BTreeMap<String, String> {
        let optimiser = &self.optimiser;
        let others = [
            ("--task", self.learning.to_string()),
            ("--data", data.to_owned()),
            ("--max-length", max_length.to_string()),
            ("--append-eos", self.text.append_eos.to_string()),
            ("--batch-size", optimiser.batch_size.to_string()),
            ("--accumulation", optimiser.accumulation.to_string()),
            ("--lr", if self.optimiser.lr == Some(Rate::Auto) { "auto".to_owned() } else { self.lr().to_string() }),
            ("--weight-decay", optimiser.weight_decay.to_string()),
            ("--schedule", optimiser.schedule().to_string()),
            ("--warmup", optimiser.warmup().to_string()),
            ("--clip", optimiser.clip.to_string()),
            ("--seed", optimiser.seed.to_string()),
            ("--no-shuffle", optimiser.no_shuffle.to_string()),
        ];
        let all = self
            .method
            .settings(method)
            .into_iter()
            .chain(others)
            .chain(self.shaping.settings())
            .chain(self.teacher.settings(context));
        all.map(|(flag, value)| (flag.to_owned(), value)).collect()
    }

    /// Takes what no flag says from the settings of the run that is gone on with, if there is one, or else what is usual for so many steps
    /// of a model of this hidden size.
    pub(crate) fn settle(&mut self, saved: Option<&BTreeMap<String, String>>, steps: u64, hidden: usize) {
        let was = |flag: &str| saved.and_then(|saved| saved.get(flag));
        let optimiser = &mut self.optimiser;
        let rate = || was("--lr").and_then(|rate| rate.parse().ok()).map(Rate::Given);
        optimiser.lr = optimiser.lr.or_else(rate);
        optimiser.usual_lr = usual::lr(self.method.mode, hidden);
        optimiser.schedule = optimiser.schedule.or_else(|| was("--schedule").and_then(|name| name.parse().ok()));
        let warmup = || was("--warmup").and_then(|steps| steps.parse().ok());
        optimiser.warmup = optimiser.warmup.or_else(warmup).or_else(|| Some(usual::warmup(steps)));
    }

    /// The highest learning rate: what is given, or what is usual for the mode, which is also what others are tried around.
    pub(crate) fn lr(&self) -> f64 {
        match self.optimiser.lr {
            Some(Rate::Given(rate)) => rate,
            Some(Rate::Auto) | None => self.optimiser.usual_lr,
        }
    }
}

impl OptimiserArgs {
    /// How the learning rate moves after the warm-up.
    pub(crate) fn schedule(&self) -> Schedule {
        self.schedule.unwrap_or(usual::SCHEDULE)
    }

    /// Steps over which the learning rate rises, once [`TrainArgs::settle`] knows how many there are.
    pub(crate) fn warmup(&self) -> u64 {
        self.warmup.unwrap_or(0)
    }

    /// How long the run is.
    pub(crate) fn length(&self) -> TrainLength {
        self.steps.map_or(TrainLength::Epochs(self.epochs.unwrap_or(1)), TrainLength::Steps)
    }

    /// Examples per optimiser step.
    pub(crate) fn step_size(&self) -> usize {
        self.batch_size.saturating_mul(self.accumulation)
    }

    /// The order of the examples.
    pub(crate) fn order(&self) -> BatchOrder {
        if self.no_shuffle { BatchOrder::File } else { BatchOrder::Shuffled { seed: self.seed } }
    }
}

impl ReportArgs {
    /// Checks that what follows from held-out data has some, and that there is a text to go on with.
    ///
    /// # Errors
    /// A sentence that names the flag.
    pub(crate) fn check(&self, has_eval: bool, task: Task) -> Result<(), String> {
        if self.eval_generate.is_some() && !has_eval {
            return Err("--eval-generate needs --eval FILE, whose examples are gone on with".to_owned());
        }
        if self.eval_generate.is_some() && task != Task::CausalLm {
            return Err(format!("--eval-generate means nothing with --task {task}: a classifier writes no text"));
        }
        let given = [("--select best", self.select == Select::Best), ("--patience", self.patience.is_some())];
        match given.iter().find(|(_, given)| *given && (!has_eval || self.eval_every == 0)) {
            Some((flag, _)) => {
                Err(format!("{flag} needs --eval FILE and --eval-every N, the steps between two measurements"))
            }
            None => Ok(()),
        }
    }
}
