//! Text to tokens and back, by a model's `tokenizer.json` and the files that transformers reads with it.

use std::path::{Path, PathBuf};

use petals_client::{CheckpointError, GgufVocabulary, ModelConfig};
use serde_json::Value;
use tokenizers::{ModelWrapper, Tokenizer};

mod added;
mod cleanup;
mod ends;
mod files;
mod gguf;
mod joined;
mod pieces;
mod special;
mod stop;
mod stream;

pub(crate) use files::LFS_POINTER;
use files::TokenizerFiles;
pub(crate) use pieces::Pieces;
use special::EndTokens;
pub(crate) use stream::TextStream;

/// Why text did not become tokens, or tokens text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum TextError {
    /// The model has no tokenizer.
    #[error("{} does not exist: the model directory needs the tokenizer.json of its Hugging Face repository", .0.display())]
    Missing(PathBuf),
    /// The model has a tokenizer that has to be converted.
    #[error(
        "{} has no tokenizer.json, only {}; transformers converts it:\n\
         from transformers import AutoTokenizer\n\
         AutoTokenizer.from_pretrained({:?}).save_pretrained({:?})",
        model.display(), found.file_name().unwrap_or_default().display(), model, model
    )]
    OtherKind {
        /// The model's directory.
        model: PathBuf,
        /// The tokenizer that is there.
        found: PathBuf,
    },
    /// Git left a note in place of the file.
    #[error(
        "{} is a git-lfs pointer, not the file itself: fetch it with `git lfs pull`, or download it again",
        .0.display()
    )]
    Pointer(PathBuf),
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file beside the tokenizer is no JSON.
    #[error("{} is not JSON: download it again, or remove it if the model does not need it", path.display())]
    NoJson {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A file beside the tokenizer says what cannot be.
    #[error("{file} of the model cannot be used: {reason}")]
    Unusable {
        /// The file.
        file: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The tokenizer's file is malformed.
    #[error("{} is not a tokenizer", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why.
        source: tokenizers::Error,
    },
    /// A GGUF could not be read.
    #[error(transparent)]
    Gguf(Box<CheckpointError>),
    /// A GGUF has a vocabulary of another kind.
    #[error("{}: {problem}", path.display())]
    Vocabulary {
        /// The file.
        path: PathBuf,
        /// Which key of its metadata has what, and what would do.
        problem: String,
    },
    /// The tokenizer refuses a text.
    #[error("the tokenizer cannot encode the text")]
    Encode(#[source] tokenizers::Error),
    /// The tokenizer refuses tokens.
    #[error("the tokenizer cannot decode the tokens")]
    Decode(#[source] tokenizers::Error),
    /// An end-of-sequence token was asked for.
    #[error(
        "the model names no end-of-sequence token (eos_token in tokenizer_config.json, eos_token_id in generation_config.json, or in \
         config.json if that is not there)"
    )]
    NoEos,
}

/// A model's tokenizer as transformers' fast tokenizers have it, with neither truncation nor padding.
#[derive(Debug)]
pub(crate) struct TextTokenizer {
    tokenizer: Tokenizer,
    ends: EndTokens,
    /// Whether the decoder makes characters of tokens that are single bytes, like `<0xE2>`.
    byte_fallback: bool,
    /// Whether spaces in front of punctuation are taken away when tokens become text.
    cleans_up: bool,
    /// Names of tokens with a role.
    roles: Vec<(&'static str, String)>,
}

/// Roles of tokens that programs without the model's files ask for.
const ROLES: [&str; 4] = ["bos_token", "eos_token", "unk_token", "pad_token"];

impl TextTokenizer {
    /// Reads `tokenizer.json` of a model directory and the files beside it, or what a GGUF has of it. What `config.json` says of end tokens is not among
    /// them: see [`Self::ending_as`].
    ///
    /// # Errors
    /// All but [`TextError::Encode`], [`TextError::Decode`] and [`TextError::NoEos`].
    pub(crate) fn load(model: &Path) -> Result<Self, TextError> {
        if GgufVocabulary::is_of(model) {
            return Self::of_parts(gguf::load(model)?, model);
        }
        let bytes = files::tokenizer(model)?;
        let files = TokenizerFiles::read(model)?;
        let path = model.join("tokenizer.json");
        let malformed = |source| TextError::Malformed { path: path.clone(), source };
        Self::of_parts((Tokenizer::from_bytes(bytes).map_err(malformed)?, files), &path)
    }

    /// A tokenizer, completed by the files beside it; `path` is where it is from.
    fn of_parts((mut tokenizer, files): (Tokenizer, TokenizerFiles), path: &Path) -> Result<Self, TextError> {
        let malformed = |source| TextError::Malformed { path: path.to_owned(), source };
        tokenizer.with_truncation(None).map_err(malformed)?;
        tokenizer.with_padding(None);
        added::complete(&mut tokenizer, &files)?;
        ends::apply(&mut tokenizer, &files)?;
        let ends = EndTokens::read(&files, &tokenizer);
        let decoder = tokenizer.get_decoder().map(serde_json::to_value);
        let byte_fallback =
            decoder.is_some_and(|decoder| decoder.is_ok_and(|decoder| has_type(&decoder, "ByteFallback")));
        let flag = |name| files.config.get(name) == Some(&Value::Bool(true));
        // As transformers from version 5 on: what it does to the text of a BPE tokenizer is a mistake that many files ask for.
        let cleans_up = flag("clean_up_tokenization_spaces")
            && (!matches!(tokenizer.get_model(), ModelWrapper::BPE(_))
                || flag("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"));
        let named = |role: &str| added::role(&files, role).map(str::to_owned);
        let roles = ROLES.into_iter().filter_map(|role| Some((role, named(role)?))).collect();
        let mut loaded = Self { tokenizer, ends, byte_fallback, cleans_up, roles };
        loaded.complete_roles();
        Ok(loaded)
    }

    /// Where no file names the tokens that begin and end a text, they are those that do.
    fn complete_roles(&mut self) {
        let begin = self
            .encode("")
            .ok()
            .and_then(|tokens| tokens.first().copied())
            .filter(|token| !self.ends.stop.contains(token));
        for (role, token) in [("bos_token", begin), ("eos_token", self.ends.append)] {
            let name = token.and_then(|token| self.name(token));
            if let (Some(name), false) = (name, self.roles.iter().any(|(known, _)| *known == role)) {
                self.roles.push((role, name));
            }
        }
    }

    /// The names of the tokens that have a role in the model's files, such as `bos_token`.
    pub(crate) fn roles(&self) -> &[(&'static str, String)] {
        &self.roles
    }

    /// With the end tokens of the model's configuration, its family's if it names none.
    pub(crate) fn ending_as(self, config: &ModelConfig) -> Self {
        Self { ends: self.ends.with_configured(&config.eos_token_ids), ..self }
    }

    /// Tokens of a text, with what the post-processor adds.
    ///
    /// # Errors
    /// [`TextError::Encode`].
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        self.encode_with(text, true)
    }

    /// Tokens of a text that continues another one: nothing is added.
    ///
    /// # Errors
    /// [`TextError::Encode`].
    pub(crate) fn encode_continuation(&self, text: &str) -> Result<Vec<u32>, TextError> {
        self.encode_with(text, false)
    }

    fn encode_with(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TextError> {
        let encoding = self.tokenizer.encode_fast(text, add_special_tokens).map_err(TextError::Encode)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of tokens, without special ones.
    ///
    /// # Errors
    /// [`TextError::Decode`].
    pub(crate) fn decode(&self, tokens: &[u32]) -> Result<String, TextError> {
        let text = self.decode_raw(tokens)?;
        Ok(if self.cleans_up { cleanup::clean(&text) } else { text })
    }

    /// What the decoder makes of tokens, special ones left out.
    fn decode_raw(&self, tokens: &[u32]) -> Result<String, TextError> {
        // Some decoders panic where there is nothing to decode.
        if !tokens.iter().any(|&token| self.is_text(token)) {
            return Ok(String::new());
        }
        self.tokenizer.decode(tokens, true).map_err(TextError::Decode)
    }

    /// Whether a token is neither special nor unknown.
    fn is_text(&self, token: u32) -> bool {
        self.name(token).is_some_and(|name| !self.tokenizer.get_added_vocabulary().is_special_token(&name))
    }

    /// Whether a token is seen in a text: special ones, those that end it, and those that nobody knows are not.
    fn is_seen(&self, token: u32) -> bool {
        self.is_text(token) && !self.ends.stop.contains(&token)
    }

    /// A token as the vocabulary has it.
    fn name(&self, token: u32) -> Option<String> {
        self.tokenizer.id_to_token(token)
    }

    /// Names of the tokens that are not seen in a text.
    fn special_names(&self) -> Vec<String> {
        let added = self.tokenizer.get_added_tokens_decoder();
        let special = added.into_values().filter(|token| token.special).map(|token| token.content);
        special.chain(self.ends.stop.iter().filter_map(|&token| self.name(token))).collect()
    }

    /// Whether a token is one byte of a character.
    fn is_byte(&self, token: u32) -> bool {
        let name = if self.byte_fallback { self.name(token) } else { None };
        name.is_some_and(|name| name.len() == 6 && name.starts_with("<0x") && name.ends_with('>'))
    }

    /// Whether the same texts are the same tokens, as far as the lists of tokens say.
    pub(crate) fn has_vocabulary_of(&self, other: &Self) -> bool {
        self.tokenizer.get_vocab(true) == other.tokenizer.get_vocab(true)
    }

    /// The token that `--append-eos` appends.
    ///
    /// # Errors
    /// [`TextError::NoEos`] if the model names none.
    pub(crate) fn eos(&self) -> Result<u32, TextError> {
        self.ends.append.ok_or(TextError::NoEos)
    }

    /// The tokens that end a generated text.
    pub(crate) fn stop_tokens(&self) -> &[u32] {
        &self.ends.stop
    }
}

/// Whether a part of a tokenizer, or one inside of it, is of a type.
fn has_type(part: &Value, name: &str) -> bool {
    match part {
        Value::Object(fields) => {
            fields.get("type").and_then(Value::as_str) == Some(name) || fields.values().any(|part| has_type(part, name))
        }
        Value::Array(parts) => parts.iter().any(|part| has_type(part, name)),
        _ => false,
    }
}

#[cfg(test)]
pub(crate) mod tests;
