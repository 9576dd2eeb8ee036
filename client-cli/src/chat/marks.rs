//! `{% generation %}` blocks, in which templates put what the assistant said.
//!
//! Jinja does not know them; transformers adds them by an extension. Here each of the two tags becomes a mark, a character
//! of the text around it, that is taken out of what is rendered. What a tag does to the space around it (Jinja's `-` and
//! `+`, and the options `trim_blocks` and `lstrip_blocks`, which chat templates are rendered with) is done when the mark is put.

use std::ops::Range;

/// Begin and end of an answer: noncharacters of Unicode, which no text has.
const MARKS: [char; 2] = ['\u{fdd0}', '\u{fdd1}'];

/// The template with marks in place of the tags, and whether it had any.
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
        let mark = match inside.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+') {
            "generation" => MARKS[0],
            "endgeneration" => MARKS[1],
            _ => {
                text.push_str(tag);
                rest = after;
                continue;
            }
        };
        found = true;
        text.truncate(kept_before(&text, inside.chars().next()));
        text.push(mark);
        rest = kept_after(after, inside.chars().next_back());
    }
    text.push_str(rest);
    (text, found)
}

/// How much of the text before a tag with this control stays: all but the space that is taken off, or that begins its line.
fn kept_before(text: &str, control: Option<char>) -> usize {
    match control {
        Some('-') => text.trim_end().len(),
        Some('+') => text.len(),
        _ => {
            let line = text.rfind('\n').map_or(0, |end| end + 1);
            if text[line..].chars().all(|c| matches!(c, ' ' | '\t')) { line } else { text.len() }
        }
    }
}

/// What of the text behind a tag with this control stays: all but the space that is taken off, or the end of its line. The
/// next tag may begin the next line; the space before it goes as well, which a mark would keep.
fn kept_after(text: &str, control: Option<char>) -> &str {
    match control {
        Some('-') => text.trim_start(),
        Some('+') => text,
        _ => {
            let Some(next) = text.strip_prefix('\n').or_else(|| text.strip_prefix("\r\n")) else { return text };
            let tag = next.trim_start_matches([' ', '\t']);
            let is_tag = (tag.starts_with("{%") && !tag.starts_with("{%+")) || tag.starts_with("{#");
            if is_tag { tag } else { next }
        }
    }
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

    /// The template with `<` and `>` for the marks.
    fn rewritten(source: &str) -> String {
        rewrite(source).0.replace(MARKS[0], "<").replace(MARKS[1], ">")
    }

    #[test]
    fn only_generation_blocks_are_rewritten() {
        let plain = "{% if a %}{{ '{% generation' }}{# %} #}{% generations %} generation {% endif";
        assert_eq!(rewrite(plain), (plain.to_owned(), false));
        assert!(rewrite("{%generation%}").1);
    }

    #[test]
    fn space_around_the_tags_goes_as_around_those_of_jinja() {
        assert_eq!(rewritten("a \n{%- generation -%}\n b \n{%- endgeneration -%} \n c"), "a<b>c");
        assert_eq!(rewritten("a\n  {% generation %}\n b\n\t{% endgeneration %}\n\nc"), "a\n< b\n>\nc");
        assert_eq!(rewritten("a {% generation %} b {% endgeneration %} c"), "a < b > c");
        assert_eq!(rewritten("a\n {%+ generation +%}\n b"), "a\n <\n b");
        assert_eq!(rewritten("{% generation %}\n  {% if a %}"), "<{% if a %}");
        assert_eq!(rewritten("{% generation %}\n  {{ a }}"), "<  {{ a }}");
    }

    #[test]
    fn marks_are_taken_out_and_remembered() {
        let (text, parts) = take("a\u{fdd0}é\u{fdd1}b\u{fdd0}\u{fdd1}c\u{fdd0}d\u{fdd1}\u{fdd0}e");
        assert_eq!((text.as_str(), parts), ("aébcde", vec![1..3, 5..6]));
    }
}
