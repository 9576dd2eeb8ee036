//! Finding, compiling and rendering a chat template.

use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior, context};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::files::{self, Sources};
use super::{TemplateError, python, source};

/// The name under which the template is compiled.
const NAME: &str = "chat";
/// The name under which that for conversations with tools is compiled, if there is one.
const WITH_TOOLS: &str = "tool_use";
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

/// A compiled chat template with the special tokens that it may name.
#[derive(Debug)]
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    tokens: Map<String, Value>,
}

impl ChatTemplate {
    /// The template of `file`, or else of the model's directory.
    ///
    /// # Errors
    /// [`TemplateError::Missing`] if there is none, others if it cannot be used.
    pub(crate) fn load(model: &Path, file: Option<&Path>) -> Result<Self, TemplateError> {
        let sources = match file {
            Some(path) => files::read(path)?.into(),
            None => files::of_model(model)?,
        };
        let tokens = files::named_tokens(model, &SPECIAL)?;
        Self::of_sources(sources, tokens)
    }

    /// Compiles a template; `tokens` are variables of it.
    #[cfg(test)]
    pub(super) fn compile(source: String, tokens: Map<String, Value>) -> Result<Self, TemplateError> {
        Self::of_sources(source.into(), tokens)
    }

    fn of_sources(sources: Sources, tokens: Map<String, Value>) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        let mut syntax = SyntaxConfig::builder();
        syntax.trim_blocks(true).lstrip_blocks(true);
        environment.set_syntax(syntax.build().map_err(|error| TemplateError::Syntax(one_line(&error)))?);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        python::install(&mut environment);
        for (name, source) in [(NAME, Some(sources.default)), (WITH_TOOLS, sources.with_tools)] {
            let Some(source) = source else { continue };
            let compiled = environment.add_template_owned(name, source::normalised(&source));
            compiled.map_err(|error| TemplateError::Syntax(one_line(&error)))?;
        }
        Ok(Self { environment, tokens })
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
        self.render_given(context! { messages => Serde(messages), add_generation_prompt => answer })
    }

    /// The template's text, with these variables; special tokens by their names are variables too, unless others are given.
    pub(super) fn render_given(&self, given: minijinja::Value) -> Result<String, TemplateError> {
        // As transformers chooses: a template of its own for tools, if any are given, be it an empty list.
        let tools = given.get_attr("tools").is_ok_and(|tools| !tools.is_undefined() && !tools.is_none());
        let special = tools.then(|| self.environment.get_template(WITH_TOOLS).ok()).flatten();
        let template = match special {
            Some(template) => template,
            None => self.environment.get_template(NAME).map_err(|error| TemplateError::Syntax(one_line(&error)))?,
        };
        let tokens = minijinja::Value::from(Serde(&self.tokens));
        let missing = context! { tools => (), documents => () };
        template.render(context! { ..given, ..tokens, ..missing }).map_err(|error| match python::raised(&error) {
            Some(message) => TemplateError::Refused(message),
            None => TemplateError::Failed(one_line(&error)),
        })
    }
}

/// An error's message with its place in the template.
fn one_line(error: &minijinja::Error) -> String {
    error.to_string().replace('\n', " ")
}
