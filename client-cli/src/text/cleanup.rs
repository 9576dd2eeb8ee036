//! Spaces that tokenizers of words put in front of punctuation, taken away again as transformers does it.

/// What is replaced, one after the other over the whole text: the order matters.
const RULES: [(&str, &str); 10] = [
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
];

/// A whole text, cleaned.
pub(super) fn clean(text: &str) -> String {
    RULES.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// Cleans a text that comes in parts. Together they are what [`clean`] makes of the whole.
#[derive(Debug, Clone, Default)]
pub(super) struct CleanUp {
    /// What may still be changed by what comes behind it. It begins with a space.
    held: String,
}

impl CleanUp {
    /// Takes more of the text, and returns what is certain.
    pub(super) fn push(&mut self, text: &str) -> String {
        self.held.push_str(text);
        let rest = self.held.split_off(certain(&self.held));
        clean(&std::mem::replace(&mut self.held, rest))
    }

    /// The rest, when no more comes.
    pub(super) fn finish(&mut self) -> String {
        clean(&std::mem::take(&mut self.held))
    }
}

/// Bytes of a text whose cleaned form does not depend on what follows, nor the form of what follows on them.
fn certain(text: &str) -> usize {
    // Rules begin with a space and end before the next one, but for a lone quote: `" ' "`. That joins the words around it, and what
    // they become, `" n't"` or `" 's"`, is replaced in turn. So a text may be cut in front of a space, unless a lone quote is right
    // before it, or what such a quote may be joined to.
    let joins = |at: usize| ["'", " '", " n", " "].iter().any(|word| text[..at].ends_with(word));
    let Some(last) = text.rmatch_indices(' ').map(|(at, _)| at).find(|&at| !joins(at)) else {
        // No space at all, or lone quotes from the start on.
        return if text.contains(' ') { 0 } else { text.len() };
    };
    let rest = &text[last..];
    let may_change = RULES.iter().any(|(from, _)| from.len() > rest.len() && from.starts_with(rest));
    let chained = rest[1..].contains(' ');
    if may_change || chained { last } else { text.len() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_make_no_difference() {
        let alphabet = [" ", " ", "'", "'", ".", "n", "t", "s", "v", "e", "r", "m", "?", "x", "é"];
        let mut state = 7u64;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(state >> 33).unwrap() % below
        };
        for round in 0..20_000 {
            let length = 1 + round % 24;
            let letters: Vec<&str> = (0..length).map(|_| alphabet[random(alphabet.len())]).collect();
            let mut cleaner = CleanUp::default();
            let mut text: String = letters.iter().map(|letter| cleaner.push(letter)).collect();
            text += &cleaner.finish();
            assert_eq!(text, clean(&letters.concat()), "{letters:?}");
        }
    }

    #[test]
    fn it_is_cleaned_as_in_transformers() {
        assert_eq!(
            clean("it 's fine , is n't it ? no ! we 've , they 're , i 'm ' so '"),
            "it's fine, isn't it? no! we've, they're, i'm'so '"
        );
    }

    #[test]
    fn little_is_held_back() {
        let mut cleaner = CleanUp::default();
        let parts: Vec<String> = ["a", " ", "b", "c ", ".", " n", "o"].iter().map(|part| cleaner.push(part)).collect();
        assert_eq!(parts, ["a", "", " b", "c", ".", "", " no"]);
    }
}
