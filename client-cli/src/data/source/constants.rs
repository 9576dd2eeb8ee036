//! `NaN`, `Infinity` and `-Infinity`, which Python writes for such numbers though JSON has none, and reads. In data they stand for
//! values that are missing, so they become `null`.

use std::io::{self, BufRead, Read};

/// JSON with `null` in the place of such numbers.
pub(super) struct Constants<R> {
    inner: R,
    /// Whether the next byte is within a text, and whether a backslash is in front of it.
    text: Option<bool>,
    /// What was read and is still to be given, first byte last.
    pending: Vec<u8>,
    /// What happened behind the bytes that were given last.
    failed: Option<io::Error>,
}

/// Whether a text may have such numbers.
pub(super) fn may_be_in(text: &str) -> bool {
    text.contains("NaN") || text.contains("Infinity")
}

impl<R: BufRead> Constants<R> {
    pub(super) fn new(inner: R) -> Self {
        Self { inner, text: None, pending: Vec::new(), failed: None }
    }

    fn byte(&mut self) -> io::Result<Option<u8>> {
        let byte = self.inner.fill_buf()?.first().copied();
        self.inner.consume(usize::from(byte.is_some()));
        Ok(byte)
    }

    /// What stands for a byte outside of texts with which such a number may begin.
    fn number(&mut self, first: u8) -> io::Result<u8> {
        let negative = first == b'-' && self.inner.fill_buf()?.first() == Some(&b'I');
        let first = if negative { self.byte()?.unwrap_or(first) } else { first };
        let rest: &[u8] = match first {
            b'N' => b"aN",
            b'I' => b"nfinity",
            _ => return Ok(first),
        };
        let mut read = Vec::new();
        for wanted in rest {
            // What is another word is wrong in any case, and is handed on.
            let Some(byte) = self.byte()? else { break };
            read.push(byte);
            if byte != *wanted {
                break;
            }
        }
        let (first, rest) = if read == rest { (b'n', b"ull".to_vec()) } else { (first, read) };
        self.pending.extend(rest.iter().rev());
        Ok(first)
    }

    fn next(&mut self) -> io::Result<Option<u8>> {
        if let Some(byte) = self.pending.pop() {
            return Ok(Some(byte));
        }
        let Some(byte) = self.byte()? else { return Ok(None) };
        self.text = match (self.text, byte) {
            (Some(true), _) => Some(false),
            (Some(false), b'\\') => Some(true),
            (Some(false), b'"') => None,
            (None, b'"') => Some(false),
            (None, b'N' | b'I' | b'-') => return self.number(byte).map(Some),
            (state, _) => state,
        };
        Ok(Some(byte))
    }
}

impl<R: BufRead> Read for Constants<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        for (at, place) in buffer.iter_mut().enumerate() {
            match self.next() {
                Ok(Some(byte)) => *place = byte,
                Ok(None) => return Ok(at),
                Err(error) if at == 0 => return Err(error),
                Err(error) => {
                    self.failed = Some(error);
                    return Ok(at);
                }
            }
        }
        Ok(buffer.len())
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use super::*;

    fn replaced(text: &str, buffer: usize) -> String {
        let mut out = String::new();
        Constants::new(BufReader::with_capacity(buffer, text.as_bytes())).read_to_string(&mut out).unwrap();
        out
    }

    #[test]
    fn numbers_that_json_has_not_are_null_outside_of_texts_only() {
        let given = r#"{"a": [NaN,-Infinity, Infinity, -1, 1e-5], "NaN \" NaN\\": "-Infinity \\", "b": NaN}"#;
        let expected = r#"{"a": [null,null, null, -1, 1e-5], "NaN \" NaN\\": "-Infinity \\", "b": null}"#;
        for buffer in [1, 2, 3, 5, 4096] {
            assert_eq!(replaced(given, buffer), expected);
        }
    }

    #[test]
    fn other_words_are_handed_on_as_they_are() {
        for text in ["NaM", "Na", "-In", "Infinit\"y", "nan", "-", "--Infinite"] {
            let kept = replaced(text, 2).trim_start_matches('-').to_owned();
            assert_eq!(kept, text.trim_start_matches('-'), "{text}");
        }
    }
}
