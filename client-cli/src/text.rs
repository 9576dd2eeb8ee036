//! Text to tokens and back, by a model's `tokenizer.json`.

use std::path::{Path, PathBuf};

use tokenizers::Tokenizer;

mod joined;
mod special;
mod stop;
mod stream;

use special::EndTokens;
pub(crate) use stream::TextStream;

/// Why text did not become tokens, or tokens text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum TextError {
    /// The model has no tokenizer.
    #[error("{} does not exist: the model directory needs the tokenizer.json of its Hugging Face repository", .0.display())]
    Missing(PathBuf),
    /// The tokenizer's file is malformed.
    #[error("{} is not a tokenizer", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why.
        source: tokenizers::Error,
    },
    /// The tokenizer refuses a text.
    #[error("the tokenizer cannot encode the text")]
    Encode(#[source] tokenizers::Error),
    /// The tokenizer refuses tokens.
    #[error("the tokenizer cannot decode the tokens")]
    Decode(#[source] tokenizers::Error),
    /// An end-of-sequence token was asked for.
    #[error(
        "the model names no end-of-sequence token (eos_token in tokenizer_config.json, eos_token_id in config.json)"
    )]
    NoEos,
}

/// A model's tokenizer: its own post-processor and nothing else, neither truncation nor padding.
#[derive(Debug)]
pub(crate) struct TextTokenizer {
    tokenizer: Tokenizer,
    ends: EndTokens,
}

impl TextTokenizer {
    /// Reads `tokenizer.json` and the end tokens of a model directory.
    ///
    /// # Errors
    /// [`TextError::Missing`] and [`TextError::Malformed`].
    pub(crate) fn load(model: &Path) -> Result<Self, TextError> {
        let path = model.join("tokenizer.json");
        if !path.is_file() {
            return Err(TextError::Missing(path));
        }
        let malformed = |source| TextError::Malformed { path: path.clone(), source };
        let mut tokenizer = Tokenizer::from_file(&path).map_err(malformed)?;
        tokenizer.with_truncation(None).map_err(malformed)?;
        tokenizer.with_padding(None);
        let ends = EndTokens::read(model, &tokenizer);
        Ok(Self { tokenizer, ends })
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
        self.tokenizer.decode(tokens, true).map_err(TextError::Decode)
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

#[cfg(test)]
pub(crate) mod tests;
