//! Tokens to text while they come.

use super::stop::StopScanner;
use super::{TextError, TextTokenizer};

/// What a decoder writes for bytes that are no character, or not yet.
const UNKNOWN: char = char::REPLACEMENT_CHARACTER;
/// So many tokens without a character at their end make none any more.
const LONGEST_CHARACTER: usize = 32;

/// The text of tokens that come one after another, up to a stop string. What it gives out, put together, is the text of all tokens; it
/// gives out no part of a character, and nothing that may still turn out to be a stop string.
#[derive(Debug)]
pub(crate) struct TextStream<'a> {
    tokenizer: &'a TextTokenizer,
    scanner: StopScanner,
    tokens: Vec<u32>,
    /// Tokens from here on are decoded: a token's text depends on the one before it.
    context: usize,
    /// Tokens up to here are text already.
    read: usize,
    /// Bytes of the text behind `read` that are out: a token may end one character and begin another.
    partial: usize,
}

impl<'a> TextStream<'a> {
    /// An empty text that ends before the first of `stops`.
    pub(crate) fn new(tokenizer: &'a TextTokenizer, stops: impl IntoIterator<Item = String>) -> Self {
        let scanner = StopScanner::new(stops);
        Self { tokenizer, scanner, tokens: Vec::new(), context: 0, read: 0, partial: 0 }
    }

    /// Takes tokens until a stop string is complete, and returns the text that is certain.
    ///
    /// # Errors
    /// [`TextError::Decode`].
    pub(crate) fn push(&mut self, tokens: &[u32]) -> Result<String, TextError> {
        let mut text = String::new();
        for &token in tokens {
            if self.has_stopped() {
                break;
            }
            self.tokens.push(token);
            let new = self.decoded(false)?;
            text += &self.scanner.push(&new);
        }
        Ok(text)
    }

    /// Whether a stop string has come: the text is over.
    pub(crate) fn has_stopped(&self) -> bool {
        self.scanner.found()
    }

    /// The tokens taken, with those of the stop string.
    pub(crate) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// What was held back, when no more tokens come.
    ///
    /// # Errors
    /// [`TextError::Decode`].
    pub(crate) fn finish(&mut self) -> Result<String, TextError> {
        let new = self.decoded(true)?;
        let text = self.scanner.push(&new);
        Ok(text + &self.scanner.finish())
    }

    /// Text that the last tokens added; with `all`, half characters as well.
    fn decoded(&mut self, all: bool) -> Result<String, TextError> {
        let before = self.tokenizer.decode(&self.tokens[self.context..self.read])?.len() + self.partial;
        let text = self.tokenizer.decode(&self.tokens[self.context..])?;
        let all = all || self.tokens.len() - self.read > LONGEST_CHARACTER;
        let complete = if all { text.as_str() } else { text.trim_end_matches(UNKNOWN) };
        // A decoder may take characters back that it had written for a shorter text; then nothing is new.
        let new = complete.get(before..).unwrap_or_default().to_owned();
        if complete.len() == text.len() {
            (self.context, self.read, self.partial) = (self.read, self.tokens.len(), 0);
        } else {
            self.partial += new.len();
        }
        Ok(new)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::{Map, json};
    use tempfile::TempDir;

    use super::*;

    /// Tokens are bytes, as in GPT-2's and Llama 3's alphabets: token n is byte n.
    fn byte_model() -> TempDir {
        let printable = |byte: u32| (33..=126).contains(&byte) || (161..=172).contains(&byte) || byte >= 174;
        let mut others = 256u32..;
        let letters = (0..256u32).map(|byte| if printable(byte) { byte } else { others.next().unwrap_or_default() });
        let vocab: Map<String, serde_json::Value> = letters
            .zip(0..)
            .filter_map(|(letter, id)| Some((char::from_u32(letter)?.to_string(), json!(id))))
            .collect();
        write(json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true }), vocab)
    }

    /// Words with a mark in front, which is a space except at the start of the text, and single bytes, as in Llama 2.
    fn marked_model() -> TempDir {
        let bytes = (0..256u32).map(|byte| (format!("<0x{byte:02X}>"), json!(byte)));
        let vocab = bytes.chain([("▁a".to_owned(), json!(256)), ("▁b".to_owned(), json!(257))]).collect();
        let decoder = json!({ "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
            { "type": "ByteFallback" },
            { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
        ] });
        write(decoder, vocab)
    }

    fn write(decoder: serde_json::Value, vocab: Map<String, serde_json::Value>) -> TempDir {
        let root = tempfile::tempdir().unwrap();
        let model = json!({ "type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": true });
        let tokenizer = json!({ "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null,
                                "post_processor": null, "decoder": decoder, "model": model });
        fs::write(root.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
        root
    }

    fn bytes(text: &str) -> Vec<u32> {
        text.bytes().map(u32::from).collect()
    }

    #[test]
    fn characters_come_whole_and_put_together_they_are_the_text() {
        let (bytewise, marked) = (byte_model(), marked_model());
        let words = [vec![256, 257], bytes("ä€"), vec![256], bytes("𝄞"), vec![256, 0xE2, 0x82, 257, 0xFF]].concat();
        for (model, tokens) in [(&bytewise, bytes("naïve €5 𝄞!")), (&marked, words)] {
            let tokenizer = TextTokenizer::load(model.path()).unwrap();
            let mut stream = TextStream::new(&tokenizer, []);
            let mut text = String::new();
            for token in &tokens {
                let part = stream.push(&[*token]).unwrap();
                text += &part;
            }
            text += &stream.finish().unwrap();
            assert_eq!(text, tokenizer.decode(&tokens).unwrap());
        }
        let tokenizer = TextTokenizer::load(bytewise.path()).unwrap();
        let mut stream = TextStream::new(&tokenizer, []);
        let parts: Vec<String> = bytes("a€b").iter().map(|token| stream.push(&[*token]).unwrap()).collect();
        assert_eq!(parts, ["a", "", "", "€", "b"]);
        assert_eq!(
            stream.push(&[0xF0, 0x9D]).unwrap() + &stream.finish().unwrap(),
            "\u{fffd}",
            "the end as decoders write it"
        );
    }

    #[test]
    fn garbage_is_not_held_back_for_ever() {
        let model = byte_model();
        let tokenizer = TextTokenizer::load(model.path()).unwrap();
        let mut stream = TextStream::new(&tokenizer, []);
        assert!(stream.push(&[0xFF; 3 * LONGEST_CHARACTER]).unwrap().chars().count() >= 2 * LONGEST_CHARACTER);
    }

    #[test]
    fn tokens_behind_a_stop_string_are_not_taken() {
        let model = byte_model();
        let tokenizer = TextTokenizer::load(model.path()).unwrap();
        let mut stream = TextStream::new(&tokenizer, ["€.".to_owned()]);
        assert_eq!(stream.push(&bytes("5 €, 6 €")).unwrap(), "5 €, 6 ");
        assert_eq!(stream.push(&bytes(". More")).unwrap(), "");
        assert!(stream.has_stopped());
        assert_eq!(stream.tokens(), bytes("5 €, 6 €."));
        assert_eq!(stream.finish().unwrap(), "");
    }
}
