//! `petals-tune generate`.

use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::Path;

use anyhow::Error;
use petals_client::{
    DraftModel, Dtype, Finish, Generation, GenerationConfig, GenerationError, Generator, ModelFiles, RemoteModel,
    Sampling, beam_search,
};

use super::session;
use crate::args::GenerateArgs;
use crate::error::CliError;
use crate::output::{Course, Generated, Output};
use crate::terminal;
use crate::text::{TextError, TextStream, TextTokenizer};

pub(crate) async fn run(args: GenerateArgs, output: Output) -> Result<(), CliError> {
    let files = session::open(&args.swarm)?;
    let tokenizer = TextTokenizer::load(&args.swarm.model)?;
    let text = tokenizer.encode(&args.prompt)?;
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
    let model = RemoteModel { sequence: sequence.clone(), local: files.local, tables };
    let run = Run { args: &args, tokenizer: &tokenizer, text: &text, output };
    if let Some(beams) = args.beams(tokenizer.stop_tokens()) {
        let generation = beam_search(model, &text, &beams).await.map_err(failed)?;
        let mut stream = TextStream::new(&tokenizer, args.stop.clone());
        let text = stream.push(&generation.tokens)?;
        run.emit(None, text, stream, &generation)?;
    } else {
        let mut generator = Generator::new(model, text.len() + args.max_new_tokens);
        if let Some(draft) = draft {
            generator = generator.with_draft_model(draft);
        }
        for number in 0..args.num_return() {
            run.sample(&mut generator, number).await?;
        }
    }
    session::verified(&sequence, &args.swarm, output)?;
    swarm.shutdown().await;
    Ok(())
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
    async fn sample(&self, generator: &mut Generator, number: usize) -> Result<(), CliError> {
        let first = self.args.sampling();
        let config = GenerationConfig {
            sampling: Sampling { seed: first.seed.wrapping_add(number as u64), ..first },
            max_new_tokens: self.args.max_new_tokens,
            stop_tokens: self.tokenizer.stop_tokens().to_vec(),
            speculation: self.args.speculation(),
        };
        let mut live = Live::new(self.output);
        let mut stream = TextStream::new(self.tokenizer, self.args.stop.clone());
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
        let number = (self.args.num_return() > 1).then_some(number + 1);
        self.emit(number, text, stream, &generation)
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
    fn new(output: Output) -> Self {
        Self { shown: !output.is_json() && std::io::stderr().is_terminal() }
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
