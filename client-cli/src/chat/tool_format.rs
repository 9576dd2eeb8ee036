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
    /// `<tool_call><function=…><parameter=…>…</parameter></function></tool_call>`, as Qwen3-Coder does.
    QwenXml,
    /// `[name(key=value), …]` as the whole answer, or behind `<|python_start|>`, as Llama 3.2 and 4 do if they are told to.
    Pythonic,
}

impl ToolFormat {
    /// The format that a template tells the model to use; nothing if it tells of no tools, or of another format.
    pub(crate) fn of(template: &ChatTemplate) -> Option<Self> {
        let source = template.source();
        // Qwen3-Coder has the mark of Hermes around another format.
        if !source.contains("tool") {
            None
        } else if source.contains("<function=") {
            source.contains("<parameter=").then_some(Self::QwenXml)
        } else if source.contains("[TOOL_CALLS]") {
            Some(Self::Mistral)
        } else if source.contains("<tool_call>") {
            Some(Self::Hermes)
        } else if source.contains("[func_name1(params_name1=") {
            Some(Self::Pythonic)
        } else if source.contains("<|python_tag|>") || source.contains("<|start_header_id|>") {
            Some(Self::Llama)
        } else {
            None
        }
    }

    /// What calls begin with.
    pub(crate) fn mark(self) -> &'static str {
        match self {
            Self::Hermes | Self::QwenXml => "<tool_call>",
            Self::Llama => "<|python_tag|>",
            Self::Mistral => "[TOOL_CALLS]",
            Self::Pythonic => "<|python_start|>",
        }
    }

    /// What calls begin with, and what they have in any case: models forget the first.
    pub(crate) fn marks(self) -> &'static [&'static str] {
        match self {
            Self::Hermes => &["<tool_call>"],
            Self::Llama => &["<|python_tag|>"],
            Self::Mistral => &["[TOOL_CALLS]"],
            Self::QwenXml => &["<tool_call>", "<function="],
            Self::Pythonic => &["<|python_start|>"],
        }
    }

    /// How an answer begins that calls a tool.
    pub(crate) fn opening(self) -> &'static str {
        match self {
            Self::Hermes => "<tool_call>\n{\"name\": ",
            Self::Llama => "{\"name\": ",
            Self::Mistral => "[TOOL_CALLS][{\"name\": ",
            Self::QwenXml => "<tool_call>\n<function=",
            Self::Pythonic => "[",
        }
    }

    /// Whether every call has the mark.
    pub(crate) fn is_marked(self) -> bool {
        !matches!(self, Self::Llama | Self::Pythonic)
    }

    /// How it goes on, if it calls the tool `name`. No space at the end: tokens have it in front of what follows.
    pub(crate) fn name(self, name: &str) -> String {
        let quoted = serde_json::Value::from(name);
        match self {
            Self::QwenXml => format!("{name}>"),
            Self::Pythonic => format!("{name}("),
            Self::Llama => format!("{quoted}, \"parameters\":"),
            Self::Hermes | Self::Mistral => format!("{quoted}, \"arguments\":"),
        }
    }

    /// What stands behind the arguments of a call.
    pub(crate) fn close(self) -> &'static str {
        match self {
            Self::Hermes => "}\n</tool_call>",
            Self::QwenXml => "</function>\n</tool_call>",
            Self::Llama | Self::Mistral => "}",
            Self::Pythonic => ")",
        }
    }

    /// What stands between a call and the name of the next one.
    pub(crate) fn next(self) -> &'static str {
        match self {
            Self::Hermes => "\n<tool_call>\n{\"name\": ",
            Self::QwenXml => "\n<tool_call>\n<function=",
            Self::Llama => "; {\"name\": ",
            Self::Mistral => ", {\"name\": ",
            Self::Pythonic => ", ",
        }
    }

    /// What stands behind the last call.
    pub(crate) fn end(self) -> &'static str {
        if matches!(self, Self::Mistral | Self::Pythonic) { "]" } else { "" }
    }
}
