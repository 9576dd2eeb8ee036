//! What `train` learns, and from whom.

use std::fmt;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use petals_client::Task;

use super::values::at_least;

/// What is learnt from texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Learning {
    /// To predict the next token.
    CausalLm,
    /// To classify.
    SeqCls,
    /// To say what the model says with a long text in front (--context).
    Distill,
}

/// What a teacher has that its student has not.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Distillation")]
pub(crate) struct TeacherArgs {
    /// With --task distill: the text that the teacher, which is the same model, has in front of every example.
    #[arg(long, value_name = "FILE")]
    pub(crate) context: Option<PathBuf>,

    /// Tokens of which the teacher says how probable they are, at each place; all others count as one.
    #[arg(long, value_name = "K", default_value_t = 20, value_parser = at_least(1))]
    pub(crate) teacher_top_k: usize,
}

impl Learning {
    /// The task of the data and of the adapter.
    pub(crate) fn task(self) -> Task {
        match self {
            Self::CausalLm | Self::Distill => Task::CausalLm,
            Self::SeqCls => Task::SeqCls,
        }
    }
}

impl fmt::Display for Learning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CausalLm => "causal-lm",
            Self::SeqCls => "seq-cls",
            Self::Distill => "distill",
        })
    }
}

impl TeacherArgs {
    /// The file of what the teacher has in front, of a run that has a teacher.
    ///
    /// # Errors
    /// A sentence that names the flag which is missing or has no place.
    pub(crate) fn context(&self, learning: Learning) -> Result<Option<&Path>, String> {
        match (self.context.as_deref(), learning) {
            (None, Learning::Distill) => {
                Err("--task distill needs --context FILE, what the teacher has in front of every example".to_owned())
            }
            (Some(_), Learning::CausalLm | Learning::SeqCls) => {
                Err(format!("--context is for --task distill, and this is --task {learning}"))
            }
            (context, _) => Ok(context),
        }
    }

    /// What shapes the loss curve of a run with a teacher.
    pub(super) fn settings(&self, context: Option<&[u32]>) -> impl Iterator<Item = (&'static str, String)> {
        let all = context.map(|context| {
            let bytes: Vec<u8> = context.iter().flat_map(|token| token.to_le_bytes()).collect();
            [
                ("--context", blake3::hash(&bytes).to_hex()[..16].to_owned()),
                ("--teacher-top-k", self.teacher_top_k.to_string()),
            ]
        });
        all.into_iter().flatten()
    }
}
