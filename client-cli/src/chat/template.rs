//! Finding, compiling and rendering a chat template.

use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior, context};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::error::TemplateError;
use super::files::{self, Sources};
use super::{marks, python, source};

/// The name under which the template is compiled.
const NAME: &str = "chat";
/// The name under which that for conversations with tools is compiled, if there is one.
const WITH_TOOLS: &str = "tool_use";
/// The names under which the two are compiled with marks around answers, if they have `generation` blocks.
const MARKED: &str = "marked";
const MARKED_WITH_TOOLS: &str = "marked_tool_use";
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

/// Messages with everything that data has in them, and what is beside them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Told<'a> {
    /// Objects with `role` and mostly `content`.
    pub(crate) messages: &'a [Value],
    /// A list of tools.
    pub(crate) tools: Option<&'a Value>,
    /// Variables of the template's own.
    pub(crate) variables: &'a Map<String, Value>,
}

/// A compiled chat template with the special tokens that it may name.
#[derive(Debug)]
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
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
        // The one for tools says which form calls have.
        let source = sources.with_tools.clone().unwrap_or_else(|| sources.default.clone());
        let marked = |source: &str| Some(marks::rewrite(source)).filter(|(_, found)| *found).map(|(marked, _)| marked);
        let variants = [
            (MARKED, marked(&sources.default)),
            (MARKED_WITH_TOOLS, sources.with_tools.as_deref().and_then(marked)),
            (NAME, Some(sources.default)),
            (WITH_TOOLS, sources.with_tools),
        ];
        for (name, source) in variants {
            let Some(source) = source else { continue };
            let compiled = environment.add_template_owned(name, source::normalised(&source));
            compiled.map_err(|error| TemplateError::Syntax(one_line(&error)))?;
        }
        Ok(Self { environment, source, tokens })
    }

    /// Whether the template itself says what the assistant said, if it is `told` this.
    pub(super) fn marks_answers(&self, told: Told<'_>) -> bool {
        self.has(if self.is_for_tools(told.tools.is_some()) { MARKED_WITH_TOOLS } else { MARKED })
    }

    fn has(&self, name: &str) -> bool {
        self.environment.get_template(name).is_ok()
    }

    /// As transformers chooses: a template of its own for tools, if any are given, be it an empty list.
    fn is_for_tools(&self, tools: bool) -> bool {
        tools && self.has(WITH_TOOLS)
    }

    /// The template as it was written.
    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    /// The text of messages, behind which the assistant's next answer begins.
    ///
    /// # Errors
    /// [`TemplateError::Refused`] and [`TemplateError::Failed`].
    #[cfg(test)]
    pub(crate) fn render(&self, messages: &[Message]) -> Result<String, TemplateError> {
        self.render_with(messages, true)
    }

    /// The text of messages; `answer`: with what comes in front of the assistant's next answer.
    #[cfg(test)]
    pub(super) fn render_with(&self, messages: &[Message], answer: bool) -> Result<String, TemplateError> {
        self.render_given(context! { messages => Serde(messages), add_generation_prompt => answer })
    }

    /// The text of messages; `marked`: with marks around answers, if the template has `generation` blocks.
    pub(super) fn render_told(&self, told: Told<'_>, answer: bool, marked: bool) -> Result<String, TemplateError> {
        let name = match (self.is_for_tools(told.tools.is_some()), marked && self.marks_answers(told)) {
            (false, false) => NAME,
            (false, true) => MARKED,
            (true, false) => WITH_TOOLS,
            (true, true) => MARKED_WITH_TOOLS,
        };
        let given = context! {
            messages => Serde(told.messages),
            add_generation_prompt => answer,
            tools => told.tools.map(Serde),
        };
        let variables = minijinja::Value::from(Serde(told.variables));
        self.render_named(name, context! { ..given, ..variables })
    }

    /// The template's text, with these variables; special tokens by their names are variables too, unless others are given.
    pub(super) fn render_given(&self, given: minijinja::Value) -> Result<String, TemplateError> {
        let tools = given.get_attr("tools").is_ok_and(|tools| !tools.is_undefined() && !tools.is_none());
        self.render_named(if self.is_for_tools(tools) { WITH_TOOLS } else { NAME }, given)
    }

    fn render_named(&self, name: &str, given: minijinja::Value) -> Result<String, TemplateError> {
        let template = self.environment.get_template(name).map_err(|error| TemplateError::Syntax(one_line(&error)))?;
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
