//! Sources of templates, in the form that the engine understands.

use std::iter::Peekable;
use std::str::CharIndices;

/// The template with its line ends as Jinja has them, and with transformers' `generation` blocks as blocks of a scope of their own:
/// they mark what the model itself said, and nothing of them is seen in the text.
pub(super) fn normalised(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    // Jinja drops one line end behind the template, and so does the engine.
    let mut normal = String::with_capacity(source.len());
    let mut rest = source.as_str();
    while let Some(at) = ["{{", "{%", "{#"].iter().filter_map(|opening| rest.find(opening)).min() {
        let (before, inside) = rest.split_at(at);
        normal.push_str(before);
        let length = match generation(inside) {
            Some((opening, word, closing, length)) => {
                [opening, word, closing].iter().for_each(|part| normal.push_str(part));
                rest = &inside[length..];
                continue;
            }
            None if inside.starts_with("{#") => inside.find("#}").map_or(inside.len(), |end| end + 2),
            None if is_raw(inside) => inside.find("endraw").unwrap_or(inside.len()),
            None => end_of(inside),
        };
        normal.push_str(&inside[..length]);
        rest = &inside[length..];
    }
    normal + rest
}

/// Whether a tag begins what is no template.
fn is_raw(tag: &str) -> bool {
    tag.strip_prefix("{%").is_some_and(|tag| {
        let name = tag.trim_start_matches(['-', '+']).trim_start();
        name.strip_prefix("raw").is_some_and(|end| !end.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
    })
}

/// The length of a tag or an expression. Brackets in its texts do not end it.
fn end_of(tag: &str) -> usize {
    let closing = if tag.starts_with("{{") { "}}" } else { "%}" };
    let (mut quote, mut escaped) = (None, false);
    for (at, c) in tag.char_indices().skip(2) {
        match quote {
            _ if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == '"' || c == '\'' => quote = Some(c),
            None if tag[at..].starts_with(closing) => return at + 2,
            None => {}
        }
    }
    tag.len()
}

/// If a tag is `generation` or `endgeneration`: its parts, with the word that it becomes, and its length.
fn generation(tag: &str) -> Option<(&str, &'static str, &str, usize)> {
    tag.strip_prefix("{%")?;
    let mut letters = tag.char_indices().peekable();
    letters.nth(1)?;
    letters.next_if(|(_, c)| matches!(c, '-' | '+'));
    skip_space(&mut letters);
    let start = letters.peek()?.0;
    while letters.next_if(|(_, c)| c.is_alphanumeric() || *c == '_').is_some() {}
    let end = letters.peek()?.0;
    let word = match &tag[start..end] {
        "generation" => "with",
        "endgeneration" => "endwith",
        _ => return None,
    };
    skip_space(&mut letters);
    letters.next_if(|(_, c)| matches!(c, '-' | '+'));
    let close = letters.peek()?.0;
    tag[close..].starts_with("%}").then(|| (&tag[..start], word, &tag[end..close + 2], close + 2))
}

fn skip_space(letters: &mut Peekable<CharIndices<'_>>) {
    while letters.next_if(|(_, c)| c.is_whitespace()).is_some() {}
}
