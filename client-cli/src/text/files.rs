//! The files of a model's tokenizer, and what can be wrong with them before their content is looked at.

use std::fs;
use std::path::{Path, PathBuf};
use std::string::FromUtf8Error;

use petals_client::parse_json;
use serde_json::Value;

use super::TextError;

/// How the text file begins that git leaves in place of a large one.
pub(crate) const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";
/// Tokenizers of other kinds, which transformers converts.
const CONVERTIBLE: [&str; 5] = ["tokenizer.model", "spiece.model", "tekken.json", "vocab.json", "vocab.txt"];

/// What the small files beside `tokenizer.json` say. One that is not there is null.
#[derive(Debug, Default)]
pub(super) struct TokenizerFiles {
    /// `tokenizer_config.json`.
    pub(super) config: Value,
    /// `special_tokens_map.json`.
    pub(super) special_tokens_map: Value,
    /// `added_tokens.json`.
    pub(super) added_tokens: Value,
    /// `generation_config.json`.
    pub(super) generation: Value,
}

impl TokenizerFiles {
    /// Reads those that are in the model's directory.
    ///
    /// # Errors
    /// [`TextError::Pointer`], [`TextError::Read`] and [`TextError::NoJson`].
    pub(super) fn read(model: &Path) -> Result<Self, TextError> {
        let json = |name: &str| json(&model.join(name));
        Ok(Self {
            config: json("tokenizer_config.json")?,
            special_tokens_map: json("special_tokens_map.json")?,
            added_tokens: json("added_tokens.json")?,
            generation: json("generation_config.json")?,
        })
    }

    /// The files that give tokens their roles, with their names; whoever names one first counts. As in transformers, the older file
    /// is preferred where the newer one has no list of tokens.
    pub(super) fn naming_tokens(&self) -> [(&'static str, &Value); 2] {
        let (new, old) =
            (("tokenizer_config.json", &self.config), ("special_tokens_map.json", &self.special_tokens_map));
        if self.config.get("added_tokens_decoder").is_some() { [new, old] } else { [old, new] }
    }
}

/// The content of `tokenizer.json`.
///
/// # Errors
/// [`TextError::Missing`], [`TextError::OtherKind`], [`TextError::Pointer`] and [`TextError::Read`].
pub(super) fn tokenizer(model: &Path) -> Result<Vec<u8>, TextError> {
    let path = model.join("tokenizer.json");
    if path.is_file() {
        return bytes(&path);
    }
    match CONVERTIBLE.into_iter().map(|name| model.join(name)).find(|other| other.is_file()) {
        Some(found) => Err(TextError::OtherKind { model: model.to_owned(), found }),
        None => Err(TextError::Missing(path)),
    }
}

/// A JSON file; null if there is none.
fn json(path: &Path) -> Result<Value, TextError> {
    if !path.is_file() {
        return Ok(Value::Null);
    }
    let no_json = |source| TextError::NoJson { path: path.to_owned(), source };
    let no_text = |error: FromUtf8Error| no_json(serde::de::Error::custom(error));
    parse_json(&String::from_utf8(bytes(path)?).map_err(no_text)?).map_err(no_json)
}

fn bytes(path: &Path) -> Result<Vec<u8>, TextError> {
    let bytes = fs::read(path).map_err(|source| TextError::Read { path: path.to_owned(), source })?;
    if bytes.starts_with(LFS_POINTER) { Err(TextError::Pointer(PathBuf::from(path))) } else { Ok(bytes) }
}
