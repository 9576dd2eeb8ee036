//! How models write that they call tools.

use super::ChatTemplate;

/// How a family of models writes calls of tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ToolFormat {
    /// `<tool_call>{"name": …, "arguments": …}</tool_call>`, as Hermes, Qwen 2.5 and Qwen 3 do.
    Hermes,
    /// `{"name": …, "parameters": …}` as the whole answer, or behind `<|python_tag|>`, as Llama 3.x does.
    Llama,
    /// `[TOOL_CALLS][{"name": …, "arguments": …}]`, as Mistral does.
    Mistral,
}

impl ToolFormat {
    /// The format that a template tells the model to use; nothing if it tells of no tools, or of another format.
    pub(crate) fn of(template: &ChatTemplate) -> Option<Self> {
        let source = template.source();
        // Qwen3-Coder has the mark around another format.
        if !source.contains("tool") || source.contains("<function=") {
            None
        } else if source.contains("[TOOL_CALLS]") {
            Some(Self::Mistral)
        } else if source.contains("<tool_call>") {
            Some(Self::Hermes)
        } else if source.contains("<|python_tag|>") || source.contains("<|start_header_id|>") {
            Some(Self::Llama)
        } else {
            None
        }
    }

    /// What calls begin with.
    pub(crate) fn mark(self) -> &'static str {
        match self {
            Self::Hermes => "<tool_call>",
            Self::Llama => "<|python_tag|>",
            Self::Mistral => "[TOOL_CALLS]",
        }
    }

    /// How an answer begins that calls a tool.
    pub(crate) fn opening(self) -> &'static str {
        match self {
            Self::Hermes => "<tool_call>\n{\"name\": ",
            Self::Llama => "{\"name\": ",
            Self::Mistral => "[TOOL_CALLS][{\"name\": ",
        }
    }

    /// How it goes on, if it calls the tool `name`. No space at the end: tokens have it in front of what follows.
    pub(crate) fn name(self, name: &str) -> String {
        let arguments = if self == Self::Llama { "parameters" } else { "arguments" };
        format!("{}, \"{arguments}\":", serde_json::Value::from(name))
    }
}
