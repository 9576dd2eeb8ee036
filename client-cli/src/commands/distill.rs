//! `petals-tune distill`: texts for the student first, if the model is to write them itself, then a run of `train`.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;
use std::pin::pin;

use anyhow::{Context, Error};
use futures::stream::{self, StreamExt, TryStreamExt};
use petals_client::{GenerationConfig, Generator, ModelFiles, RemoteModel, Sampling};
use serde_json::{Value, json};

use super::stop::StopSignal;
use super::{out, session, train};
use crate::args::DistillArgs;
use crate::chat::{ChatTemplate, Conversation, Message, TemplateError};
use crate::error::CliError;
use crate::output::Output;
use crate::progress::Texts;
use crate::text::TextTokenizer;

mod prompts;

use prompts::Prompts;

/// Texts that are written at a time.
const SIDE_BY_SIDE: usize = 16;

pub(crate) async fn run(args: DistillArgs, output: Output) -> Result<(), CliError> {
    if let Some(texts) = args.self_study {
        study(&args, texts, output).await?;
    }
    train::run(args.into_train(), output).await
}

/// Has the model write what is missing of so many texts about the context.
async fn study(args: &DistillArgs, texts: usize, output: Output) -> Result<(), CliError> {
    let files = session::open(&args.swarm)?;
    let tokenizer = TextTokenizer::load(&args.swarm.model)?.ending_as(&files.config);
    let context = train::context(&args.context, &tokenizer)?;
    out::check_writable("--out", &args.out)?;
    let path = args.study();
    let written = written(&path, args.start.resume)?;
    if written >= texts {
        return Ok(());
    }
    let template = match ChatTemplate::load(&args.swarm.model, None) {
        Ok(template) => Some(template),
        Err(TemplateError::Missing(_)) => None,
        Err(error) => return Err(CliError::input(error)),
    };
    let prompts = Prompts::new(args.study_prompts.as_deref(), template.is_some(), &context, args.optimiser.seed)?;
    let (sequence, swarm) = session::connect(&files, &args.swarm, output).await?;
    let study = Study { args, files: &files, tokenizer: &tokenizer, template, prompts };
    let stop = StopSignal::install()?;
    let model = RemoteModel::new(sequence.clone(), files.local.clone());
    let done = tokio::select! {
        done = study.write(model, &context, (written, texts), output) => done,
        () = stop.received() => {
            let message = format!("interrupted; the texts so far are in {}: add --resume to go on", path.display());
            Err(Error::msg(message).into())
        }
    };
    session::verified(&sequence, &args.swarm, output)?;
    swarm.shutdown().await;
    done
}

/// How many texts a run that is gone on with has. A line that was cut off while it was written is removed.
fn written(path: &Path, resume: bool) -> Result<usize, CliError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(Error::from(error).context(format!("cannot read {}", path.display())).into()),
    };
    if !resume {
        let message = format!(
            "{} has the texts of an earlier run: add --resume to use them and go on, or choose another --out",
            path.display()
        );
        return Err(CliError::Usage(message));
    }
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    if whole < text.len() {
        let kept = text.get(..whole).unwrap_or_default();
        fs::write(path, kept).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(text.get(..whole).unwrap_or_default().lines().count())
}

struct Study<'a> {
    args: &'a DistillArgs,
    files: &'a ModelFiles,
    tokenizer: &'a TextTokenizer,
    template: Option<ChatTemplate>,
    prompts: Prompts,
}

impl Study<'_> {
    /// Writes the texts from number `first` to `end`.
    async fn write(
        &self,
        model: RemoteModel,
        context: &[u32],
        (first, end): (usize, usize),
        output: Output,
    ) -> Result<(), CliError> {
        let teacher = model.prefix_of_text(context).await.map_err(Error::from)?;
        let model = model.with_tables(Some(teacher.into()));
        let path = self.args.study();
        fs::create_dir_all(&self.args.out).with_context(|| format!("cannot make {}", self.args.out.display()))?;
        let failed = || format!("cannot write {}", path.display());
        let mut file = OpenOptions::new().create(true).append(true).open(&path).with_context(failed)?;
        let texts = (first..end).map(|number| self.text(model.clone(), context.len(), number));
        let mut texts = pin!(stream::iter(texts).buffered(SIDE_BY_SIDE));
        let mut progress = Texts::new(output, end - first);
        while let Some((row, tokens)) = texts.try_next().await? {
            progress.finished(tokens);
            file.write_all(format!("{row}\n").as_bytes()).with_context(failed)?;
        }
        Ok(())
    }

    /// The text of a number as a row of data, and how many tokens were written.
    async fn text(&self, model: RemoteModel, context: usize, number: usize) -> Result<(Value, usize), CliError> {
        let prompt = self.prompts.text(number, self.tokenizer)?;
        let tokens = match &self.template {
            Some(template) => {
                let asked = [Message::new("user", prompt.clone())];
                let conversation = Conversation::new(&asked, &Default::default());
                let text = template.render_conversation(&conversation).map_err(CliError::input)?;
                self.tokenizer.encode_continuation(&text)?
            }
            None => self.tokenizer.encode(&prompt)?,
        };
        let room = self.files.config.max_position_embeddings.saturating_sub(context + tokens.len());
        if room == 0 || tokens.is_empty() {
            let what = if tokens.is_empty() { "has no tokens" } else { "leaves no room behind the context" };
            return Err(CliError::Usage(format!("the study prompt {prompt:?} {what}")));
        }
        let max_new_tokens = self.args.study_tokens.min(room);
        let seed = self.args.optimiser.seed.wrapping_add(number as u64);
        let config = GenerationConfig {
            sampling: Sampling { seed, temperature: self.args.study_temperature, ..Sampling::default() },
            max_new_tokens,
            stop_tokens: self.tokenizer.stop_tokens().to_vec(),
            ..GenerationConfig::default()
        };
        let mut generator = Generator::new(model, tokens.len() + max_new_tokens);
        let written = generator.generate(&tokens, &config, |_| ControlFlow::Continue(())).await;
        let written = written.map_err(Error::from)?.tokens;
        let answer = self.tokenizer.decode(&written)?;
        let row = match self.template {
            Some(_) => {
                json!({"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]})
            }
            None => json!({"prompt": prompt, "completion": answer}),
        };
        Ok((row, written.len()))
    }
}
