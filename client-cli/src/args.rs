//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use petals_settings::{CompletionsArgs, ManArgs};

mod bench;
mod chat;
mod distill;
#[cfg(test)]
mod documents;
mod eval;
mod export;
mod fingerprint;
mod generate;
mod learning;
mod logits;
mod method;
mod monitor;
mod report;
mod route;
mod serve;
mod settings;
mod shaping;
mod start;
mod status;
mod swarm;
mod text;
mod train;
mod usual;
mod values;
mod version;

pub(crate) use bench::{BenchArgs, BenchKind};
pub(crate) use chat::ChatArgs;
pub(crate) use distill::DistillArgs;
pub(crate) use eval::EvalArgs;
pub(crate) use export::{ExportArgs, ExportTo};
pub(crate) use fingerprint::FingerprintArgs;
pub(crate) use generate::GenerateArgs;
pub(crate) use logits::LogitsArgs;
pub(crate) use monitor::MonitorArgs;
pub(crate) use report::ReportArgs;
pub(crate) use route::RouteArgs;
pub(crate) use serve::{ServeArgs, ServeLimits};
pub(crate) use settings::{ConfigArgs, command_line};
pub(crate) use status::StatusArgs;
pub(crate) use swarm::{NetworkArgs, PassArgs, SwarmArgs};
pub(crate) use text::TextArgs;
pub(crate) use train::{Select, TrainArgs, TrainLength};
pub(crate) use version::{NUMBER, version};

const COMPLETIONS_EXAMPLES: &str = "\
Examples (scripts/install does this):
  petals-tune completions bash > ~/.local/share/bash-completion/completions/petals-tune
  petals-tune completions zsh > ~/.local/share/zsh/site-functions/_petals-tune
  petals-tune completions fish > ~/.config/fish/completions/petals-tune.fish";

const MAN_EXAMPLES: &str = "\
Example:
  petals-tune man --out ~/.local/share/man/man1
  man petals-tune-train";

/// Adapts a language model that a swarm of peers serves, by training prompts on this machine.
#[derive(Debug, Parser)]
#[command(name = "petals-tune", version = version(), about, arg_required_else_help = true, max_term_width = 120)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,

    /// Print one JSON object per line on stdout and nothing else there.
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// File of settings [default: petals.toml here, or petals/petals.toml in the user's configuration directory].
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Log more on stderr: -v what happens, -vv every request. RUST_LOG overrides this.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Train prompts, and for seq-cls a score head, on a data file.
    Train(Box<TrainArgs>),
    /// Train a prefix that stands for a long text: model and prefix are brought to say what model and text say.
    Distill(Box<DistillArgs>),
    /// Measure an adapter on a data file: its loss, and for seq-cls accuracy, macro-F1 and what is taken for what.
    Eval(EvalArgs),
    /// Write a page about runs: their losses, scores, speed, traffic and routes.
    Report(ReportArgs),
    /// Continue a prompt, with or without an adapter.
    Generate(Box<GenerateArgs>),
    /// Talk to the model, with or without an adapter.
    Chat(Box<ChatArgs>),
    /// Serve the model and its adapters to OpenAI clients, with a chat page for browsers.
    Serve(Box<ServeArgs>),
    /// Show what a swarm serves: its models, their blocks and servers, and what is missing.
    Status(StatusArgs),
    /// Show what a swarm serves as a page for browsers: blocks against servers, routes, and what failed.
    Monitor(MonitorArgs),
    /// Show which peers serve which blocks, and the route a pass would take.
    Route(RouteArgs),
    /// Show what the weights of a model are, by a hash for each block: of files here, or as the servers of a swarm say.
    Fingerprint(FingerprintArgs),
    /// Write the logits of given token ids to a file.
    Logits(LogitsArgs),
    /// Turn an adapter into one that other programs run: prompts into keys and values, or low-rank products into a whole checkpoint.
    Export(ExportArgs),
    /// Time passes and training steps through a swarm.
    Bench(Box<BenchArgs>),
    /// Show which settings a command would have, and where each comes from: a flag, PETALS_PEERS, the file, or nobody.
    #[command(after_help = settings::EXAMPLES)]
    Config(ConfigArgs),
    /// Print what a shell needs to complete commands and flags.
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions(CompletionsArgs),
    /// Write manual pages.
    #[command(after_help = MAN_EXAMPLES)]
    Man(ManArgs),
}

impl Command {
    /// The model that it needs and the swarm that serves it.
    pub(crate) fn swarm(&mut self) -> Option<&mut SwarmArgs> {
        match self {
            Self::Train(args) => Some(&mut args.swarm),
            Self::Distill(args) => Some(&mut args.swarm),
            Self::Eval(args) => Some(&mut args.swarm),
            Self::Report(_)
            | Self::Status(_)
            | Self::Monitor(_)
            | Self::Config(_)
            | Self::Completions(_)
            | Self::Man(_) => None,
            Self::Generate(args) => Some(&mut args.swarm),
            Self::Chat(args) => Some(&mut args.swarm),
            Self::Serve(args) => Some(&mut args.swarm),
            Self::Route(args) => Some(&mut args.swarm),
            Self::Fingerprint(args) => Some(&mut args.swarm),
            Self::Logits(args) => Some(&mut args.swarm),
            Self::Export(args) => Some(&mut args.swarm),
            Self::Bench(args) => Some(&mut args.swarm),
        }
    }

    /// Whether it needs all weights of its model on this machine.
    pub(crate) fn needs_all_weights(&self) -> bool {
        match self {
            Self::Export(args) => args.merge_lora.is_some(),
            Self::Fingerprint(args) => !args.served,
            _ => false,
        }
    }

    /// A model beside it that runs on this machine.
    pub(crate) fn draft_model(&mut self) -> Option<&mut PathBuf> {
        match self {
            Self::Generate(args) => args.speculation.draft_model.as_mut(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
