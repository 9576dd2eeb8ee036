//! Text of tokens that come one after another.

use super::TextTokenizer;

/// Turns tokens into text as they come, up to a stop string.
#[derive(Debug)]
pub(crate) struct TextStream<'a> {
    tokenizer: &'a TextTokenizer,
    stop: &'a [String],
    tokens: Vec<u32>,
    /// Tokens whose text is decoded again with each new one, since characters and spaces depend on their neighbours.
    context: usize,
    /// Tokens whose text is known.
    known: usize,
    /// Text that may be the beginning of a stop string.
    held: String,
    stopped: bool,
}

impl<'a> TextStream<'a> {
    pub(crate) fn new(tokenizer: &'a TextTokenizer, stop: &'a [String]) -> Self {
        Self { tokenizer, stop, tokens: Vec::new(), context: 0, known: 0, held: String::new(), stopped: false }
    }

    /// Adds tokens and returns the text that is certain by now.
    pub(crate) fn push(&mut self, tokens: &[u32]) -> String {
        if self.stopped {
            return String::new();
        }
        self.tokens.extend_from_slice(tokens);
        let decode = |from: usize, to: usize| self.tokenizer.decode(&self.tokens[from..to]).unwrap_or_default();
        let (before, all) = (decode(self.context, self.known), decode(self.context, self.tokens.len()));
        if all.ends_with('\u{fffd}') || all.len() <= before.len() {
            return String::new();
        }
        self.held.push_str(all.get(before.len()..).unwrap_or_default());
        (self.context, self.known) = (self.known, self.tokens.len());
        if let Some(at) = self.stop.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.stopped = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let begins =
            |at: &usize| self.stop.iter().any(|stop| stop.as_bytes().starts_with(&self.held.as_bytes()[*at..]));
        let certain = (0..self.held.len()).filter(|&at| self.held.is_char_boundary(at)).find(begins);
        let rest = self.held.split_off(certain.unwrap_or(self.held.len()));
        std::mem::replace(&mut self.held, rest)
    }

    /// Whether a stop string was seen.
    pub(crate) fn stopped(&self) -> bool {
        self.stopped
    }

    /// The rest of the text.
    pub(crate) fn finish(&mut self) -> String {
        if self.stopped {
            return String::new();
        }
        let decode = |from: usize, to: usize| self.tokenizer.decode(&self.tokens[from..to]).unwrap_or_default();
        let (before, all) = (decode(self.context, self.known), decode(self.context, self.tokens.len()));
        let rest = all.get(before.len()..).unwrap_or_default();
        std::mem::take(&mut self.held) + rest
    }
}
