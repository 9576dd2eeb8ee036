//! What single tokens stand for.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

use super::{TextError, TextTokenizer};

/// How a tokenizer writes bytes in the names of its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Alphabet {
    /// Each byte is a letter, as in GPT-2, Llama 3 and Qwen.
    Letters,
    /// A mark stands for the space, and bytes that are no token are `<0xNN>`, as in Llama 2 and Mistral.
    Marks,
    /// As they are.
    Plain,
}

/// What each token of a tokenizer stands for.
#[derive(Debug)]
pub(crate) struct Pieces {
    tokenizer: Arc<TextTokenizer>,
    alphabet: Alphabet,
    /// Tokens that stand for their names, and whether texts leave them out.
    added: HashMap<u32, bool>,
}

impl Pieces {
    /// Of a tokenizer.
    pub(crate) fn new(tokenizer: Arc<TextTokenizer>) -> Self {
        let added = tokenizer.tokenizer.get_added_tokens_decoder().into_iter();
        let added = added.map(|(id, token)| (id, token.special)).collect();
        Self { alphabet: Alphabet::of(&tokenizer), tokenizer, added }
    }

    /// The bytes that a token stands for in the middle of a text, a special one its name. Nothing of a token that does not exist.
    pub(crate) fn bytes(&self, token: u32) -> Vec<u8> {
        let Some(name) = self.name(token) else { return Vec::new() };
        if self.added.contains_key(&token) {
            return name.into_bytes();
        }
        match self.alphabet {
            Alphabet::Letters => name.chars().flat_map(byte_of).collect(),
            Alphabet::Marks => match name.strip_prefix("<0x").and_then(|hex| hex.strip_suffix('>')) {
                Some(hex) if hex.len() == 2 => {
                    u8::from_str_radix(hex, 16).map_or_else(|_| name.clone().into_bytes(), |byte| vec![byte])
                }
                _ => name.replace('\u{2581}', " ").into_bytes(),
            },
            Alphabet::Plain => name.into_bytes(),
        }
    }

    /// Whether a token is seen in texts: those that end one, special ones and those that do not exist are not.
    pub(crate) fn is_seen(&self, token: u32) -> bool {
        self.tokenizer.is_seen(token)
    }

    /// Whether texts leave the token out.
    pub(crate) fn is_hidden(&self, token: u32) -> bool {
        self.added.get(&token).copied().unwrap_or(false)
    }

    /// The token of exactly this name.
    pub(crate) fn token(&self, name: &str) -> Option<u32> {
        self.tokenizer.tokenizer.token_to_id(name)
    }

    /// A token's name, as the tokenizer's files have it.
    pub(crate) fn name(&self, token: u32) -> Option<String> {
        self.tokenizer.tokenizer.id_to_token(token)
    }

    /// Text of tokens, special ones included.
    ///
    /// # Errors
    /// [`TextError::Decode`].
    pub(crate) fn decode(&self, tokens: &[u32]) -> Result<String, TextError> {
        // Some decoders panic where there is nothing to decode.
        if tokens.is_empty() {
            return Ok(String::new());
        }
        self.tokenizer.tokenizer.decode(tokens, false).map_err(TextError::Decode)
    }
}

impl Alphabet {
    fn of(tokenizer: &TextTokenizer) -> Self {
        let decoder = tokenizer.tokenizer.get_decoder().and_then(|decoder| serde_json::to_value(decoder).ok());
        let Some(decoder) = decoder else { return Self::Plain };
        let parts = decoder.get("decoders").and_then(Value::as_array).cloned().unwrap_or_else(|| vec![decoder]);
        let is = |kind: &str| parts.iter().any(|part| part.get("type").and_then(Value::as_str) == Some(kind));
        if is("ByteLevel") {
            Self::Letters
        } else if is("Metaspace") || is("ByteFallback") || is("Replace") {
            Self::Marks
        } else {
            Self::Plain
        }
    }
}

/// The byte that GPT-2's alphabet writes as this letter: printable ones are themselves, the others follow from U+0100 on in their order.
/// What is none of its letters is itself.
fn byte_of(letter: char) -> Vec<u8> {
    let printable = |byte: u32| (33..=126).contains(&byte) || (161..=172).contains(&byte) || (174..256).contains(&byte);
    let code = u32::from(letter);
    let other = || (0..256).filter(|&byte| !printable(byte)).nth(code.checked_sub(256)? as usize);
    let byte = if printable(code) { Some(code) } else { other() };
    match byte.and_then(|byte| u8::try_from(byte).ok()) {
        Some(byte) => vec![byte],
        None => letter.to_string().into_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;
    use crate::text::tests::word_model;

    #[test]
    fn letters_of_the_byte_alphabet_are_bytes() {
        // From transformers' `bytes_to_unicode`.
        for (letter, byte) in
            [('a', 97), ('\u{120}', 32), ('\u{10a}', 10), ('\u{100}', 0), ('\u{143}', 173), ('\u{e9}', 233)]
        {
            assert_eq!(byte_of(letter), [byte], "{letter}");
        }
    }

    #[test]
    fn marks_are_spaces_and_special_tokens_their_names() {
        let root = word_model();
        let path = root.path().join("tokenizer.json");
        let mut tokenizer: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        tokenizer["decoder"] = json!({ "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "\u{2581}" }, "content": " " }, { "type": "ByteFallback" },
        ] });
        tokenizer["model"]["vocab"]["\u{2581}x"] = 6.into();
        tokenizer["model"]["vocab"]["<0xE2>"] = 7.into();
        fs::write(&path, tokenizer.to_string()).unwrap();
        let pieces = Pieces::new(Arc::new(TextTokenizer::load(root.path()).unwrap()));
        assert_eq!((pieces.bytes(6), pieces.bytes(7)), (b" x".to_vec(), vec![0xe2]));
        assert_eq!((pieces.bytes(1), pieces.bytes(3), pieces.bytes(99)), (b"<eos>".to_vec(), b"a".to_vec(), vec![]));
        assert_eq!((pieces.token("<eos>"), pieces.decode(&[0, 3]).unwrap()), (Some(1), "<bos>a".to_owned()));
    }
}
