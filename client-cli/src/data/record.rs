//! JSON lines as records.

use std::path::Path;

use petals_client::{Label, Task};
use serde_json::{Map, Value};

use super::error::{DataError, LineProblem};
use super::lines;

/// One line, before tokenisation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    /// A text to continue.
    Text(String),
    /// A prompt and what shall follow it.
    Completion { prompt: String, completion: String },
    /// A text and its class.
    Labelled { text: String, label: Label },
}

/// A record and the number of its line.
pub(super) type Numbered = (usize, Record);

/// Reads every line that is not blank. Fields that the task does not know are ignored.
pub(super) fn read(path: &Path, task: Task) -> Result<Vec<Numbered>, DataError> {
    let mut records: Vec<Numbered> = Vec::new();
    lines::for_each(path, |line, text| {
        let record = parse(text, task)?;
        if let (Record::Labelled { label, .. }, Some((_, Record::Labelled { label: first, .. }))) =
            (&record, records.first())
            && matches!(label, Label::Number(_)) != matches!(first, Label::Number(_))
        {
            return Err(LineProblem::OtherKindOfLabel(label.clone(), first.clone()));
        }
        records.push((line, record));
        Ok(())
    })?;
    Ok(records)
}

fn parse(line: &str, task: Task) -> Result<Record, LineProblem> {
    let value: Value = serde_json::from_str(line).map_err(|error| LineProblem::NotJson(error.to_string()))?;
    let Value::Object(fields) = value else { return Err(LineProblem::NotAnObject) };
    match task {
        Task::SeqCls => Ok(Record::Labelled { text: text(&fields, "text", task)?, label: label(&fields)? }),
        Task::CausalLm if fields.contains_key("prompt") && fields.contains_key("text") => {
            Err(LineProblem::TextAndPrompt)
        }
        Task::CausalLm if fields.contains_key("prompt") || fields.contains_key("completion") => {
            let prompt = text(&fields, "prompt", task)?;
            Ok(Record::Completion { prompt, completion: text(&fields, "completion", task)? })
        }
        Task::CausalLm => Ok(Record::Text(text(&fields, "text", task)?)),
    }
}

fn text(fields: &Map<String, Value>, name: &'static str, task: Task) -> Result<String, LineProblem> {
    match fields.get(name) {
        None => Err(LineProblem::Missing(name, task)),
        Some(Value::String(text)) if text.is_empty() => Err(LineProblem::EmptyText(name)),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(LineProblem::NotText(name)),
    }
}

fn label(fields: &Map<String, Value>) -> Result<Label, LineProblem> {
    let value = fields.get("label").ok_or(LineProblem::Missing("label", Task::SeqCls))?;
    match value {
        Value::String(text) => Ok(Label::Text(text.clone())),
        other => other.as_i64().map(Label::Number).ok_or_else(|| LineProblem::BadLabel(other.to_string())),
    }
}
