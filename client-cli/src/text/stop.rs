//! Ending a text where it comes to one of some strings.

/// Looks for stop strings in a text that arrives in parts, and lets through what comes before them. The end of the text is held back as
/// long as it may be the beginning of a stop string. How the text is cut into parts makes no difference.
#[derive(Debug, Clone, Default)]
pub(crate) struct StopScanner {
    stops: Vec<String>,
    held: String,
    found: bool,
}

impl StopScanner {
    /// Empty strings stop nothing.
    pub(crate) fn new(stops: impl IntoIterator<Item = String>) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        Self { stops, held: String::new(), found: false }
    }

    /// Whether a stop string has come. Nothing is let through from then on.
    pub(crate) fn found(&self) -> bool {
        self.found
    }

    /// Takes more of the text, and returns what is certain not to belong to a stop string.
    pub(crate) fn push(&mut self, text: &str) -> String {
        if self.found {
            return String::new();
        }
        self.held.push_str(text);
        // The one that is complete first; of those that end together the longest.
        let ends = |stop: &String| self.held.find(stop.as_str()).map(|start| (start + stop.len(), start));
        if let Some((_, start)) = self.stops.iter().filter_map(ends).min() {
            self.found = true;
            self.held.truncate(start);
            return std::mem::take(&mut self.held);
        }
        let free = self.held.len() - self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(free);
        std::mem::replace(&mut self.held, rest)
    }

    /// What was held back, when the text is over.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
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
        let mut scanner = StopScanner::new(stops.iter().map(|&stop| stop.to_owned()));
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
    }
}
