//! The model card, `README.md`: what an adapter is, for people and for Hugging Face's hub.
//!
//! Front matter as the hub documents it (`huggingface_hub.ModelCardData`); the hub knows a model by the name `organisation/model`, so that is
//! what the base model is called where it is known.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::sync::Once;

use serde_json::Value;

use super::atomic_file::{WriteError, write_atomically};
use super::labels::Label;
use super::names::Task;
use super::tables::TableShape;
use super::{AdaptedModel, AdapterManifest, base, peft};

/// Name of the file.
const FILE: &str = "README.md";
/// The line by which a card is known to be one of ours.
const MARK: &str = "<!-- petals-tune wrote this card and writes it anew with the adapter. Remove this line to keep what you change. -->";
/// Most classes that are listed.
const CLASSES_SHOWN: usize = 50;

/// What a card says beside what the adapter itself knows.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CardDetails {
    /// What the adapter was trained on.
    pub data: Option<CardData>,
    /// What it was measured on.
    pub held_out: Option<CardData>,
    /// Flags of the run with their values.
    pub settings: BTreeMap<String, String>,
    /// What was measured on held-out data.
    pub scores: Vec<CardScore>,
    /// The steps behind which it was measured.
    pub measured_at: u64,
}

/// A data file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CardData {
    /// Its name, without the folders of one machine.
    pub file: String,
    /// Examples that were used.
    pub examples: usize,
}

/// A figure on held-out data.
#[derive(Debug, Clone, PartialEq)]
pub struct CardScore {
    /// The hub's name of the metric, such as `accuracy`.
    pub metric: &'static str,
    /// The name for people.
    pub name: &'static str,
    /// Its value.
    pub value: f64,
}

/// Writes the card, unless there is a README that somebody else wrote, which stays as it is.
pub(super) fn write(directory: &Path, card: &str) -> Result<(), WriteError> {
    static WARNED: Once = Once::new();
    let path = directory.join(FILE);
    if path.symlink_metadata().is_ok() && !is_ours(&path) {
        WARNED.call_once(|| {
            tracing::warn!(
                "{} was not written by petals-tune and stays as it is: no model card is written",
                path.display()
            );
        });
        return Ok(());
    }
    write_atomically(&path, card.as_bytes())
}

/// Whether a file is a card with our mark in it. One that cannot be read is not known to be.
fn is_ours(path: &Path) -> bool {
    fs::read(path)
        .is_ok_and(|bytes| bytes.split(|&byte| byte == b'\n').any(|line| line.trim_ascii() == MARK.as_bytes()))
}

/// The card's text.
pub(super) fn text(
    manifest: &AdapterManifest,
    shape: &TableShape,
    model: &AdaptedModel,
    details: &CardDetails,
) -> String {
    let base = base::hub_name(model);
    let mut card = front_matter(manifest, &base, details);
    // Writing to a string cannot fail.
    let _ = body(&mut card, manifest, shape, model, &base, details);
    card
}

fn front_matter(manifest: &AdapterManifest, base: &str, details: &CardDetails) -> String {
    let (pipeline, name) = match manifest.task {
        Task::CausalLm => ("text-generation", "Text generation"),
        Task::SeqCls => ("text-classification", "Text classification"),
    };
    // A JSON text is one in YAML too, whatever is in it.
    let quoted = |text: &str| Value::from(text).to_string();
    let mode = manifest.mode.to_string();
    let mut yaml = format!("---\nbase_model: {}\nlibrary_name: peft\npipeline_tag: {pipeline}\ntags:\n", quoted(base));
    for tag in ["petals-tune", "base_model:adapter"].into_iter().chain(mode.split('+')) {
        let tag = if tag == "base_model:adapter" { format!("{tag}:{base}") } else { tag.to_owned() };
        yaml += &format!("- {}\n", quoted(&tag));
    }
    let scores: Vec<&CardScore> = details.scores.iter().filter(|score| score.value.is_finite()).collect();
    if let Some(data) = details.held_out.as_ref().filter(|_| !scores.is_empty()) {
        let (file, model_name) = (quoted(&data.file), quoted(&format!("{mode} adapter for {base}")));
        yaml += &format!(
            "model-index:\n- name: {model_name}\n  results:\n  - task:\n      type: {pipeline}\n      name: {name}\n    \
             dataset:\n      type: {file}\n      name: {file}\n      split: validation\n    metrics:\n"
        );
        for score in scores {
            yaml += &format!(
                "    - type: {}\n      name: {}\n      value: {}\n",
                score.metric,
                score.name,
                number(score.value)
            );
        }
    }
    yaml + "---\n\n" + MARK + "\n\n"
}

/// A number that YAML reads as one: with a point in it, whatever its exponent.
fn number(value: f64) -> String {
    if value == 0.0 || (1e-4..1e9).contains(&value.abs()) {
        return format!("{value:.6}");
    }
    let text = format!("{value:.4e}");
    // YAML 1.1 wants a sign there.
    if text.contains("e-") { text } else { text.replace('e', "e+") }
}

fn body(
    card: &mut String,
    manifest: &AdapterManifest,
    shape: &TableShape,
    model: &AdaptedModel,
    base: &str,
    details: &CardDetails,
) -> std::fmt::Result {
    let AdapterManifest { mode, prefix_len, task, step, .. } = manifest;
    writeln!(card, "# Adapter for {}\n", plain(base))?;
    let prefix =
        if *prefix_len > 0 { format!("{prefix_len} trained vectors in front of the text, ") } else { String::new() };
    let parameters = shape.parameters();
    writeln!(card, "`{mode}` for `{task}`, after {step} steps: {prefix}{parameters} trained values.\n")?;
    writeln!(card, "| | |\n|---|---|")?;
    writeln!(card, "| base model | {} |", plain(base))?;
    writeln!(card, "| its identity in swarms | {} |", plain(&model.id.to_string()))?;
    writeln!(card, "| blocks and width | {} × {} |", model.blocks, model.widths.hidden)?;
    for (what, data) in [("trained on", &details.data), ("measured on", &details.held_out)] {
        if let Some(CardData { file, examples }) = data {
            writeln!(card, "| {what} | {}, {examples} examples |", plain(file))?;
        }
    }
    if let Some(labels) = &manifest.labels {
        let named = |label: &Label| plain(&label.to_string());
        let shown: Vec<String> = labels.labels().iter().take(CLASSES_SHOWN).map(named).collect();
        let more = labels.len().saturating_sub(CLASSES_SHOWN);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        writeln!(card, "| classes, in the order of the head | {}{more} |", shown.join(", "))?;
    }
    if !details.scores.is_empty() {
        writeln!(card, "\n## Scores\n\nOn held-out data, after {} steps.\n\n| | |\n|---|---:|", details.measured_at)?;
        for score in &details.scores {
            writeln!(card, "| {} | {} |", score.name, number(score.value))?;
        }
    }
    usage(card, manifest, shape, base)?;
    if !details.settings.is_empty() {
        writeln!(card, "\n## Settings\n\n| flag | value |\n|---|---|")?;
        for (flag, value) in &details.settings {
            writeln!(card, "| {} | {} |", plain(flag), plain(value))?;
        }
    }
    writeln!(card, "\n`petals_adapter.json` says exactly what the tables in `adapter_model.safetensors` are.")
}

fn usage(card: &mut String, manifest: &AdapterManifest, shape: &TableShape, base: &str) -> std::fmt::Result {
    let command = match manifest.task {
        Task::CausalLm => "generate --prompt \"…\"",
        Task::SeqCls => "eval --data FILE",
    };
    writeln!(card, "\n## Use\n\nWith a swarm that serves the base model:\n")?;
    writeln!(
        card,
        "```sh\npetals-tune {command} --model BASE_MODEL --peers MULTIADDR --adapter THIS_DIRECTORY\n```\n"
    )?;
    let kind = peft::kind(shape);
    if kind.starts_with("PETALS") {
        return writeln!(card, "It has no PEFT counterpart; use it with `petals-tune`.");
    }
    let (class, more) = match (manifest.task, &manifest.labels) {
        (Task::SeqCls, Some(labels)) => {
            ("AutoModelForSequenceClassification", format!(", num_labels={}", labels.len()))
        }
        _ => ("AutoModelForCausalLM", String::new()),
    };
    let base = Value::from(base);
    writeln!(card, "It is a PEFT `{kind}` adapter:\n")?;
    writeln!(card, "```python\nfrom peft import PeftModel\nfrom transformers import {class}, AutoTokenizer\n")?;
    writeln!(card, "tokenizer = AutoTokenizer.from_pretrained({base})")?;
    writeln!(card, "base = {class}.from_pretrained({base}{more})")?;
    writeln!(card, "model = PeftModel.from_pretrained(base, \"THIS_DIRECTORY\")\n```")
}

/// A text with everything escaped that means something in Markdown or HTML.
fn plain(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '|' => escaped += "\\|",
            '\\' | '`' | '*' | '_' | '~' | '[' | ']' | '!' => escaped.extend(['\\', c]),
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests;
