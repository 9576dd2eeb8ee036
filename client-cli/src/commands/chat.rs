//! `petals-tune chat`.

use std::io::Write;
use std::sync::Arc;

use petals_client::{PromptTables, RemoteModel};

use super::session;
use super::stop::StopSignal;
use crate::args::ChatArgs;
use crate::chat::ChatTemplate;
use crate::error::CliError;
use crate::output::{Answered, Notice, Output};
use crate::text::TextTokenizer;
use lines::{Line, Lines};
use talk::{Limits, Piece, Talk, TalkError};

mod lines;
mod talk;

const HELP: &str = "\
/reset          begins a new conversation
/adapter NAME   goes on with an adapter; /adapter none without; /adapter lists them
/system TEXT    what the model is told in front of the conversation, from now on; without TEXT nothing
/help           this
/quit           leaves, as Ctrl-D does
Ctrl-C stops an answer; twice leaves.";

pub(crate) async fn run(args: ChatArgs, output: Output) -> Result<(), CliError> {
    let files = session::open(&args.swarm)?;
    let tokenizer = Arc::new(TextTokenizer::load(&args.swarm.model)?.ending_as(&files.config));
    let template = ChatTemplate::load(&args.swarm.model, args.chat_template.as_deref()).map_err(CliError::input)?;
    let mut adapters: Vec<(String, Arc<PromptTables>)> = Vec::new();
    for (name, directory) in &args.adapter {
        adapters.push((name.clone(), Arc::new(session::adapter(&files, directory)?.tables)));
    }
    let (sequence, swarm) = session::connect(&files, &args.swarm, output).await?;
    let mut interrupts = StopSignal::install()?;
    let model = RemoteModel::new(sequence.clone(), files.local.clone());
    let limits = Limits { positions: files.config.max_position_embeddings, answer: args.max_new_tokens };
    let mut talk = Talk::new(model, tokenizer, template, args.sampling(), limits);
    talk.set_variables(args.template_arg.iter().cloned().collect());
    talk.set_system(args.system.clone());
    if let Some((name, tables)) = adapters.first() {
        talk.set_adapter(Some((name.clone(), tables.clone())));
    }
    let mut chat = Chat { talk, adapters, output };
    let mut lines = Lines::open(output.is_json());
    let mut leaving = false;
    loop {
        let line = tokio::select! {
            line = lines.next() => line,
            () = interrupts.next() => Line::End,
        };
        let text = match line {
            Line::Text(text) => text,
            Line::Interrupt if leaving => break,
            Line::Interrupt => {
                leaving = true;
                chat.say("Ctrl-C again leaves; so does /quit.")?;
                continue;
            }
            Line::End => break,
        };
        let text = text.trim();
        leaving = match text.strip_prefix('/') {
            _ if text.is_empty() => false,
            Some("quit" | "exit") => break,
            Some(command) => {
                chat.command(command)?;
                false
            }
            None => chat.answer(text, &mut interrupts).await?,
        };
    }
    session::verified(&sequence, &args.swarm, output)?;
    drop(chat);
    swarm.shutdown().await;
    Ok(())
}

struct Chat {
    talk: Talk,
    adapters: Vec<(String, Arc<PromptTables>)>,
    output: Output,
}

impl Chat {
    fn say(&self, message: impl Into<String>) -> Result<(), CliError> {
        self.output.emit(&Notice { message: message.into() })
    }

    fn command(&mut self, command: &str) -> Result<(), CliError> {
        let (name, argument) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        match (name, argument.trim()) {
            ("help", _) => self.say(HELP),
            ("reset", _) => {
                self.talk.reset();
                self.say("A new conversation.")
            }
            ("system", text) => {
                self.talk.set_system((!text.is_empty()).then(|| text.to_owned()));
                self.say(if text.is_empty() { "No system text." } else { "The system text is set." })
            }
            ("adapter", "") => {
                let names: Vec<&str> = self.adapters.iter().map(|(name, _)| name.as_str()).collect();
                let current = self.talk.adapter().unwrap_or("none");
                self.say(format!(
                    "In use: {current}. There are: none{}",
                    names.iter().map(|name| format!(", {name}")).collect::<String>()
                ))
            }
            ("adapter", "none") => {
                self.talk.set_adapter(None);
                self.say("Without an adapter.")
            }
            ("adapter", name) => match self.adapters.iter().find(|(known, _)| known == name) {
                Some(adapter) => {
                    self.talk.set_adapter(Some(adapter.clone()));
                    self.say(format!("With the adapter {name}."))
                }
                None => self.say(format!("There is no adapter {name}: --adapter {name}=DIR gives one at the start.")),
            },
            _ => self.say(format!("There is no command /{name}; /help lists them.")),
        }
    }

    /// Answers a message, printing the answer as it comes. Returns whether Ctrl-C stopped it.
    async fn answer(&mut self, message: &str, interrupts: &mut StopSignal) -> Result<bool, CliError> {
        let json = self.output.is_json();
        let print = |piece: Piece<'_>| {
            if !json {
                let mut stdout = std::io::stdout().lock();
                // A closed stdout is noticed at the end of the answer.
                let _ = write!(stdout, "{}", piece.0).and_then(|()| stdout.flush());
            }
        };
        let answer = self.talk.answer(message, interrupts.next(), print).await;
        match answer {
            Ok(answer) => {
                let interrupted = answer.finish == "interrupted";
                let shown = Answered { text: if json { answer.text.clone() } else { String::new() }, ..answer };
                self.output.emit(&shown)?;
                Ok(interrupted)
            }
            Err(TalkError::Failed(error)) => Err(error.into()),
            Err(TalkError::Refused(reason)) => self.say(reason).map(|()| false),
        }
    }
}
