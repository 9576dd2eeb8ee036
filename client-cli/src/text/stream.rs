//! Tokens to text while they come.

use super::cleanup::CleanUp;
use super::stop::StopScanner;
use super::{TextError, TextTokenizer};

/// What a decoder writes for bytes that are no character, or not yet.
const UNKNOWN: char = char::REPLACEMENT_CHARACTER;
/// So many tokens without a character at their end make none any more.
const LONGEST_CHARACTER: usize = 32;
/// Tokens of the prompt that the text is decoded behind: what the first word looks like depends on what is in front of it.
const BEHIND: usize = 8;

/// The text of tokens that come one after another, up to a stop string. What it gives out, put together, is what these tokens add to
/// the text of those in front of them; it gives out no part of a character, and nothing that may still turn out to be a stop string.
#[derive(Debug)]
pub(crate) struct TextStream<'a> {
    tokenizer: &'a TextTokenizer,
    scanner: StopScanner,
    cleaner: Option<CleanUp>,
    tokens: Vec<u32>,
    /// Tokens that are seen: those before `read` are text already, and there for what is decoded behind them.
    window: Vec<u32>,
    read: usize,
    /// Text of the window that is out.
    out: String,
}

impl<'a> TextStream<'a> {
    /// An empty text behind `prompt` that ends before the first of `stops`.
    pub(crate) fn new(tokenizer: &'a TextTokenizer, prompt: &[u32], stops: impl IntoIterator<Item = String>) -> Self {
        let special = tokenizer.special_names();
        let scanner = StopScanner::new(stops, |stop| special.iter().any(|name| stop.contains(name.as_str())));
        let window = context(tokenizer, prompt);
        // A prompt that cannot be decoded is one that nothing can be decoded behind, which is said with the first token.
        let out = tokenizer.decode_raw(&window).unwrap_or_default();
        let cleaner = tokenizer.cleans_up.then(CleanUp::default);
        Self { tokenizer, scanner, cleaner, tokens: Vec::new(), read: window.len(), window, out }
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
            if self.tokenizer.is_seen(token) {
                self.window.push(token);
                let new = self.decoded(false)?;
                text += &self.scan(&new);
            } else if let Some(name) = self.tokenizer.name(token)
                && self.scanner.waits_for(&name)
            {
                // The stop string is that of the text so far, whatever is held back of it.
                text += &self.flush()?;
                text += &self.scanner.push_hidden(&name);
            }
        }
        Ok(text)
    }

    /// Whether a stop string has come: the text is over.
    pub(crate) fn has_stopped(&self) -> bool {
        self.scanner.found()
    }

    /// The stop string that came.
    pub(crate) fn stop(&self) -> Option<&str> {
        self.scanner.stop()
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
        Ok(self.flush()? + &self.scanner.finish())
    }

    /// Half characters as well, as the decoder writes them.
    fn flush(&mut self) -> Result<String, TextError> {
        let new = self.decoded(true)?;
        let mut text = self.scan(&new);
        if let Some(cleaner) = &mut self.cleaner {
            text += &self.scanner.push(&cleaner.finish());
        }
        Ok(text)
    }

    fn scan(&mut self, new: &str) -> String {
        match &mut self.cleaner {
            Some(cleaner) => self.scanner.push(&cleaner.push(new)),
            None => self.scanner.push(new),
        }
    }

    /// Text that the last tokens added; with `all`, half characters as well.
    fn decoded(&mut self, all: bool) -> Result<String, TextError> {
        let unread = self.window.len() - self.read;
        if unread == 0 {
            return Ok(String::new());
        }
        let all = all || unread > 2 * LONGEST_CHARACTER;
        let in_run = self.window.last().is_some_and(|&token| self.tokenizer.is_byte(token));
        // One byte that does not fit makes a decoder give up all of a run, so what they are is known when it is over.
        if in_run && !all && unread <= LONGEST_CHARACTER {
            return Ok(String::new());
        }
        let text = self.tokenizer.decode_raw(&self.window)?;
        let certain = match text.strip_suffix(UNKNOWN) {
            Some(_) if in_run && !all => return Ok(String::new()),
            // It may be the first bytes of a character. Those before it do not change any more.
            Some(before) if !all => before,
            _ => &text,
        };
        let same = common_prefix(&self.out, certain);
        let new = certain[same..].to_owned();
        if certain.len() == text.len() {
            self.window.drain(..self.read);
            self.read = self.window.len();
            self.out = self.tokenizer.decode_raw(&self.window)?;
        } else if !new.is_empty() {
            self.out = certain.to_owned();
        }
        Ok(new)
    }
}

/// The last tokens of a prompt that are seen, from the beginning of a character on.
fn context(tokenizer: &TextTokenizer, prompt: &[u32]) -> Vec<u32> {
    let mut seen = prompt.iter().rev().copied().filter(|&token| tokenizer.is_seen(token));
    let mut context: Vec<u32> = seen.by_ref().take(BEHIND).collect();
    let within = |first: Option<&u32>| {
        first.is_some_and(|&first| {
            tokenizer.is_byte(first) || tokenizer.decode_raw(&[first]).is_ok_and(|text| text.starts_with(UNKNOWN))
        })
    };
    while within(context.last()) && context.len() < BEHIND + LONGEST_CHARACTER {
        match seen.next() {
            Some(token) => context.push(token),
            None => break,
        }
    }
    context.reverse();
    context
}

/// Bytes of the characters that two texts begin with.
fn common_prefix(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tests::{byte_model, marked_model};

    fn bytes(text: &str) -> Vec<u32> {
        text.bytes().map(u32::from).collect()
    }

    #[test]
    fn characters_come_whole_and_put_together_they_are_the_text() {
        let (bytewise, marked) = (byte_model(&[]), marked_model());
        let words = [vec![256, 257], bytes("ä€"), vec![256], bytes("𝄞"), vec![256, 0xE2, 0x82, 257, 0xFF]].concat();
        for (model, tokens) in [(&bytewise, bytes("naïve €5 𝄞!")), (&marked, words)] {
            let tokenizer = TextTokenizer::load(model.path()).unwrap();
            let mut stream = TextStream::new(&tokenizer, &[], []);
            let mut text = String::new();
            for token in &tokens {
                let part = stream.push(&[*token]).unwrap();
                text += &part;
            }
            text += &stream.finish().unwrap();
            assert_eq!(text, tokenizer.decode(&tokens).unwrap());
        }
        let tokenizer = TextTokenizer::load(bytewise.path()).unwrap();
        let mut stream = TextStream::new(&tokenizer, &[], []);
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
        let model = byte_model(&[]);
        let tokenizer = TextTokenizer::load(model.path()).unwrap();
        let mut stream = TextStream::new(&tokenizer, &[], []);
        assert!(stream.push(&[0xFF; 3 * LONGEST_CHARACTER]).unwrap().chars().count() >= 2 * LONGEST_CHARACTER);
    }

    #[test]
    fn tokens_behind_a_stop_string_are_not_taken() {
        let model = byte_model(&[]);
        let tokenizer = TextTokenizer::load(model.path()).unwrap();
        let mut stream = TextStream::new(&tokenizer, &[], ["€.".to_owned()]);
        assert_eq!(stream.push(&bytes("5 €, 6 €")).unwrap(), "5 €, 6 ");
        assert_eq!(stream.push(&bytes(". More")).unwrap(), "");
        assert!(stream.has_stopped());
        assert_eq!(stream.tokens(), bytes("5 €, 6 €."));
        assert_eq!(stream.finish().unwrap(), "");
    }
}
