//! Ending a text where it comes to one of some strings.

/// Looks for stop strings in a text that arrives in parts, and lets through what comes before them. The end of the text is held back as
/// long as it may be the beginning of a stop string. How the text is cut into parts makes no difference.
///
/// Special tokens are no part of the text that is seen, but a stop string may name them: such strings are looked for in the text with
/// its special tokens ([`StopScanner::push_hidden`]), all others in the text that is seen.
#[derive(Debug, Clone, Default)]
pub(crate) struct StopScanner {
    stops: Vec<String>,
    /// Stop strings that special tokens belong to.
    marked: Vec<String>,
    held: String,
    /// Special tokens behind what is held, with their places in it.
    hidden: Vec<(usize, String)>,
    /// The one that came.
    found: Option<String>,
}

impl StopScanner {
    /// Empty strings stop nothing. `is_marked` says whether a stop string has a special token in it.
    pub(crate) fn new(stops: impl IntoIterator<Item = String>, is_marked: impl Fn(&str) -> bool) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty());
        let (marked, stops) = stops.partition(|stop| is_marked(stop));
        Self { stops, marked, ..Self::default() }
    }

    /// Whether a stop string has come. Nothing is let through from then on.
    pub(crate) fn found(&self) -> bool {
        self.found.is_some()
    }

    /// The stop string that came.
    pub(crate) fn stop(&self) -> Option<&str> {
        self.found.as_deref()
    }

    /// Whether a special token belongs to a stop string.
    pub(crate) fn waits_for(&self, token: &str) -> bool {
        !token.is_empty() && self.marked.iter().any(|stop| stop.contains(token))
    }

    /// Takes more of the text, and returns what is certain not to belong to a stop string.
    pub(crate) fn push(&mut self, text: &str) -> String {
        if self.found() {
            return String::new();
        }
        self.held.push_str(text);
        self.let_through()
    }

    /// Takes a special token, which is not seen.
    pub(crate) fn push_hidden(&mut self, token: &str) -> String {
        if self.found() || self.marked.is_empty() {
            return String::new();
        }
        self.hidden.push((self.held.len(), token.to_owned()));
        self.let_through()
    }

    fn let_through(&mut self) -> String {
        // The one that is complete first; of those that end together the longest.
        let seen = first(&self.stops, &self.held);
        let whole = self.whole();
        let marked = first(&self.marked, &whole).map(|(end, start, stop)| (self.seen(end), self.seen(start), stop));
        if let Some((_, start, stop)) = seen.into_iter().chain(marked).min() {
            self.found = Some(stop.to_owned());
            self.held.truncate(start);
            return std::mem::take(&mut self.held);
        }
        let free = self.held.len() - longest_overlap(&self.stops, &self.held);
        let free = free.min(self.seen(whole.len() - longest_overlap(&self.marked, &whole)));
        let rest = self.held.split_off(free);
        // A special token right behind what is let through may begin a stop string.
        self.hidden.retain(|(at, _)| *at >= free);
        self.hidden.iter_mut().for_each(|(at, _)| *at -= free);
        if rest.is_empty() && longest_overlap(&self.marked, &whole) == 0 {
            self.hidden.clear();
        }
        std::mem::replace(&mut self.held, rest)
    }

    /// What is held, with its special tokens.
    fn whole(&self) -> String {
        let (mut whole, mut from) = (String::new(), 0);
        for (at, token) in &self.hidden {
            whole.push_str(self.held.get(from..*at).unwrap_or_default());
            whole.push_str(token);
            from = *at;
        }
        whole + self.held.get(from..).unwrap_or_default()
    }

    /// A place in the text with special tokens, as a place in what is held.
    fn seen(&self, place: usize) -> usize {
        let mut before = 0;
        for (at, token) in &self.hidden {
            if place <= at + before {
                break;
            }
            if place < at + before + token.len() {
                return *at;
            }
            before += token.len();
        }
        place - before
    }

    /// What was held back, when the text is over.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Where the stop string that is complete first ends and starts, and which it is.
fn first<'a>(stops: &'a [String], text: &str) -> Option<(usize, usize, &'a str)> {
    stops
        .iter()
        .filter_map(|stop| text.find(stop.as_str()).map(|start| (start + stop.len(), start, stop.as_str())))
        .min()
}

/// Bytes at the end of `text` that may be the beginning of a stop string.
fn longest_overlap(stops: &[String], text: &str) -> usize {
    stops.iter().map(|stop| overlap(text, stop)).max().unwrap_or(0)
}

/// Bytes of the longest end of `text` that `stop` begins with.
fn overlap(text: &str, stop: &str) -> usize {
    let ends = stop.char_indices().map(|(at, _)| at).rev();
    ends.filter(|&at| at <= text.len()).find(|&at| text.as_bytes().ends_with(&stop.as_bytes()[..at])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(stops: &[&str], parts: &[&str]) -> (Vec<String>, String, bool) {
        let mut scanner = StopScanner::new(stops.iter().map(|&stop| stop.to_owned()), |_| false);
        let shown = parts.iter().map(|part| scanner.push(part)).collect();
        (shown, scanner.finish(), scanner.found())
    }

    #[test]
    fn what_may_be_a_stop_string_is_held_back_until_it_is_known() {
        let (shown, rest, found) = scan(&["\n\nUser:"], &["Hello\n", "\n", "Us", "e it\n", "\nUser: x", "y"]);
        assert_eq!(shown, ["Hello", "", "", "\n\nUse it", "", ""]);
        assert_eq!((rest.as_str(), found), ("", true));
        let (shown, rest, found) = scan(&["END"], &["the EN"]);
        assert_eq!((shown[0].as_str(), rest.as_str(), found), ("the ", "EN", false));
    }

    #[test]
    fn parts_make_no_difference() {
        let text = "aä€𝄞 xab€€y und xaby";
        for stops in [&["ab", "xaby"][..], &["xab", "b"], &["€y", "€€y"], &["nichts"], &[""], &["𝄞"]] {
            let whole = scan(stops, &[text]);
            let letters: Vec<String> = text.chars().map(String::from).collect();
            let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
            let pieces = scan(stops, &letters);
            assert_eq!(pieces.0.concat() + &pieces.1, whole.0.concat() + &whole.1, "{stops:?}");
            assert_eq!(pieces.2, whole.2);
        }
    }

    #[test]
    fn the_stop_string_that_is_complete_first_counts() {
        assert_eq!(scan(&["xaby", "ab"], &["1xaby"]).0, ["1x"]);
        assert_eq!(scan(&["b", "ab"], &["1xab"]).0, ["1x"]);
        let mut scanner = StopScanner::new(["c", "b", "ab"].map(str::to_owned), |_| false);
        assert_eq!((scanner.push("1xa"), scanner.stop()), ("1x".to_owned(), None));
        assert_eq!((scanner.push("bc"), scanner.stop()), (String::new(), Some("ab")));
    }

    #[test]
    fn a_stop_string_may_have_special_tokens_that_are_not_seen() {
        let scanner = |stops: &[&str]| {
            StopScanner::new(stops.iter().map(|&stop| stop.to_owned()), |stop: &str| stop.contains("<|end|>"))
        };
        let mut alone = scanner(&["<|end|>"]);
        assert_eq!(alone.push("Hi <|e"), "Hi ");
        assert_eq!((alone.push_hidden("<|end|>"), alone.found()), ("<|e".to_owned(), true));
        let mut around = scanner(&[".<|end|>\n", "User:"]);
        assert_eq!(around.push("a."), "a");
        assert_eq!(around.push_hidden("<|end|>"), "");
        assert_eq!(around.push(" b. U"), ". b. ");
        assert_eq!(around.push_hidden("<|other|>"), "");
        assert_eq!(around.push("s."), "Us", "a special token in the middle changes nothing");
        assert_eq!(around.push_hidden("<|end|>") + &around.push("\n and"), "");
        assert!(around.found());
        assert_eq!(around.finish(), "");
    }
}
