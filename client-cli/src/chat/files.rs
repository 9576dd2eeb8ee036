//! Where a model's chat template is.

use std::fs;
use std::path::Path;

use petals_client::{GgufVocabulary, parse_json};
use serde_json::{Map, Value};

use super::error::TemplateError;
use crate::text::LFS_POINTER;

/// A model's templates.
#[derive(Debug)]
pub(super) struct Sources {
    /// The one for conversations.
    pub(super) default: String,
    /// The one for conversations with tools, if it is another.
    pub(super) with_tools: Option<String>,
}

impl From<String> for Sources {
    fn from(default: String) -> Self {
        Self { default, with_tools: None }
    }
}

/// The templates in a model's directory, where transformers looks for them: files of their own first, then `tokenizer_config.json`.
/// Those of processors, `chat_template.json`, come last. A GGUF has them in its metadata.
pub(super) fn of_model(model: &Path) -> Result<Sources, TemplateError> {
    if GgufVocabulary::is_of(model) {
        let [default, with_tools] = vocabulary(model)?.chat_templates;
        let default = default.ok_or_else(|| TemplateError::Missing(model.to_owned()))?;
        return Ok(Sources { default, with_tools });
    }
    let path = model.join("chat_template.jinja");
    let named = |name: &str| model.join("additional_chat_templates").join(format!("{name}.jinja"));
    let tools = named("tool_use");
    if path.is_file() {
        let with_tools = if tools.is_file() { Some(read(&tools)?) } else { None };
        return Ok(Sources { default: read(&path)?, with_tools });
    }
    for name in ["tokenizer_config.json", "chat_template.json"] {
        let path = model.join(name);
        if let Some(sources) = of_config(&path, read_json(&path)?.get("chat_template"))? {
            return Ok(sources);
        }
    }
    Err(TemplateError::Missing(model.to_owned()))
}

/// The templates that a configuration file has: one, or several with names.
fn of_config(path: &Path, given: Option<&Value>) -> Result<Option<Sources>, TemplateError> {
    let malformed = |reason: &str| TemplateError::Malformed { path: path.to_owned(), reason: reason.to_owned() };
    let templates: Map<String, Value> = match given {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(template)) => return Ok(Some(template.clone().into())),
        Some(Value::Object(templates)) => templates.clone(),
        Some(Value::Array(list)) => list
            .iter()
            .filter_map(|entry| Some((entry.get("name")?.as_str()?.to_owned(), entry.get("template")?.clone())))
            .collect(),
        Some(_) => return Err(malformed("chat_template is neither a text nor a list of named texts")),
    };
    let template = |name: &str| templates.get(name).and_then(Value::as_str).map(str::to_owned);
    match (template("default"), template("tool_use")) {
        (Some(default), with_tools) => Ok(Some(Sources { default, with_tools })),
        (None, _) if templates.is_empty() => Ok(None),
        (None, _) => {
            let names: Vec<&str> = templates.keys().map(String::as_str).collect();
            let names = names.join(", ");
            Err(malformed(&format!("chat_template has the templates {names}, and none of them is named default")))
        }
    }
}

/// The special tokens that have these roles, by role.
pub(super) fn named_tokens(model: &Path, roles: &[&str]) -> Result<Map<String, Value>, TemplateError> {
    if GgufVocabulary::is_of(model) {
        let vocabulary = vocabulary(model)?;
        let token = |role: &&str| {
            let token = vocabulary.token(role.strip_suffix("_token")?)?;
            Some(((*role).to_owned(), Value::from(token)))
        };
        return Ok(roles.iter().filter_map(token).collect());
    }
    let config = read_json(&model.join("tokenizer_config.json"))?;
    let older = read_json(&model.join("special_tokens_map.json"))?;
    // As for the tokenizer: the older file is preferred where the newer one has no list of tokens.
    let files = if config.get("added_tokens_decoder").is_some() { [&config, &older] } else { [&older, &config] };
    let token = |role: &&str| {
        let text = files.into_iter().find_map(|file| token_text(file.get(*role)))?;
        Some(((*role).to_owned(), Value::String(text)))
    };
    Ok(roles.iter().filter_map(token).collect())
}

/// The vocabulary of a GGUF.
fn vocabulary(model: &Path) -> Result<GgufVocabulary, TemplateError> {
    GgufVocabulary::read(model).map_err(|error| TemplateError::Gguf(Box::new(error)))
}

/// A text file.
pub(super) fn read(path: &Path) -> Result<String, TemplateError> {
    let text = fs::read_to_string(path).map_err(|source| TemplateError::Read { path: path.to_owned(), source })?;
    if text.as_bytes().starts_with(LFS_POINTER) {
        let reason = "it is a git-lfs pointer, not the file itself: fetch it with `git lfs pull`".to_owned();
        return Err(TemplateError::Malformed { path: path.to_owned(), reason });
    }
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// A JSON file; null if there is none.
fn read_json(path: &Path) -> Result<Value, TemplateError> {
    if !path.is_file() {
        return Ok(Value::Null);
    }
    let malformed =
        |error: serde_json::Error| TemplateError::Malformed { path: path.to_owned(), reason: error.to_string() };
    parse_json(&read(path)?).map_err(malformed)
}

fn token_text(token: Option<&Value>) -> Option<String> {
    let token = token?;
    token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned)
}
