//! Conversations with all that a template may be told: tools, calls of them and their results, variables of the template's own.

use std::collections::BTreeMap;

use minijinja::context;
use minijinja::value::Serde;
use serde::Serialize;

use super::error::TemplateError;
use super::template::{ChatTemplate, Message};

/// JSON whose objects keep the order of their keys, which models see.
pub(crate) type Json = minijinja::Value;

/// Variables of a template, by name.
pub(crate) type Variables = BTreeMap<String, Json>;

/// What is put behind a last message that is to be continued, to find its end in the text.
const MARK: &str = "CONTINUED-FROM-HERE ";

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Turn {
    /// Who speaks.
    pub(crate) role: String,
    /// The text.
    pub(crate) content: String,
    /// The speaker's name, or the tool's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    /// What the model thought before it answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reasoning_content: Option<String>,
    /// Tools that the model called.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) tool_calls: Vec<Call>,
    /// The call whose result this is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tool_call_id: Option<String>,
}

impl From<&Message> for Turn {
    fn from(message: &Message) -> Self {
        Self::new(&message.role, message.content.clone())
    }
}

impl Turn {
    /// A turn that is text alone.
    pub(crate) fn new(role: &str, content: String) -> Self {
        let (name, reasoning_content, tool_calls, tool_call_id) = (None, None, Vec::new(), None);
        Self { role: role.to_owned(), content, name, reasoning_content, tool_calls, tool_call_id }
    }
}

/// A call of a tool.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Call {
    /// What its result names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<String>,
    /// Always `function`.
    pub(crate) r#type: &'static str,
    /// What is called.
    pub(crate) function: Function,
}

/// The function that a call is for.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Function {
    /// Its name.
    pub(crate) name: String,
    /// An object, or the text of one.
    pub(crate) arguments: Json,
}

/// How the text of a conversation ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Ending {
    /// With what stands in front of the assistant's next answer.
    #[default]
    Answer,
    /// Behind the last message.
    Closed,
    /// Within the last message, which is to be continued.
    Continued,
}

/// A conversation with all that a template may be told.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Conversation {
    /// The turns.
    pub(crate) turns: Vec<Turn>,
    /// A list of tools.
    pub(crate) tools: Option<Json>,
    /// A list of documents.
    pub(crate) documents: Option<Json>,
    /// Variables of the template's own.
    pub(crate) variables: Variables,
    /// How the text ends.
    pub(crate) ending: Ending,
}

impl Conversation {
    /// Of messages and variables alone.
    pub(crate) fn new(messages: &[Message], variables: &Variables) -> Self {
        Self { turns: messages.iter().map(Turn::from).collect(), variables: variables.clone(), ..Self::default() }
    }

    /// Whether a tool was called, or its result given.
    fn has_calls(&self) -> bool {
        self.turns.iter().any(|turn| turn.role == "tool" || !turn.tool_calls.is_empty())
    }

    /// The same with each call's arguments as JSON text, for templates that put texts together.
    fn with_arguments_as_text(&self) -> Option<Self> {
        let mut other = self.clone();
        for call in other.turns.iter_mut().flat_map(|turn| &mut turn.tool_calls) {
            let text = serde_json::to_string(&call.function.arguments).ok()?;
            call.function.arguments = Json::from(text);
        }
        (other != *self).then_some(other)
    }

    /// The same with calls and results as ordinary messages, for templates that know no tools.
    fn with_calls_as_text(&self) -> Option<Self> {
        let mut turns: Vec<Turn> = Vec::new();
        for turn in &self.turns {
            let mut plain = Turn { tool_calls: Vec::new(), tool_call_id: None, ..turn.clone() };
            for Call { function: Function { name, arguments }, .. } in &turn.tool_calls {
                let gap = if plain.content.is_empty() { "" } else { "\n" };
                let arguments = serde_json::to_string(arguments).ok()?;
                plain.content += &format!(
                    "{gap}{{\"name\": {}, \"arguments\": {arguments}}}",
                    serde_json::Value::from(name.as_str())
                );
            }
            if plain.role == "tool" {
                (plain.role, plain.name) = ("user".to_owned(), None);
            }
            // Such templates mostly want the two sides to take turns.
            match turns.last_mut() {
                Some(last) if last.role == plain.role && plain.role == "user" => {
                    last.content += "\n\n";
                    last.content += &plain.content;
                }
                _ => turns.push(plain),
            }
        }
        Some(Self { turns, ..self.clone() })
    }
}

impl ChatTemplate {
    /// The text of a conversation.
    ///
    /// Calls are shown with their arguments as objects, as transformers and vLLM do it; where the template fails on that, as texts. A
    /// template that does not know of tools is shown calls and results as ordinary messages if it refuses them.
    ///
    /// # Errors
    /// [`TemplateError::Refused`] and [`TemplateError::Failed`].
    pub(crate) fn render_conversation(&self, conversation: &Conversation) -> Result<String, TemplateError> {
        let first = self.render_once(conversation);
        let (Err(_), true) = (&first, conversation.has_calls()) else { return first };
        let other = if self.source().contains("tool") {
            conversation.with_arguments_as_text()
        } else {
            conversation.with_calls_as_text()
        };
        match other.map(|other| self.render_once(&other)) {
            Some(Ok(text)) => Ok(text),
            _ => first,
        }
    }

    fn render_once(&self, conversation: &Conversation) -> Result<String, TemplateError> {
        let Conversation { turns, tools, documents, variables, ending } = conversation;
        let mut turns = turns.clone();
        if let (Ending::Continued, Some(last)) = (ending, turns.last_mut()) {
            last.content += MARK;
        }
        let given = context! {
            messages => Serde(&turns),
            add_generation_prompt => *ending == Ending::Answer,
            tools => tools,
            documents => documents,
        };
        let variables = Json::from_pairs(variables.iter().map(|(name, value)| (name.as_str(), value.clone())));
        let mut text = self.render_given(context! { ..given, ..variables })?;
        if *ending == Ending::Continued {
            // As transformers does it: templates that trim messages have trimmed the mark, and what stands in front of it is to be as if it
            // had been trimmed.
            let Some(end) = text.rfind(MARK.trim_end()) else {
                let message = "the last message is not in the text that the template makes, so it cannot be continued";
                return Err(TemplateError::Refused(message.to_owned()));
            };
            let kept = text[end..].starts_with(MARK);
            text.truncate(end);
            if !kept {
                text.truncate(text.trim_end().len());
            }
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests;
