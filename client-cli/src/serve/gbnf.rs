//! Grammars in the notation of llama.cpp and xgrammar (GBNF), as Lark.

use std::collections::HashMap;
use std::iter::Peekable;
use std::str::Chars;

use super::grammar::quoted;

/// A part of a grammar.
#[derive(Debug, Clone, PartialEq)]
enum Part {
    /// Of a rule.
    Name(String),
    /// `::=`
    Defined,
    /// A literal, with its escapes resolved.
    Literal(String),
    /// What Lark writes alike: operators and parentheses, or a class of characters as an expression.
    Same(String),
}

/// Whether a grammar's first rule is in this notation: `name ::= …`.
pub(super) fn is_gbnf(text: &str) -> bool {
    let mut lines = text.lines().map(str::trim);
    let first = lines.find(|line| !line.is_empty() && !line.starts_with('#'));
    first.is_some_and(|line| {
        let rest = line.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_');
        rest.len() < line.len() && rest.trim_start().starts_with("::=")
    })
}

/// The same grammar in Lark. A rule ends where the next one begins.
///
/// # Errors
/// What is wrong with it.
pub(super) fn to_lark(text: &str) -> Result<String, String> {
    let parts = parts(text)?;
    let mut names: HashMap<&str, String> = HashMap::new();
    for (at, pair) in parts.windows(2).enumerate() {
        if let [Part::Name(name), Part::Defined] = pair {
            let letters: String = name.to_ascii_lowercase().replace('-', "_");
            let lark = if name == "root" { "start".to_owned() } else { format!("r{at}_{letters}") };
            if names.insert(name, lark).is_some() {
                return Err(format!("the rule {name} is defined twice"));
            }
        }
    }
    if !names.contains_key("root") {
        return Err("there is no rule root".to_owned());
    }
    let mut lark = String::new();
    let mut parts = parts.iter().peekable();
    while let Some(part) = parts.next() {
        match part {
            Part::Name(name) => {
                let known = names.get(name.as_str()).ok_or_else(|| format!("the rule {name} is not defined"))?;
                if parts.next_if_eq(&&Part::Defined).is_some() {
                    lark += &format!("\n{known}:");
                } else {
                    lark += &format!(" {known}");
                }
            }
            Part::Defined => return Err("`::=` must stand behind the name of a rule".to_owned()),
            Part::Literal(text) => lark += &format!(" {}", quoted(text)),
            Part::Same(text) => {
                // Operators stand right behind what they repeat.
                let gap = if text.starts_with(['*', '+', '?', '{']) { "" } else { " " };
                lark += &format!("{gap}{text}");
            }
        }
    }
    Ok(lark + "\n")
}

fn parts(text: &str) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            _ if c.is_whitespace() => {}
            '#' => while chars.next_if(|&c| c != '\n').is_some() {},
            ':' if chars.next_if_eq(&':').is_some() && chars.next_if_eq(&'=').is_some() => parts.push(Part::Defined),
            '"' => parts.push(Part::Literal(literal(&mut chars)?)),
            '[' => parts.push(Part::Same(class(&mut chars)?)),
            '.' => parts.push(Part::Same("/(?s:.)/".to_owned())),
            '|' | '(' | ')' | '*' | '+' | '?' => parts.push(Part::Same(c.to_string())),
            '{' => {
                let mut range = String::new();
                while let Some(c) = chars.next_if(|&c| c != '}') {
                    range.push(c);
                }
                chars.next();
                let sane = |number: &str| number.chars().all(|c| c.is_ascii_digit()) && number.len() < 7;
                let range: String = range.split_whitespace().collect();
                if range.is_empty() || range.matches(',').count() > 1 || !range.split(',').all(sane) {
                    return Err(format!("{{{range}}} is no number of repetitions"));
                }
                parts.push(Part::Same(format!("{{{range}}}")));
            }
            _ if c.is_ascii_alphanumeric() || c == '_' || c == '-' => {
                let mut name = c.to_string();
                while let Some(c) = chars.next_if(|&c| c.is_ascii_alphanumeric() || c == '_' || c == '-') {
                    name.push(c);
                }
                parts.push(Part::Name(name));
            }
            _ => return Err(format!("{c:?} means nothing here")),
        }
    }
    Ok(parts)
}

fn literal(chars: &mut Peekable<Chars<'_>>) -> Result<String, String> {
    let mut text = String::new();
    loop {
        match chars.next() {
            None => return Err("a text has no closing quote".to_owned()),
            Some('"') => return Ok(text),
            Some('\\') => text.push(escaped(chars)?),
            Some(c) => text.push(c),
        }
    }
}

/// A class of characters as a regular expression, whatever these mean in one.
fn class(chars: &mut Peekable<Chars<'_>>) -> Result<String, String> {
    let mut expression = "/[".to_owned();
    if chars.next_if_eq(&'^').is_some() {
        expression.push('^');
    }
    let mut empty = true;
    let one = |chars: &mut Peekable<Chars<'_>>| match chars.next() {
        None => Err("a class of characters has no closing bracket".to_owned()),
        Some('\\') => escaped(chars).map(Some),
        Some(']') => Ok(None),
        Some(c) => Ok(Some(c)),
    };
    while let Some(first) = one(chars)? {
        empty = false;
        expression += &format!("\\x{{{:x}}}", u32::from(first));
        let mut ahead = chars.clone();
        // A minus in front of the closing bracket is one.
        if ahead.next() == Some('-') && ahead.next() != Some(']') {
            chars.next();
            match one(chars)? {
                Some(last) if last >= first => expression += &format!("-\\x{{{:x}}}", u32::from(last)),
                _ => return Err(format!("a range of characters from {first:?} ends before it begins")),
            }
        }
    }
    if empty { Err("a class of characters has none".to_owned()) } else { Ok(expression + "]/") }
}

fn escaped(chars: &mut Peekable<Chars<'_>>) -> Result<char, String> {
    let escape = chars.next().ok_or("a backslash stands at the end")?;
    let digits = match escape {
        'n' => return Ok('\n'),
        'r' => return Ok('\r'),
        't' => return Ok('\t'),
        'x' => 2,
        'u' => 4,
        'U' => 8,
        other if !other.is_ascii_alphanumeric() => return Ok(other),
        other => return Err(format!("\\{other} is no escape of this notation")),
    };
    let hex: String = chars.by_ref().take(digits).collect();
    let code = u32::from_str_radix(&hex, 16).ok().and_then(char::from_u32);
    code.ok_or_else(|| format!("\\{escape}{hex} is no character"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_become_those_of_lark() {
        let grammar = "# a comment\nroot ::= \"a\\n\\\"\" item-List? | (item-List\n  | [^a-z\\]-]{2,3})+ # more\nitem-List ::= [\\x41-Z] .*\n";
        assert!(is_gbnf(grammar));
        let lark = to_lark(grammar).unwrap();
        let expected = "\nstart: \"a\\n\\\"\" r13_item_list? | ( r13_item_list | /[^\\x{61}-\\x{7a}\\x{5d}\\x{2d}]/{2,3} )+\n\
                        r13_item_list: /[\\x{41}-\\x{5a}]/ /(?s:.)/*\n";
        assert_eq!(lark, expected);
        assert!(!is_gbnf("start: \"::=\"") && !is_gbnf("start ::\n") && !is_gbnf(""));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (grammar, words) in [
            ("a ::= \"b\"", "no rule root"),
            ("root ::= b", "rule b is not defined"),
            ("root ::= \"b", "no closing quote"),
            ("root ::= [a", "no closing bracket"),
            ("root ::= []", "has none"),
            ("root ::= [z-a]", "ends before it begins"),
            ("root ::= \"\\q\"", "\\q is no escape"),
            ("root ::= \"\\uD800\"", "is no character"),
            ("root ::= \"a\"{1,2,3}", "repetitions"),
            ("root ::= \"a\" !", "means nothing"),
            ("root ::= \"a\"\nroot ::= \"b\"", "defined twice"),
            ("root ::= ::= \"a\"", "behind the name"),
        ] {
            let error = to_lark(grammar).unwrap_err();
            assert!(error.contains(words), "{grammar}: {error}");
        }
    }
}
