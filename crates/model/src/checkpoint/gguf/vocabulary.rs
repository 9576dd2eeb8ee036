//! The tokens of a model, as far as metadata have them: what a tokenizer is made of, and the chat template.

use std::path::{Path, PathBuf};

use super::container::Container;
use super::metadata::Metadata;
use super::value::{List, Value};
use crate::checkpoint::CheckpointError;

/// Most tokens of a model.
const MAX_TOKENS: usize = 1 << 22;
/// Most merges.
const MAX_MERGES: usize = 1 << 23;

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenKind {
    /// A piece of text.
    Normal,
    /// What text becomes that no token is.
    Unknown,
    /// One that is no text, such as the end of a turn.
    Control,
    /// One that is found in a text before anything else.
    UserDefined,
    /// One that nothing becomes.
    Unused,
    /// A byte.
    Byte,
}

/// The vocabulary of a GGUF: everything below `tokenizer.`.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct GgufVocabulary {
    /// The file.
    pub path: PathBuf,
    /// `general.architecture`: whose model it is.
    pub architecture: String,
    /// `tokenizer.ggml.model`: `gpt2` is BPE over bytes, `llama` that of SentencePiece.
    pub model: String,
    /// `tokenizer.ggml.pre`: how texts are split first.
    pub pre: Option<String>,
    /// Tokens by their ids.
    pub tokens: Vec<String>,
    /// What each is for; none, or one for each token.
    pub kinds: Vec<TokenKind>,
    /// How likely each is; none, or one for each token.
    pub scores: Vec<f32>,
    /// Pairs of tokens with a space between, the most frequent first.
    pub merges: Vec<String>,
    /// Tokens with a role, such as `bos` and `eos`.
    pub roles: Vec<(&'static str, u32)>,
    /// Whether texts begin with `bos`.
    pub adds_bos: Option<bool>,
    /// Whether texts end with `eos`.
    pub adds_eos: Option<bool>,
    /// Whether the first word gets a space in front.
    pub adds_space: Option<bool>,
    /// The chat template, and the one for conversations with tools if it is another.
    pub chat_templates: [Option<String>; 2],
}

/// Roles of tokens, by llama.cpp's names, and those of Hugging Face.
const ROLES: [(&str, &str); 7] = [
    ("bos", "bos"),
    ("eos", "eos"),
    ("eot", "eot"),
    ("eom", "eom"),
    ("unknown", "unk"),
    ("padding", "pad"),
    ("mask", "mask"),
];

impl GgufVocabulary {
    /// Whether a model is a GGUF, and no directory.
    pub fn is_of(model: &Path) -> bool {
        super::is_one(model)
    }

    /// Reads the vocabulary of a file, or of the first one of several.
    ///
    /// # Errors
    /// A [`CheckpointError`] that names the file and the key at fault.
    pub fn read(path: &Path) -> Result<Self, CheckpointError> {
        let file = [Container::open(path)?];
        let metadata = Metadata::new(&file)?;
        let own = |key: &str| format!("tokenizer.ggml.{key}");
        let text = |key: &str| Ok::<_, CheckpointError>(metadata.text(key)?.map(str::to_owned));
        let missing = |key: &str| metadata.wrong(format!("it has no `{key}`"));
        let model = text(&own("model"))?.ok_or_else(|| missing(&own("model")))?;
        let tokens = texts(&metadata, &own("tokens"), MAX_TOKENS)?;
        if tokens.is_empty() {
            return Err(missing(&own("tokens")));
        }
        let each = |key: &str, count: usize| match count == 0 || count == tokens.len() {
            true => Ok(()),
            false => Err(metadata.wrong(format!("`{key}` has {count} values for {} tokens", tokens.len()))),
        };
        let kinds = each_of(&metadata, &own("token_type"), |value| value.unsigned().map(kind))?;
        each(&own("token_type"), kinds.len())?;
        let scores = each_of(&metadata, &own("scores"), |value| value.number().map(|score| score as f32))?;
        each(&own("scores"), scores.len())?;
        let mut roles = Vec::new();
        for (key, role) in ROLES {
            let id = metadata.token(&own(&format!("{key}_token_id")))?;
            roles.extend(id.filter(|id| (*id as usize) < tokens.len()).map(|id| (role, id)));
        }
        Ok(Self {
            path: path.to_owned(),
            architecture: metadata.architecture().to_owned(),
            model,
            pre: text(&own("pre"))?,
            kinds,
            scores,
            merges: texts(&metadata, &own("merges"), MAX_MERGES)?,
            roles,
            adds_bos: metadata.flag(&own("add_bos_token"))?,
            adds_eos: metadata.flag(&own("add_eos_token"))?,
            adds_space: metadata.flag(&own("add_space_prefix"))?,
            chat_templates: [text("tokenizer.chat_template")?, text("tokenizer.chat_template.tool_use")?],
            tokens,
        })
    }

    /// The token with a role.
    pub fn token(&self, role: &str) -> Option<&str> {
        let id = self.roles.iter().find(|(own, _)| *own == role).map(|(_, id)| *id as usize);
        id.and_then(|id| self.tokens.get(id)).map(String::as_str)
    }
}

/// A list, if it is there, which has no more than `limit` values.
fn list<'a>(metadata: &Metadata<'a>, key: &str, limit: usize) -> Result<Option<&'a List>, CheckpointError> {
    match metadata.list(key)? {
        Some(list) if list.len() > limit => {
            Err(metadata.wrong(format!("`{key}` has {} values, and {limit} are the most that is read", list.len())))
        }
        list => Ok(list),
    }
}

fn texts(metadata: &Metadata<'_>, key: &str, limit: usize) -> Result<Vec<String>, CheckpointError> {
    let mut texts = Vec::new();
    if let Some(list) = list(metadata, key, limit)? {
        for value in metadata.values(list) {
            let Value::Text(text) = value? else { return Err(metadata.wrong(format!("`{key}` is no list of texts"))) };
            texts.push(text);
        }
    }
    Ok(texts)
}

/// A number for each token.
fn each_of<T>(metadata: &Metadata<'_>, key: &str, of: impl Fn(Value) -> Option<T>) -> Result<Vec<T>, CheckpointError> {
    let mut all = Vec::new();
    if let Some(list) = list(metadata, key, MAX_TOKENS)? {
        for value in metadata.values(list) {
            all.push(of(value?).ok_or_else(|| metadata.wrong(format!("`{key}` is no list of numbers")))?);
        }
    }
    Ok(all)
}

fn kind(number: u64) -> TokenKind {
    match number {
        2 => TokenKind::Unknown,
        3 => TokenKind::Control,
        4 => TokenKind::UserDefined,
        5 => TokenKind::Unused,
        6 => TokenKind::Byte,
        _ => TokenKind::Normal,
    }
}
