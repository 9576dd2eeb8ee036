//! A conversation with the model.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use petals_client::{Finish, GenerationConfig, Generator, PromptTables, RemoteModel, Sampling};

use crate::chat::{ChatTemplate, Conversation, Message, Variables};
use crate::output::Answered;
use crate::text::{TextStream, TextTokenizer};

/// Tokens that a conversation has room for at first. When it needs more it gets twice what it needs, and is computed anew once.
const ROOM: usize = 1024;

/// Some text of an answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece<'a>(pub(super) &'a str);

/// What bounds a conversation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Positions of the model.
    pub(super) positions: usize,
    /// Tokens of an answer.
    pub(super) answer: usize,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum TalkError {
    /// This message cannot be answered; another one may.
    Refused(String),
    /// The swarm cannot.
    Failed(anyhow::Error),
}

/// A conversation, kept on the servers between its turns.
#[derive(Debug)]
pub(super) struct Talk {
    /// Without an adapter.
    model: RemoteModel,
    tokenizer: Arc<TextTokenizer>,
    template: ChatTemplate,
    sampling: Sampling,
    limits: Limits,
    variables: Variables,
    system: Option<String>,
    messages: Vec<Message>,
    adapter: Option<(String, Arc<PromptTables>)>,
    generator: Option<Generator>,
}

impl Talk {
    /// An empty conversation.
    pub(super) fn new(
        model: RemoteModel,
        tokenizer: Arc<TextTokenizer>,
        template: ChatTemplate,
        sampling: Sampling,
        limits: Limits,
    ) -> Self {
        let (variables, system, messages, adapter, generator) = (Variables::new(), None, Vec::new(), None, None);
        Self { model, tokenizer, template, sampling, limits, variables, system, messages, adapter, generator }
    }

    /// Sets variables of the chat template.
    pub(super) fn set_variables(&mut self, variables: Variables) {
        self.variables = variables;
    }

    /// Forgets what was said.
    pub(super) fn reset(&mut self) {
        self.messages.clear();
    }

    /// Sets what stands in front of the conversation.
    pub(super) fn set_system(&mut self, text: Option<String>) {
        self.system = text;
    }

    /// Goes on with another adapter.
    pub(super) fn set_adapter(&mut self, adapter: Option<(String, Arc<PromptTables>)>) {
        self.adapter = adapter;
        // Its keys and values are of another prefix.
        self.generator = None;
    }

    /// The adapter's name.
    pub(super) fn adapter(&self) -> Option<&str> {
        self.adapter.as_ref().map(|(name, _)| name.as_str())
    }

    /// Answers a message; `print` gets the answer as it comes. `interrupt` ends it early, and what there is of it counts.
    ///
    /// # Errors
    /// [`TalkError`]; the message is then forgotten.
    pub(super) async fn answer(
        &mut self,
        message: &str,
        interrupt: impl Future<Output = ()>,
        print: impl Fn(Piece<'_>) + Send,
    ) -> Result<Answered, TalkError> {
        self.messages.push(Message::new("user", message));
        let answer = self.generate(interrupt, print).await;
        match &answer {
            Ok(answer) => self.messages.push(Message::new("assistant", answer.text.clone())),
            Err(_) => drop(self.messages.pop()),
        }
        answer
    }

    async fn generate(
        &mut self,
        interrupt: impl Future<Output = ()>,
        print: impl Fn(Piece<'_>) + Send,
    ) -> Result<Answered, TalkError> {
        let refused = |error: &dyn std::fmt::Display| TalkError::Refused(error.to_string());
        let system = self.system.as_ref().map(|text| Message::new("system", text.clone()));
        let messages: Vec<Message> = system.into_iter().chain(self.messages.iter().cloned()).collect();
        let conversation = Conversation::new(&messages, &self.variables);
        let text = self.template.render_conversation(&conversation).map_err(|error| refused(&error))?;
        let prompt = self.tokenizer.encode_continuation(&text).map_err(|error| refused(&error))?;
        let prefix = self.adapter.as_ref().map_or(0, |(_, tables)| tables.shape().prefix_len);
        let positions = self.limits.positions.saturating_sub(prefix);
        let room = positions.saturating_sub(prompt.len());
        if room == 0 {
            let message =
                format!("The conversation no longer fits into the model's {positions} tokens; /reset begins anew.");
            return Err(TalkError::Refused(message));
        }
        let max_new_tokens = self.limits.answer.min(room);
        let needed = prompt.len() + max_new_tokens;
        let kept = self.generator.take().filter(|generator| generator.max_tokens() >= needed);
        let generator = self.generator.insert(kept.unwrap_or_else(|| {
            let tables = self.adapter.as_ref().map(|(_, tables)| tables.clone());
            let room = needed.saturating_mul(2).max(ROOM).min(positions);
            Generator::new(self.model.clone().with_tables(tables), room)
        }));
        let config = GenerationConfig {
            sampling: self.sampling.clone(),
            max_new_tokens,
            stop_tokens: self.tokenizer.stop_tokens().to_vec(),
            ..GenerationConfig::default()
        };
        let mut stream = TextStream::new(&self.tokenizer, &prompt, []);
        // Shared with the callback, which is dropped half-way if the answer is interrupted.
        let said = Mutex::new((String::new(), 0));
        let say = |piece: &str, tokens: usize| {
            print(Piece(piece));
            if let Ok(mut said) = said.lock() {
                said.0.push_str(piece);
                said.1 += tokens;
            }
        };
        let running = generator.generate(&prompt, &config, |tokens| {
            // What cannot be decoded is left out.
            say(&stream.push(tokens).unwrap_or_default(), tokens.len());
            ControlFlow::Continue(())
        });
        let generation = tokio::select! {
            biased;
            () = interrupt => None,
            generation = running => Some(generation.map_err(|error| TalkError::Failed(anyhow::Error::new(error)))?),
        };
        say(&stream.finish().unwrap_or_default(), 0);
        let (text, tokens) = said.into_inner().unwrap_or_default();
        let adapter = self.adapter.as_ref().map(|(name, _)| name.clone());
        let base = Answered {
            text,
            adapter,
            finish: "interrupted",
            prompt_tokens: prompt.len(),
            reused_tokens: 0,
            tokens,
            time_to_first_token_s: 0.0,
            tokens_per_s: None,
        };
        let Some(generation) = generation else { return Ok(base) };
        Ok(Answered {
            finish: if generation.finish == Finish::Length { "length" } else { "stop" },
            reused_tokens: generation.reused,
            time_to_first_token_s: generation.time_to_first_token.as_secs_f64(),
            tokens_per_s: generation.tokens_per_s(),
            ..base
        })
    }
}
