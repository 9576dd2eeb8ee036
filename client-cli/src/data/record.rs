//! Rows as records: what is to be learnt of each.

use petals_client::{Label, Task};
use serde_json::Value;

use super::DataRules;
use super::columns::{Fields, Shape};
use super::conversation::Conversation;
use super::counts::Counts;
use super::error::{DataError, Place};
use super::label;
use super::problem::Problem;
use super::source::{Format, Source};

/// What is learnt of one row, before tokenisation.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Record {
    /// A text to continue.
    Text(String),
    /// A prompt and what shall follow it. The prompt may be empty.
    Completion { prompt: String, completion: String },
    /// A conversation, of which the assistant's turns are learnt.
    Talk(Conversation),
    /// A text and its class.
    Labelled { text: String, label: Label },
}

/// The records of a file in their order, and what became of its rows.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) records: Vec<(Place, Record)>,
    pub(super) counts: Counts,
}

/// Reads every row. Columns that the task does not know are ignored; rows without text are left out and counted.
pub(super) fn read(source: Source, rules: &DataRules<'_>) -> Result<Records, DataError> {
    let mut read = Records::default();
    // Tables have texts alone, so the kind of their labels shows when all of them are known.
    let typed = !matches!(source.format(), Format::Table { .. });
    let mut first_label: Option<Label> = None;
    source.for_each(|place, fields| {
        read.counts.rows += 1;
        let record = match rules.task {
            Task::SeqCls => labelled(&fields, rules, &mut read.counts)?,
            Task::CausalLm => causal(&fields, rules)?,
        };
        if let Some(Record::Labelled { label, .. }) = &record {
            let first = first_label.get_or_insert_with(|| label.clone());
            if typed && matches!(label, Label::Number(_)) != matches!(first, Label::Number(_)) {
                return Err(Problem::OtherKindOfLabel(label.clone(), first.clone()));
            }
        }
        match record {
            Some(record) => read.records.push((place, record)),
            None => read.counts.empty += 1,
        }
        Ok(())
    })?;
    if !typed {
        numbers_of_table(&mut read, rules);
    }
    Ok(read)
}

/// Makes the labels of a table numbers, if all of them are.
fn numbers_of_table(read: &mut Records, rules: &DataRules<'_>) {
    let labels: Vec<Label> = read.records.iter().filter_map(|(_, record)| record.label().cloned()).collect();
    let known = rules.labels.and_then(|known| known.label(0)).map(|label| matches!(label, Label::Number(_)));
    let Some(numbers) = label::of_table(&labels, known) else { return };
    let all = read.records.iter_mut().filter_map(|(_, record)| match record {
        Record::Labelled { label, .. } => Some(label),
        _ => None,
    });
    all.zip(numbers).for_each(|(label, number)| *label = number);
}

impl Record {
    /// The class, if it has one.
    pub(super) fn label(&self) -> Option<&Label> {
        match self {
            Self::Labelled { label, .. } => Some(label),
            Self::Text(_) | Self::Completion { .. } | Self::Talk(_) => None,
        }
    }
}

fn labelled(fields: &Fields, rules: &DataRules<'_>, counts: &mut Counts) -> Result<Option<Record>, Problem> {
    let columns = rules.columns;
    let missing = |named: &Option<String>, usual: &str| missing(named.as_deref().unwrap_or(usual), fields, rules.task);
    let text = columns.text(fields).ok_or_else(|| missing(&columns.text, "text"))?;
    let label = columns.label(fields).ok_or_else(|| missing(&columns.label, "label"))?;
    let text = text_of(text, fields, rules.task)?;
    if is_blank(&text) {
        return Ok(None);
    }
    let (label, trimmed) = label::parse(label, fields.get(label).unwrap_or(&Value::Null))?;
    counts.trimmed_labels += usize::from(trimmed);
    Ok(Some(Record::Labelled { text, label }))
}

fn causal(fields: &Fields, rules: &DataRules<'_>) -> Result<Option<Record>, Problem> {
    let (columns, task) = (rules.columns, rules.task);
    let none = || Problem::NoColumns { task, has: names(fields) };
    if columns.prompt.is_none() && columns.text.is_none() {
        no_preferences(fields)?;
    }
    let record = match columns.shape(fields).ok_or_else(none)? {
        Shape::Messages(column) => talk(Conversation::of(column, fields)?),
        Shape::Completion(..) if columns.prompt.is_none() && fields.contains_key("text") => {
            return Err(Problem::TextAndPrompt);
        }
        Shape::Completion(prompt, completion) => {
            let value = |name: &str| fields.get(name).ok_or_else(|| missing(name, fields, task));
            match (value(&prompt)?, value(&completion)?) {
                (Value::Array(_), Value::String(_)) => {
                    return Err(Problem::TextAndMessages { text: completion, messages: prompt });
                }
                (Value::String(_), Value::Array(_)) => {
                    return Err(Problem::TextAndMessages { text: prompt, messages: completion });
                }
                (Value::Array(_), _) => talk(Conversation::of_completion((&prompt, &completion), fields)?),
                _ => self::completion(text_of(&prompt, fields, task)?, text_of(&completion, fields, task)?),
            }
        }
        Shape::Instruction => {
            let text = |name| if fields.contains_key(name) { text_of(name, fields, task) } else { Ok(String::new()) };
            instruction(text("instruction")?, text("input")?, text("output")?, rules)
        }
        Shape::Text(column) => {
            let text = text_of(&column, fields, task)?;
            (!is_blank(&text)).then_some(Record::Text(text))
        }
    };
    Ok(record)
}

/// Refuses rows that say how good answers are: whoever learns all of them alike learns the bad ones too.
fn no_preferences(fields: &Fields) -> Result<(), Problem> {
    let has = |name: &str| fields.contains_key(name);
    if has("chosen") && has("rejected") && !has("messages") && !has("completion") {
        return Err(Problem::Preferences);
    }
    let is_truth = |label: &Value| match label {
        Value::Bool(_) => true,
        // As tables have it.
        Value::String(text) => ["true", "false"].contains(&text.trim().to_ascii_lowercase().as_str()),
        _ => false,
    };
    if has("prompt") && has("completion") && fields.get("label").is_some_and(is_truth) {
        return Err(Problem::Ratings);
    }
    Ok(())
}

fn talk(conversation: Conversation) -> Option<Record> {
    (!conversation.is_empty()).then_some(Record::Talk(conversation))
}

fn completion(prompt: String, completion: String) -> Option<Record> {
    (!is_blank(&completion)).then_some(Record::Completion { prompt, completion })
}

/// A task and its answer: a conversation where the model has a chat template, else in the words of Stanford Alpaca.
fn instruction(instruction: String, input: String, output: String, rules: &DataRules<'_>) -> Option<Record> {
    if is_blank(&output) {
        return None;
    }
    let more = !is_blank(&input);
    if rules.templates.exists() {
        let question = if more { format!("{instruction}\n{input}") } else { instruction };
        return talk(Conversation::of_question(question, output));
    }
    let prompt = if more {
        format!(
            "Below is an instruction that describes a task, paired with an input that provides further context. Write a \
             response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n\
             ### Response:\n"
        )
    } else {
        format!(
            "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n\
             ### Instruction:\n{instruction}\n\n### Response:\n"
        )
    };
    completion(prompt, output)
}

/// The text of a field; null, as data sets have it for what is not there, is empty.
fn text_of(column: &str, fields: &Fields, task: Task) -> Result<String, Problem> {
    match fields.get(column) {
        None => Err(missing(column, fields, task)),
        Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(Problem::NotText(column.to_owned())),
    }
}

fn missing(column: &str, fields: &Fields, task: Task) -> Problem {
    Problem::Missing { column: column.to_owned(), task, has: names(fields) }
}

fn names(fields: &Fields) -> Vec<String> {
    fields.keys().map(|name| format!("`{name}`")).collect()
}

fn is_blank(text: &str) -> bool {
    text.trim().is_empty()
}
