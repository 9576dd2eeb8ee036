//! The methods of Python's texts, lists and objects.

use minijinja::value::{Kwargs, Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

/// Characters that a text may be padded to.
const WIDTH: usize = 1 << 16;

/// Calls a method that the engine does not know.
pub(super) fn call(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    match (value.kind(), value.as_str()) {
        (ValueKind::String, Some(text)) => match of_text(text, method, args)? {
            Some(answer) => Ok(answer),
            None => unknown_method_callback(state, value, method, args),
        },
        (ValueKind::Seq, _) => match method {
            "index" => {
                let (what,): (&Value,) = from_args(args)?;
                let found = value.try_iter()?.position(|item| item == *what);
                found.map(Value::from).ok_or_else(|| failed(format!("{what} is not in the list")))
            }
            "copy" => from_args::<()>(args).map(|()| value.clone()),
            _ => unknown_method_callback(state, value, method, args),
        },
        (ValueKind::Map, _) if method == "copy" => from_args::<()>(args).map(|()| value.clone()),
        _ => unknown_method_callback(state, value, method, args),
    }
}

/// What [`unknown_method_callback`] does not have, or has otherwise than Python.
fn of_text(text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let whole = |answer: String| from_args::<()>(args).map(|()| Some(Value::from(answer)));
    let is = |all: bool| from_args::<()>(args).map(|()| Some(Value::from(!text.is_empty() && all)));
    let one = || -> Result<&str, Error> { Ok(from_args::<(&str,)>(args)?.0) };
    match method {
        "split" | "rsplit" => {
            let [separator, most] = named(args, ["sep", "maxsplit"])?;
            let separator = separator.map(|separator| separator.to_string());
            let most = most.map(i64::try_from).transpose()?;
            let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
            Ok(Some(
                split(text, separator.as_deref(), most, method == "rsplit")?.into_iter().map(Value::from).collect(),
            ))
        }
        "splitlines" => {
            let [keep, _] = named(args, ["keepends", ""])?;
            Ok(Some(lines(text, keep.is_some_and(|keep| keep.is_true())).into_iter().map(Value::from).collect()))
        }
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            let gone = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
            Ok(Some(Value::from(match method {
                "strip" => text.trim_matches(gone),
                "lstrip" => text.trim_start_matches(gone),
                _ => text.trim_end_matches(gone),
            })))
        }
        "partition" | "rpartition" => {
            let separator = not_empty(one()?)?;
            let first = method == "partition";
            let found = if first { text.split_once(separator) } else { text.rsplit_once(separator) };
            let parts = match found {
                Some((before, behind)) => [before, separator, behind],
                None if first => [text, "", ""],
                None => ["", "", text],
            };
            Ok(Some(Value::from(Tuple::from(parts.map(Value::from)))))
        }
        "removeprefix" => Ok(Some(Value::from(text.strip_prefix(one()?).unwrap_or(text)))),
        "removesuffix" => Ok(Some(Value::from(text.strip_suffix(one()?).unwrap_or(text)))),
        "find" | "rfind" | "index" | "rindex" | "count" => {
            let (what, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
            let (part, offset) = part(text, start, end);
            if method == "count" {
                return Ok(Some(Value::from(part.map_or(0, |part| part.matches(what).count()))));
            }
            let found = part.and_then(|part| {
                let at = if method.starts_with('r') { part.rfind(what) } else { part.find(what) };
                at.map(|at| part[..at].chars().count() + offset)
            });
            match found {
                Some(at) => Ok(Some(Value::from(at))),
                None if method.ends_with("find") => Ok(Some(Value::from(-1))),
                None => Err(failed("substring not found".to_owned())),
            }
        }
        "startswith" | "endswith" if args.len() > 1 => {
            let (what, start, end): (&Value, Option<i64>, Option<i64>) = from_args(args)?;
            let (part, _) = part(text, start, end);
            let fits = |what: &Value| {
                let what = what.as_str().ok_or_else(|| failed(format!("{method} takes texts")))?;
                Ok(part.is_some_and(
                    |part| if method == "startswith" { part.starts_with(what) } else { part.ends_with(what) },
                ))
            };
            if what.as_str().is_some() {
                return fits(what).map(|fits| Some(Value::from(fits)));
            }
            let each = what.try_iter()?.map(|what| fits(&what)).collect::<Result<Vec<bool>, Error>>()?;
            Ok(Some(Value::from(each.contains(&true))))
        }
        "join" => {
            let (values,): (&Value,) = from_args(args)?;
            // Python joins texts alone; how they are joined is the engine's.
            match values.try_iter()?.find(|value| value.as_str().is_none()) {
                Some(other) => Err(failed(format!("join takes texts, not {}", other.kind()))),
                None => Ok(None),
            }
        }
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            let (sign, digits) = if text.starts_with(['-', '+']) { text.split_at(1) } else { ("", text) };
            Ok(Some(Value::from(format!("{sign}{}{digits}", padding(text, width, '0')))))
        }
        "ljust" | "rjust" | "center" => {
            let (width, fill): (usize, Option<char>) = from_args(args)?;
            let fill = fill.unwrap_or(' ');
            Ok(Some(Value::from(match method {
                "ljust" => text.to_owned() + &padding(text, width, fill),
                "rjust" => padding(text, width, fill) + text,
                _ => centre(text, width, fill),
            })))
        }
        "title" => whole(title(text)),
        "swapcase" => whole(text.chars().flat_map(swapped).collect()),
        // Python folds a little more than it lowers: this is the letter that texts have.
        "casefold" => whole(text.to_lowercase().replace('ß', "ss")),
        "expandtabs" => {
            let [width, _] = named(args, ["tabsize", ""])?;
            let width = width.map(usize::try_from).transpose()?.unwrap_or(8);
            Ok(Some(Value::from(expand(text, width.min(WIDTH)))))
        }
        "istitle" => is(text == title(text) && text.chars().any(char::is_alphabetic)),
        "isspace" => is(text.chars().all(is_space)),
        "isdecimal" => is(text.chars().all(|c| c.is_ascii_digit())),
        "isdigit" => is(text.chars().all(|c| c.is_ascii_digit() || "²³¹".contains(c))),
        "isascii" => from_args::<()>(args).map(|()| Some(Value::from(text.is_ascii()))),
        "isidentifier" => {
            let begins = text.chars().next().is_some_and(|c| c.is_alphabetic() || c == '_');
            is(begins && text.chars().all(|c| c.is_alphanumeric() || c == '_'))
        }
        _ => Ok(None),
    }
}

/// Two arguments that may be given by name. None is no argument.
fn named(args: &[Value], names: [&str; 2]) -> Result<[Option<Value>; 2], Error> {
    let (positional, kwargs): (&[Value], Kwargs) = from_args(args)?;
    let mut values = [None, None];
    if positional.len() > names.iter().filter(|name| !name.is_empty()).count() {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    for (at, (value, name)) in values.iter_mut().zip(names).enumerate() {
        *value = match positional.get(at) {
            Some(given) => Some(given.clone()),
            None if name.is_empty() => None,
            None => kwargs.get::<Option<Value>>(name)?,
        };
        *value = value.take().filter(|value| !value.is_none());
    }
    kwargs.assert_all_used()?;
    Ok(values)
}

fn failed(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

fn not_empty(separator: &str) -> Result<&str, Error> {
    if separator.is_empty() { Err(failed("empty separator".to_owned())) } else { Ok(separator) }
}

/// What Python takes for white space.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// A text without white space, or without certain characters, at its ends.
pub(super) fn strip<'a>(text: &'a str, chars: Option<&str>) -> &'a str {
    text.trim_matches(|c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c)))
}

fn split<'a>(text: &'a str, separator: Option<&str>, most: usize, from_behind: bool) -> Result<Vec<&'a str>, Error> {
    let pieces = most.saturating_add(1);
    if let Some(separator) = separator {
        let separator = not_empty(separator)?;
        return Ok(if from_behind {
            let mut parts: Vec<&str> = text.rsplitn(pieces, separator).collect();
            parts.reverse();
            parts
        } else {
            text.splitn(pieces, separator).collect()
        });
    }
    let mut parts = Vec::new();
    let mut rest = strip(text, None);
    while parts.len() < most && !rest.is_empty() {
        let cut = if from_behind { rest.rfind(is_space) } else { rest.find(is_space) };
        let Some(at) = cut else { break };
        if from_behind {
            let behind = at + rest[at..].chars().next().map_or(0, char::len_utf8);
            parts.push(&rest[behind..]);
            rest = rest[..at].trim_end_matches(is_space);
        } else {
            parts.push(&rest[..at]);
            rest = rest[at..].trim_start_matches(is_space);
        }
    }
    if !rest.is_empty() {
        parts.push(rest);
    }
    if from_behind {
        parts.reverse();
    }
    Ok(parts)
}

fn lines(text: &str, keep: bool) -> Vec<&str> {
    let ends = ['\n', '\r', '\x0b', '\x0c', '\x1c', '\x1d', '\x1e', '\u{85}', '\u{2028}', '\u{2029}'];
    let (mut lines, mut rest) = (Vec::new(), text);
    while let Some(at) = rest.find(ends) {
        let length =
            if rest[at..].starts_with("\r\n") { 2 } else { rest[at..].chars().next().map_or(1, char::len_utf8) };
        lines.push(&rest[..if keep { at + length } else { at }]);
        rest = &rest[at + length..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

/// Part of a text, from a character to another one, and the first one's number; none if it begins behind the end.
fn part(text: &str, start: Option<i64>, end: Option<i64>) -> (Option<&str>, usize) {
    let length = text.chars().count();
    let place = |at: i64| {
        let at = if at < 0 { at.saturating_add_unsigned(length as u64).max(0) } else { at };
        usize::try_from(at).unwrap_or(usize::MAX)
    };
    let (start, end) = (start.map_or(0, place), end.map_or(length, place).min(length));
    if start > length {
        return (None, 0);
    }
    let byte = |at: usize| text.char_indices().nth(at).map_or(text.len(), |(byte, _)| byte);
    (text.get(byte(start)..byte(end.max(start))).filter(|_| start <= end), start)
}

fn padding(text: &str, width: usize, fill: char) -> String {
    let missing = width.min(WIDTH).saturating_sub(text.chars().count());
    std::iter::repeat_n(fill, missing).collect()
}

/// A text in the middle of a width, as `str.center` has it.
pub(super) fn centre(text: &str, width: usize, fill: char) -> String {
    let width = width.min(WIDTH);
    let missing = width.saturating_sub(text.chars().count());
    let left = missing / 2 + (missing & width & 1);
    let fill = |count| std::iter::repeat_n(fill, count).collect::<String>();
    fill(left) + text + &fill(missing - left)
}

/// Every word with a capital, where words are letters without a break.
fn title(text: &str) -> String {
    let mut within = false;
    let mut titled = String::with_capacity(text.len());
    for c in text.chars() {
        if within {
            titled.extend(c.to_lowercase())
        } else {
            titled.extend(c.to_uppercase())
        }
        within = c.is_alphabetic();
    }
    titled
}

fn swapped(c: char) -> Vec<char> {
    if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
}

fn expand(text: &str, width: usize) -> String {
    let (mut expanded, mut column) = (String::new(), 0);
    for c in text.chars() {
        match c {
            '\t' => {
                let spaces = if width == 0 { 0 } else { width - column % width };
                expanded.extend(std::iter::repeat_n(' ', spaces));
                column += spaces;
            }
            c => {
                expanded.push(c);
                column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
            }
        }
    }
    expanded
}
