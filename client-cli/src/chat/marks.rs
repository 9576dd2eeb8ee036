//! `{% generation %}` blocks, in which templates put what the assistant said.
//!
//! Jinja does not know them; transformers adds them by an extension that is a call block, and so are they here: of a function that
//! returns its body between two marks. They are taken out of what is rendered.

use std::ops::Range;

use minijinja::value::Kwargs;
use minijinja::{Environment, Error, State, Value};

/// The function that blocks become calls of.
const FUNCTION: &str = "petals_generation";
/// Begin and end of an answer: noncharacters of Unicode, which no text has.
const MARKS: [char; 2] = ['\u{fdd0}', '\u{fdd1}'];

/// The template with calls in place of the blocks, and whether it had any.
pub(super) fn rewrite(source: &str) -> (String, bool) {
    let (mut text, mut rest, mut found) = (String::with_capacity(source.len()), source, false);
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        text.push_str(before);
        let Some(end) = tag.find("%}").map(|end| end + 2) else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(end);
        let inside = &tag[2..end - 2];
        let word = inside.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        let statement = match word {
            "generation" => Some(format!("call {FUNCTION}()")),
            "endgeneration" => Some("endcall".to_owned()),
            _ => None,
        };
        found |= statement.is_some();
        let control =
            |edge: Option<char>| edge.filter(|c| matches!(c, '-' | '+')).map(String::from).unwrap_or_default();
        match statement {
            Some(statement) => {
                let (open, close) = (control(inside.chars().next()), control(inside.chars().next_back()));
                text.push_str(&format!("{{%{open} {statement} {close}%}}"));
            }
            None => text.push_str(tag),
        }
        rest = after;
    }
    text.push_str(rest);
    (text, found)
}

/// Adds the function.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.add_function(FUNCTION, |state: &mut State<'_, '_>, kwargs: Kwargs| -> Result<String, Error> {
        let body = kwargs.get::<Value>("caller")?.call(state, &[])?;
        let [open, close] = MARKS;
        Ok(format!("{open}{body}{close}"))
    });
}

/// The first mark in a text.
pub(super) fn first(text: &str) -> Option<char> {
    text.chars().find(|c| MARKS.contains(c))
}

/// A text without its marks, and what was between them.
pub(super) fn take(marked: &str) -> (String, Vec<Range<usize>>) {
    let (mut text, mut parts, mut open) = (String::with_capacity(marked.len()), Vec::new(), None);
    for c in marked.chars() {
        if c == MARKS[0] {
            open = Some(text.len());
        } else if c == MARKS[1] {
            parts.extend(open.take().map(|start| start..text.len()).filter(|part| !part.is_empty()));
        } else {
            text.push(c);
        }
    }
    (text, parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_generation_blocks_are_rewritten() {
        let plain = "{% if a %}{{ '{% generation' }}{# %} #}{% generations %} generation {% endif";
        assert_eq!(rewrite(plain), (plain.to_owned(), false));
        let (text, found) = rewrite("a{%- generation -%}b{%+endgeneration%}c{% generation\n%}");
        assert!(found);
        assert_eq!(text, "a{%- call petals_generation() -%}b{%+ endcall %}c{% call petals_generation() %}");
    }

    #[test]
    fn marks_are_taken_out_and_remembered() {
        let (text, parts) = take("a\u{fdd0}é\u{fdd1}b\u{fdd0}\u{fdd1}c\u{fdd0}d\u{fdd1}\u{fdd0}e");
        assert_eq!((text.as_str(), parts), ("aébcde", vec![1..3, 5..6]));
    }
}
