//! `petals-tune generate`.

use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;

use anyhow::Error;
use petals_client::{GenerationConfig, Generator, RemoteModel};

use super::session;
use crate::args::GenerateArgs;
use crate::error::CliError;
use crate::output::{Generated, Output};
use crate::text::TextTokenizer;

pub(crate) async fn run(args: GenerateArgs, output: Output) -> Result<(), CliError> {
    let files = session::open(&args.swarm)?;
    let tokenizer = TextTokenizer::load(&args.swarm.model)?;
    let text = tokenizer.encode(&args.prompt)?;
    if text.is_empty() {
        return Err(CliError::Usage("--prompt has no tokens".into()));
    }
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
    let mut generator = Generator::new(model, text.len() + args.max_new_tokens);
    let config = GenerationConfig {
        sampling: args.sampling(),
        max_new_tokens: args.max_new_tokens,
        stop_tokens: tokenizer.stop_tokens().to_vec(),
        ..GenerationConfig::default()
    };
    let mut shown = Vec::new();
    let generation = generator.generate(&text, &config, |tokens| {
        shown.extend_from_slice(tokens);
        if let Ok(text) = tokenizer.decode(&shown) {
            live.show(&text);
        }
        ControlFlow::Continue(())
    });
    let token_ids = generation.await.map_err(Error::from)?.tokens;
    live.end();
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
