//! Finding, compiling and rendering a chat template.

use std::fs;
use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior, context};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{marks, python};

/// The name under which the one template is compiled.
const NAME: &str = "chat";
/// Steps that a template may take. Ten thousand messages take less; an endless loop ends.
const FUEL: u64 = 20_000_000;
/// Special tokens that templates use by name.
const SPECIAL: [&str; 6] = ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token"];

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Message {
    /// `system`, `user` or `assistant`; some models know others.
    pub(crate) role: String,
    /// The text.
    pub(crate) content: String,
}

impl Message {
    /// A message of a role.
    pub(crate) fn new(role: &str, content: impl Into<String>) -> Self {
        Self { role: role.to_owned(), content: content.into() }
    }
}

/// Why a conversation did not become a text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum TemplateError {
    /// The model has no template.
    #[error(
        "the model {} has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json): it may not \
         be tuned for chats; give one with --chat-template FILE",
        .0.display()
    )]
    Missing(PathBuf),
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A configuration file is not what it should be.
    #[error("{} is malformed: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The template is no Jinja.
    #[error("the chat template cannot be used: {0}")]
    Syntax(String),
    /// The template itself refuses the conversation, for example because roles do not alternate.
    #[error("the model's chat template refuses these messages: {0}")]
    Refused(String),
    /// The template fails.
    #[error("the model's chat template fails on these messages: {0}")]
    Failed(String),
}

/// A compiled chat template with the special tokens that it may name.
#[derive(Debug)]
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    tokens: Map<String, Value>,
    /// Whether it has `generation` blocks.
    marks: bool,
}

impl ChatTemplate {
    /// The template of `file`, or else of the model's directory.
    ///
    /// # Errors
    /// [`TemplateError::Missing`] if there is none, others if it cannot be used.
    pub(crate) fn load(model: &Path, file: Option<&Path>) -> Result<Self, TemplateError> {
        let config = read_json(&model.join("tokenizer_config.json"))?;
        let source = match file {
            Some(path) => read(path)?,
            None => of_model(model, &config)?,
        };
        let named = read_json(&model.join("special_tokens_map.json"))?;
        let tokens = SPECIAL.iter().filter_map(|&name| {
            let token = token_text(config.get(name)).or_else(|| token_text(named.get(name)))?;
            Some((name.to_owned(), Value::String(token)))
        });
        Self::compile(source, tokens.collect())
    }

    /// Compiles a template; `tokens` are variables of it.
    pub(super) fn compile(source: String, tokens: Map<String, Value>) -> Result<Self, TemplateError> {
        let (source, marks) = marks::rewrite(&source);
        let mut environment = Environment::new();
        let mut syntax = SyntaxConfig::builder();
        syntax.trim_blocks(true).lstrip_blocks(true);
        environment.set_syntax(syntax.build().map_err(|error| TemplateError::Syntax(one_line(&error)))?);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        python::install(&mut environment);
        let compiled = environment.add_template_owned(NAME, source);
        compiled.map_err(|error| TemplateError::Syntax(one_line(&error)))?;
        Ok(Self { environment, tokens, marks })
    }

    /// Whether the template itself says what the assistant said.
    pub(super) fn marks_answers(&self) -> bool {
        self.marks
    }

    /// The text of a conversation, behind which the assistant's next answer begins.
    ///
    /// # Errors
    /// [`TemplateError::Refused`] and [`TemplateError::Failed`].
    pub(crate) fn render(&self, messages: &[Message]) -> Result<String, TemplateError> {
        self.render_with(messages, true)
    }

    /// The text of a conversation; `answer`: with what comes in front of the assistant's next answer.
    pub(super) fn render_with(&self, messages: &[Message], answer: bool) -> Result<String, TemplateError> {
        self.render_any(messages, answer, false)
    }

    /// As [`Self::render_with`], of messages with everything that data has in them; `marked`: with marks around answers.
    pub(super) fn render_json(&self, messages: &[Value], answer: bool, marked: bool) -> Result<String, TemplateError> {
        self.render_any(messages, answer, marked)
    }

    fn render_any<M: Serialize>(&self, messages: &[M], answer: bool, marked: bool) -> Result<String, TemplateError> {
        let template = self.environment.get_template(NAME).map_err(|error| TemplateError::Syntax(one_line(&error)))?;
        let given = context! {
            messages => Serde(messages),
            add_generation_prompt => answer,
            tools => (),
            documents => (),
        };
        let tokens = minijinja::Value::from(Serde(&self.tokens));
        let text = template.render(context! { ..given, ..tokens }).map_err(|error| match python::raised(&error) {
            Some(message) => TemplateError::Refused(message),
            None => TemplateError::Failed(one_line(&error)),
        })?;
        Ok(if self.marks && !marked { marks::take(&text).0 } else { text })
    }
}

/// The template in a model's directory, where transformers looks for it.
fn of_model(model: &Path, config: &Value) -> Result<String, TemplateError> {
    let path = model.join("chat_template.jinja");
    if path.is_file() {
        return read(&path);
    }
    let missing = || TemplateError::Missing(model.to_owned());
    match config.get("chat_template") {
        None | Some(Value::Null) => Err(missing()),
        Some(Value::String(template)) => Ok(template.clone()),
        // Several with names; the others are for tools and retrieval.
        Some(Value::Array(named)) => {
            let default = named.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"));
            let template = default.and_then(|entry| entry.get("template")?.as_str());
            template.map(str::to_owned).ok_or_else(missing)
        }
        Some(_) => Err(TemplateError::Malformed {
            path: model.join("tokenizer_config.json"),
            reason: "chat_template is neither a text nor a list of named texts".to_owned(),
        }),
    }
}

fn read(path: &Path) -> Result<String, TemplateError> {
    fs::read_to_string(path).map_err(|source| TemplateError::Read { path: path.to_owned(), source })
}

/// A JSON file; null if there is none.
fn read_json(path: &Path) -> Result<Value, TemplateError> {
    if !path.is_file() {
        return Ok(Value::Null);
    }
    let malformed =
        |error: serde_json::Error| TemplateError::Malformed { path: path.to_owned(), reason: error.to_string() };
    serde_json::from_str(&read(path)?).map_err(malformed)
}

fn token_text(token: Option<&Value>) -> Option<String> {
    let token = token?;
    token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned)
}

/// An error's message with its place in the template.
fn one_line(error: &minijinja::Error) -> String {
    error.to_string().replace('\n', " ")
}
