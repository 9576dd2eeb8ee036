//! `petals-tune generate`.

use std::io::{IsTerminal, Write};

use anyhow::Error;
use petals_client::{RemoteModel, Sampler, TextSession};

use super::session;
use crate::args::GenerateArgs;
use crate::error::CliError;
use crate::output::{Generated, Output};
use crate::text::TextTokenizer;

pub(crate) async fn run(args: GenerateArgs, output: Output) -> Result<(), CliError> {
    let files = session::open(&args.swarm)?;
    let tokenizer = TextTokenizer::load(&args.swarm.model)?;
    let mut text = tokenizer.encode(&args.prompt)?;
    if text.is_empty() {
        return Err(CliError::Usage("--prompt has no tokens".into()));
    }
    let mut sampler = Sampler::new(args.sampling()).map_err(CliError::input)?;
    let adapter = args.adapter.as_deref().map(|directory| session::adapter(&files, directory)).transpose()?;
    let prefix = adapter.as_ref().map_or(0, |adapter| adapter.tables.shape().prefix_len);
    let room = files.config.max_position_embeddings.saturating_sub(text.len() + prefix);
    if args.max_new_tokens > room {
        let asked = args.max_new_tokens;
        let message = format!("--max-new-tokens {asked} is too many: the model has room for {room} behind this prompt");
        return Err(CliError::Usage(message));
    }
    let (sequence, swarm) = session::connect(&files, &args.swarm, output).await?;
    let tables = adapter.map(|adapter| adapter.tables.into());
    let model = RemoteModel { sequence: sequence.clone(), local: files.local, tables };
    let mut live = Live::new(output);
    let prompt_len = text.len();
    let mut session = TextSession::new(model, 1, prompt_len + args.max_new_tokens);
    let mut new = text.clone();
    for _ in 0..args.max_new_tokens {
        let logits = session.append(&[new]).await.map_err(Error::from)?;
        let Some(token) = sampler.choose(&logits) else { break };
        text.push(token);
        new = vec![token];
        if tokenizer.stop_tokens().contains(&token) {
            break;
        }
        live.show(&tokenizer.decode(&text[prompt_len..])?);
    }
    live.end();
    let token_ids = text.split_off(prompt_len);
    output.emit(&Generated { text: tokenizer.decode(&token_ids)?, token_ids })?;
    session::verified(&sequence, &args.swarm, output)?;
    swarm.shutdown().await;
    Ok(())
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
