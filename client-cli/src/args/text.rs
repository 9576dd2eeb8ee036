//! How text becomes tokens: flags of `train` and `eval`.

use std::path::{Path, PathBuf};

use clap::Args;
use petals_client::{Task, TextRules};

use super::values::at_least;
use crate::data::{Columns, Templates};

/// The longest example without `--max-length`, where the model has room for it.
const MAX_LENGTH: usize = 512;

/// How text becomes tokens.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Text")]
pub(crate) struct TextArgs {
    /// Most tokens of an example; longer ones are cut. Together with the prefix they have to fit into the model's positions
    /// [default: 512 or what fits, in eval as in training].
    #[arg(long, value_name = "N", value_parser = at_least(2))]
    pub(super) max_length: Option<usize>,

    /// Append the end-of-sequence token to every text that does not end with it, conversations aside: their template says how
    /// they end [default in eval: as in training].
    #[arg(long)]
    pub(super) append_eos: bool,

    /// Column with the text [default: text, sentence or content].
    #[arg(long, value_name = "NAME")]
    text_column: Option<String>,

    /// Column with the class, for seq-cls [default: label].
    #[arg(long, value_name = "NAME")]
    label_column: Option<String>,

    /// Column with what comes in front of the completion, without a loss, for causal-lm [default: prompt].
    #[arg(long, value_name = "NAME", requires = "completion_column", conflicts_with = "text_column")]
    prompt_column: Option<String>,

    /// Column with what is to follow the prompt, for causal-lm [default: completion].
    #[arg(long, value_name = "NAME", requires = "prompt_column", conflicts_with = "text_column")]
    completion_column: Option<String>,

    /// Jinja file that turns conversations into text [default: the model's own chat template].
    #[arg(long, value_name = "FILE")]
    chat_template: Option<PathBuf>,
}

impl TextArgs {
    /// The rules of a run whose examples have `room` for tokens: `positions` of the model less those of the prefix. `trained`
    /// are those of training, for an evaluation.
    ///
    /// # Errors
    /// What to do about a maximal length that does not fit.
    pub(crate) fn rules(
        &self,
        positions: usize,
        prefix: usize,
        trained: Option<TextRules>,
    ) -> Result<TextRules, String> {
        let room = positions.saturating_sub(prefix);
        if room < 2 {
            return Err(format!(
                "a prefix of {prefix} leaves no room for text: the model has {positions} positions; give a smaller --prefix-len"
            ));
        }
        if let Some(given) = self.max_length.filter(|&given| given > room) {
            return Err(format!(
                "--max-length {given} does not fit: the model has {positions} positions, of which the prefix takes {prefix}; \
                 give at most {room}, or a shorter prefix"
            ));
        }
        let usual = trained.map_or(Some(MAX_LENGTH), |trained| trained.max_length).unwrap_or(room);
        let append_eos = self.append_eos || trained.is_some_and(|trained| trained.append_eos);
        Ok(TextRules { max_length: Some(self.max_length.unwrap_or(usual.min(room))), append_eos })
    }

    /// Columns with names of their own.
    ///
    /// # Errors
    /// The flag that the task does not have.
    pub(crate) fn columns(&self, task: Task) -> Result<Columns, String> {
        let columns = Columns {
            text: self.text_column.clone(),
            label: self.label_column.clone(),
            prompt: self.prompt_column.clone(),
            completion: self.completion_column.clone(),
        };
        match task {
            Task::CausalLm if columns.label.is_some() => Err("--label-column is for --task seq-cls".to_owned()),
            Task::SeqCls if columns.prompt.is_some() => {
                Err("--prompt-column and --completion-column are for --task causal-lm".to_owned())
            }
            _ => Ok(columns),
        }
    }

    /// The chat template, given or of the model.
    pub(crate) fn templates(&self, model: &Path) -> Templates {
        Templates::new(model.to_owned(), self.chat_template.clone())
    }
}
