//! Where the tables of `train` start.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use petals_client::{DeepInit, InitRule, Injection, PrefixMode, TuningMode};

use super::values::deep_init;
use crate::text::{TextError, TextTokenizer};

/// Where the tables start.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Start")]
pub(crate) struct StartArgs {
    /// First values of prompts and prefixes: random (normal), or tokens: random ones (sample-vocab), those of the training data (data) or
    /// of --init-text (text). Prompts start as their embeddings, a prefix as their keys and values in every block [default: data, or
    /// the context's tokens for --task distill].
    #[arg(long, value_enum)]
    init: Option<Init>,

    /// The text for --init text, repeated and cut to the prefix length.
    #[arg(long, value_name = "TEXT", required_if_eq("init", "text"), allow_hyphen_values = true)]
    init_text: Option<String>,

    /// First values of the deep prompts: zeros, normal, like-input (as the input prompt, anew for each block), or states (what the input
    /// prompt becomes on its way through the blocks) [default: states for replace, zeros for add].
    #[arg(long, value_name = "RULE", value_parser = deep_init())]
    init_deep: Option<DeepInit>,

    /// Start from the tables of this adapter; only its adapter_model.safetensors is needed.
    #[arg(long, value_name = "DIR")]
    pub(crate) init_from: Option<PathBuf>,

    /// Go on with the run saved in --out, or start if there is none.
    #[arg(long)]
    pub(crate) resume: bool,
}

/// First values of the prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Init {
    /// Normally distributed with the model's `initializer_range`.
    Normal,
    /// Random tokens.
    SampleVocab,
    /// The first tokens of the training data, in the order that the seed gives.
    Data,
    /// A text's tokens.
    Text,
}

impl StartArgs {
    /// Checks that flags for prompts are given with prompts only.
    ///
    /// # Errors
    /// A sentence that names the flag.
    pub(crate) fn check(&self, mode: TuningMode) -> Result<(), String> {
        let given = [
            ("--init", self.init.is_some(), mode.prefix.is_some(), "prompts or a prefix start"),
            ("--init-deep", self.init_deep.is_some(), mode.prefix == Some(PrefixMode::DeepPtune), "deep prompts start"),
        ];
        match given.iter().find(|(_, given, has, _)| *given && !has) {
            Some((flag, .., what)) => Err(format!("{flag} says where {what}, and --mode {mode} has none")),
            None => Ok(()),
        }
    }

    /// The flag that says where prompts start, if one is given.
    pub(crate) fn prompts_flag(&self) -> Option<&'static str> {
        let given = [("--init", self.init.is_some()), ("--init-deep", self.init_deep.is_some())];
        given.into_iter().find_map(|(flag, given)| given.then_some(flag))
    }

    /// First values of the deep prompts, `None` without any. Those that replace what is there start as what would be there: others take from the model
    /// the rows that all of its heads look at when they look at nothing (Xiao et al. 2023, *attention sinks*), and it does not recover.
    pub(crate) fn deep(&self, injection: Injection) -> Option<DeepInit> {
        self.init_deep.or((injection == Injection::Replace).then_some(DeepInit::States))
    }

    /// First values of the prefix. A text is tokenised with the post-processor, as PEFT does; `data` gives the training data's tokens,
    /// `context` is what is distilled, if anything is.
    ///
    /// # Errors
    /// [`TextError::Encode`].
    pub(crate) fn init_rule(
        &self,
        mode: TuningMode,
        tokenizer: &TextTokenizer,
        data: impl FnOnce() -> Vec<u32>,
        context: Option<&[u32]>,
    ) -> Result<InitRule, TextError> {
        if let (None, Some(context)) = (self.init, context) {
            return Ok(InitRule::Text(context.to_vec()));
        }
        // What did best for each mode where all were measured, as in `usual`.
        Ok(match self.init.unwrap_or(if mode.prefix.is_some() { Init::Data } else { Init::Normal }) {
            Init::Normal => InitRule::Normal,
            Init::SampleVocab => InitRule::SampleVocab,
            Init::Data => InitRule::Text(data()),
            Init::Text => InitRule::Text(tokenizer.encode(self.init_text.as_deref().unwrap_or_default())?),
        })
    }
}
