//! `petals-tune generate`.

use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::pin::pin;

use anyhow::Error;
use futures::stream::{self, StreamExt, TryStreamExt};
use petals_client::{
    DraftModel, Dtype, Finish, Generation, GenerationConfig, GenerationError, Generator, ModelFiles, RemoteModel,
    Sampling, beam_search,
};

use super::session;
use crate::args::GenerateArgs;
use crate::chat::{ChatTemplate, Conversation, Message};
use crate::error::CliError;
use crate::output::{Course, Generated, Output};
use crate::progress::Texts;
use crate::terminal;
use crate::text::{TextError, TextStream, TextTokenizer};

/// Texts that are generated at a time. Their rows meet in the servers' batches, so together they take hardly longer than one.
const SIDE_BY_SIDE: usize = 16;

/// Tokens in front of a stop string that may belong to its first character or change its text.
const STOP_CONTEXT: usize = 32;

/// A text, what is left of its stream, and how it came about.
type Sampled<'a> = (String, TextStream<'a>, Generation);

pub(crate) async fn run(args: GenerateArgs, output: Output) -> Result<(), CliError> {
    let files = session::open(&args.swarm)?;
    let tokenizer = TextTokenizer::load(&args.swarm.model)?.ending_as(&files.config);
    let text = if args.chat { asked(&args, &tokenizer)? } else { tokenizer.encode(&args.prompt)? };
    if text.is_empty() {
        return Err(CliError::Usage("--prompt has no tokens".into()));
    }
    if args.num_return() > 1 && args.sampling().temperature == 0.0 {
        return Err(CliError::Usage("--num-return needs a --temperature above 0: all texts would be the same".into()));
    }
    let adapter = args.adapter.as_deref().map(|directory| session::adapter(&files, directory)).transpose()?;
    let prefix = adapter.as_ref().map_or(0, |adapter| adapter.tables.shape().prefix_len);
    let room = files.config.max_position_embeddings.saturating_sub(text.len() + prefix);
    if args.max_new_tokens > room {
        let asked = args.max_new_tokens;
        let message = format!("--max-new-tokens {asked} is too many: the model has room for {room} behind this prompt");
        return Err(CliError::Usage(message));
    }
    let draft = args.speculation.draft_model.as_deref();
    let draft = draft.map(|directory| draft_model(&files, &tokenizer, directory, args.swarm.dtype)).transpose()?;
    let (sequence, swarm) = session::connect(&files, &args.swarm, output).await?;
    let tables = adapter.map(|adapter| adapter.tables.into());
    let model = RemoteModel::new(sequence.clone(), files.local).with_tables(tables);
    let run = Run { args: &args, tokenizer: &tokenizer, text: &text, output };
    if let Some(beams) = args.beams(tokenizer.stop_tokens()) {
        // Each token that is added is looked at, so only the end of a text can be new: a stop string has at most a token a byte.
        let longest = args.stop.iter().map(|stop| stop.len() + STOP_CONTEXT).max();
        let has_stopped = |tokens: &[u32]| {
            let Some(longest) = longest else { return false };
            let (before, end) = tokens.split_at(tokens.len().saturating_sub(longest));
            let before = if before.is_empty() { &text } else { before };
            let mut stream = TextStream::new(&tokenizer, before, args.stop.clone());
            // Tokens that cannot be decoded are reported with the text.
            stream.push(end).is_ok() && stream.has_stopped()
        };
        let generation = beam_search(model, &text, &beams, has_stopped).await.map_err(failed)?;
        let mut stream = TextStream::new(&tokenizer, &text, args.stop.clone());
        let text = stream.push(&generation.tokens)?;
        run.emit(None, text, stream, &generation)?;
    } else {
        let run = &run;
        let several = (0..args.num_return()).map(|number| {
            let mut generator = Generator::new(model.clone(), text.len() + args.max_new_tokens);
            if let Some(draft) = &draft {
                generator = generator.with_draft_model(draft.clone());
            }
            async move { run.sample(generator, number).await }
        });
        let mut several = pin!(stream::iter(several).buffered(SIDE_BY_SIDE));
        let mut progress = Texts::new(output, args.num_return());
        while let Some((text, stream, generation)) = several.try_next().await? {
            let number = progress.finished(generation.tokens.len());
            run.emit((args.num_return() > 1).then_some(number), text, stream, &generation)?;
        }
    }
    session::verified(&sequence, &args.swarm, output)?;
    swarm.shutdown().await;
    Ok(())
}

/// The prompt as a message of a user, in the words of the chat template.
fn asked(args: &GenerateArgs, tokenizer: &TextTokenizer) -> Result<Vec<u32>, CliError> {
    let template = ChatTemplate::load(&args.swarm.model, args.chat_template.as_deref()).map_err(CliError::input)?;
    let variables = args.template_arg.iter().cloned().collect();
    let conversation = Conversation::new(&[Message::new("user", args.prompt.clone())], &variables);
    let text = template.render_conversation(&conversation).map_err(CliError::input)?;
    Ok(tokenizer.encode_continuation(&text)?)
}

/// Loads the model that foresees tokens.
fn draft_model(
    files: &ModelFiles,
    tokenizer: &TextTokenizer,
    directory: &Path,
    dtype: Dtype,
) -> Result<DraftModel, CliError> {
    let own = match TextTokenizer::load(directory) {
        Ok(own) => Some(own),
        Err(TextError::Missing(_)) => None,
        Err(error) => return Err(error.into()),
    };
    let model = DraftModel::open(directory, dtype).map_err(CliError::input)?;
    let (theirs, ours) = (model.vocab_size(), files.config.vocab_size);
    let refused = |why: String| Err(CliError::Usage(format!("--draft-model {}: {why}", directory.display())));
    match own {
        Some(own) if !own.has_vocabulary_of(tokenizer) => {
            refused("its tokenizer has other tokens than the model's, so it cannot foresee them".into())
        }
        None if theirs != ours => refused(format!("its vocabulary has {theirs} tokens, the model's {ours}")),
        _ => Ok(model),
    }
}

fn failed(error: GenerationError) -> CliError {
    match error {
        GenerationError::Sampling(error) => CliError::input(error),
        error => Error::from(error).into(),
    }
}

/// What all texts of a run share.
struct Run<'a> {
    args: &'a GenerateArgs,
    tokenizer: &'a TextTokenizer,
    text: &'a [u32],
    output: Output,
}

impl Run<'_> {
    /// Continues the prompt, the first time with number 0.
    async fn sample(&self, mut generator: Generator, number: usize) -> Result<Sampled<'_>, CliError> {
        let first = self.args.sampling();
        let config = GenerationConfig {
            sampling: Sampling { seed: first.seed.wrapping_add(number as u64), ..first },
            max_new_tokens: self.args.max_new_tokens,
            stop_tokens: self.tokenizer.stop_tokens().to_vec(),
            speculation: self.args.speculation(),
        };
        let mut live = Live::new(self.output, self.args.num_return() > 1);
        let mut stream = TextStream::new(self.tokenizer, self.text, self.args.stop.clone());
        let (mut text, mut error) = (String::new(), None);
        let generation = generator.generate(self.text, &config, |tokens| {
            match stream.push(tokens) {
                Ok(new) => text += &new,
                Err(cause) => error = Some(cause),
            }
            live.show(&text);
            if error.is_some() || stream.has_stopped() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let generation = generation.await.map_err(failed)?;
        live.end();
        if let Some(error) = error {
            return Err(error.into());
        }
        Ok((text, stream, generation))
    }

    fn emit(
        &self,
        number: Option<usize>,
        mut text: String,
        mut stream: TextStream<'_>,
        generation: &Generation,
    ) -> Result<(), CliError> {
        text += &stream.finish()?;
        let finish = match generation.finish {
            _ if stream.has_stopped() => "stop_string",
            Finish::StopToken => "stop_token",
            _ => "length",
        };
        let course = Course::new(self.text.len(), generation);
        if self.output.has_details() && !self.output.is_json() {
            terminal::around_bars(|| eprintln!("{course}"));
        }
        self.output.emit(&Generated { text, token_ids: stream.tokens().to_vec(), number, finish, course })
    }
}

/// The text so far, on a terminal, while the rest is still being computed.
struct Live {
    shown: bool,
}

impl Live {
    fn new(output: Output, several: bool) -> Self {
        Self { shown: !several && !output.is_json() && std::io::stderr().is_terminal() }
    }

    fn show(&mut self, text: &str) {
        if self.shown {
            let line = text.replace(['\n', '\r'], " ");
            // The end of the text is what is new; one line of it.
            let tail = line.char_indices().rev().nth(70).map_or(line.as_str(), |(at, _)| &line[at..]);
            let mut stderr = std::io::stderr().lock();
            let _ = write!(stderr, "\r\x1b[2K{tail}").and_then(|()| stderr.flush());
        }
    }

    fn end(&mut self) {
        if self.shown {
            let _ = write!(std::io::stderr(), "\r\x1b[2K");
        }
    }
}
