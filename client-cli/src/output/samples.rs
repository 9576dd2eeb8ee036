//! How held-out texts go on while a run trains.

use std::fmt::{self, Display};

use serde::Serialize;

use super::Event;

/// Characters of a prompt's end, and of what should follow it, that people are shown.
const SHOWN: usize = 160;

/// Continuations of held-out examples.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Samples {
    /// Steps that the tables were trained for.
    pub(crate) step: u64,
    /// In the order of the data.
    pub(crate) samples: Vec<Sample>,
}

/// How one example goes on.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Sample {
    /// What was given.
    pub(crate) prompt: String,
    /// What the model made of it.
    pub(crate) generated: String,
    /// What the data has there.
    pub(crate) expected: String,
    /// What ended it: `stop_token` or `length`.
    pub(crate) finish: &'static str,
}

impl Event for Samples {
    const NAME: &'static str = "samples";
}

impl Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "after step {}, held-out texts go on like this:", self.step)?;
        for (number, Sample { prompt, generated, expected, finish }) in self.samples.iter().enumerate() {
            let more = if *finish == "length" { "…" } else { "" };
            write!(f, "\n  {}. {}", number + 1, end(&in_a_line(prompt)))?;
            write!(f, "\n     -> {}{more}", in_a_line(generated))?;
            write!(f, "\n     data: {}", beginning(&in_a_line(expected)))?;
        }
        Ok(())
    }
}

/// A text without anything that a terminal would obey.
fn in_a_line(text: &str) -> String {
    text.trim().chars().map(|c| if c == '\n' { '⏎' } else { c }).filter(|c| !c.is_control()).collect()
}

fn end(text: &str) -> String {
    match text.char_indices().rev().nth(SHOWN - 1) {
        Some((at, _)) if at > 0 => format!("…{}", &text[at..]),
        _ => text.to_owned(),
    }
}

fn beginning(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_see_a_line_each_and_scripts_everything() {
        let sample = |prompt: &str, finish| Sample {
            prompt: prompt.into(),
            generated: "a\nb\u{1b}[2J".into(),
            expected: "ä".repeat(200),
            finish,
        };
        let samples =
            Samples { step: 4, samples: vec![sample("who?", "stop_token"), sample(&"é".repeat(200), "length")] };
        let text = samples.to_string();
        assert!(text.contains("\n  1. who?\n     -> a⏎b[2J\n     data: ä") && text.contains("-> a⏎b[2J…\n"), "{text}");
        assert!(text.contains(&format!("2. …{}\n", "é".repeat(160))) && text.ends_with("ä…"), "{text}");
        let json = serde_json::to_value(&samples).unwrap();
        assert_eq!((&json["step"], &json["samples"][0]["generated"]), (&4.into(), &"a\nb\u{1b}[2J".into()));
    }
}
