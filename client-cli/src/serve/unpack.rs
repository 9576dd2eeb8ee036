//! Bodies of requests, from what is on the wire to JSON that can be read.

use std::io::Read;

use axum::body::Bytes;
use flate2::read::{MultiGzDecoder, ZlibDecoder};

use super::error::ApiError;

/// The mark that some systems put in front of texts in UTF-8.
const MARK: &[u8] = b"\xef\xbb\xbf";
/// What stands for half a character.
const REPLACEMENT: &[u8] = b"\\ufffd";

/// The JSON of a body that came in an encoding; at most `limit` bytes.
///
/// # Errors
/// 413 if there is more, 415 if the encoding is another one than gzip and deflate, 400 if the body is not in it.
pub(super) fn unpack(body: Bytes, encoding: Option<&str>, limit: usize) -> Result<Bytes, ApiError> {
    let encoding = encoding.map(|encoding| encoding.trim().to_ascii_lowercase()).unwrap_or_default();
    let body = match encoding.as_str() {
        "" | "identity" => body,
        "gzip" | "x-gzip" => inflated(MultiGzDecoder::new(&*body), "gzip", limit)?,
        "deflate" => inflated(ZlibDecoder::new(&*body), "deflate", limit)?,
        other => return Err(ApiError::unknown_encoding(other)),
    };
    let body = if body.starts_with(MARK) { body.slice(MARK.len()..) } else { body };
    Ok(halves_replaced(&body).map_or(body, Bytes::from))
}

/// What is packed, up to a limit: a small body may be a large text.
fn inflated(packed: impl Read, encoding: &str, limit: usize) -> Result<Bytes, ApiError> {
    let mut bytes = Vec::new();
    let read = packed.take((limit as u64).saturating_add(1)).read_to_end(&mut bytes);
    match read {
        Ok(length) if length > limit => Err(ApiError::too_large(limit)),
        Ok(_) => Ok(bytes.into()),
        Err(error) => Err(ApiError::invalid(format!(
            "the request has `Content-Encoding: {encoding}` and cannot be unpacked ({error}): send it whole, or without the header"
        ))),
    }
}

/// The JSON with U+FFFD in place of each half of a character; nothing if there are none. Programs whose texts are UTF-16 cut them anywhere and write
/// what is left as `\ud83d`, which is no text, and no reason to refuse a conversation for ever.
fn halves_replaced(json: &[u8]) -> Option<Vec<u8>> {
    let mut halves = Vec::new();
    let mut at = 0;
    while let Some(found) = json.get(at..).and_then(|rest| rest.iter().position(|&byte| byte == b'\\')) {
        at += found;
        match unit(json, at) {
            Some(0xd800..=0xdbff) if matches!(unit(json, at + 6), Some(0xdc00..=0xdfff)) => at += 12,
            Some(0xd800..=0xdfff) => {
                halves.push(at);
                at += 6;
            }
            Some(_) => at += 6,
            // Another escape, such as that of a backslash.
            None => at += 2,
        }
    }
    if halves.is_empty() {
        return None;
    }
    let mut replaced = json.to_vec();
    for at in halves {
        if let Some(half) = replaced.get_mut(at..at + REPLACEMENT.len()) {
            half.copy_from_slice(REPLACEMENT);
        }
    }
    Some(replaced)
}

/// The number of the escape `\uXXXX` at a place, if there is one.
fn unit(json: &[u8], at: usize) -> Option<u16> {
    let digits = json.get(at..at + 6)?.strip_prefix(b"\\u")?;
    digits.iter().try_fold(0_u16, |unit, &digit| Some(unit << 4 | char::from(digit).to_digit(16)? as u16))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::{GzEncoder, ZlibEncoder};

    use super::*;

    fn status(outcome: Result<Bytes, ApiError>) -> u16 {
        outcome.map_or_else(|error| error.status().as_u16(), |_| 200)
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut packed = GzEncoder::new(Vec::new(), Compression::best());
        packed.write_all(text).unwrap();
        packed.finish().unwrap()
    }

    #[test]
    fn packed_bodies_are_unpacked_up_to_the_limit() {
        let text = br#"{"model": "m"}"#;
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::fast());
        zlib.write_all(text).unwrap();
        let zlib = zlib.finish().unwrap();
        // A gzip file may have several members.
        let twice = [gzip(&text[..5]), gzip(&text[5..])].concat();
        for (packed, encoding) in [
            (text.to_vec(), None),
            (text.to_vec(), Some("identity")),
            (gzip(text), Some("gzip")),
            (gzip(text), Some(" GZIP ")),
            (twice, Some("x-gzip")),
            (zlib, Some("deflate")),
        ] {
            assert_eq!(unpack(packed.into(), encoding, 100).as_deref(), Ok(text.as_slice()), "{encoding:?}");
        }
        let bomb = gzip(&vec![b' '; 1 << 20]);
        assert!(bomb.len() < 4096);
        assert_eq!(status(unpack(bomb.clone().into(), Some("gzip"), 4096)), 413);
        assert_eq!(status(unpack(bomb.into(), Some("gzip"), 1 << 20)), 200);
        let cut = gzip(text)[..20].to_vec();
        assert_eq!(status(unpack(cut.into(), Some("gzip"), 100)), 400);
        assert_eq!(status(unpack(text.to_vec().into(), Some("gzip"), 100)), 400);
        for encoding in ["br", "zstd", "gzip, gzip"] {
            assert_eq!(status(unpack(text.to_vec().into(), Some(encoding), 100)), 415, "{encoding}");
        }
    }

    #[test]
    fn halves_of_characters_are_replaced_and_whole_ones_kept() {
        let read = |json: &str| {
            let body = unpack(Bytes::from(json.to_owned()), None, 1000).ok()?;
            serde_json::from_slice::<String>(&body).ok()
        };
        for (json, text) in [
            (r#""a\ud83d\ude00b""#, "a😀b"),
            (r#""a\uD83Db""#, "a\u{fffd}b"),
            (r#""a\ud83d""#, "a\u{fffd}"),
            (r#""\ude00\ud83d\ud83d\ude00\n""#, "\u{fffd}\u{fffd}😀\n"),
            (r#""\\ud83d \u00e9""#, "\\ud83d é"),
            (r#""\\\ud83d""#, "\\\u{fffd}"),
            ("\u{feff}\"a\"", "a"),
        ] {
            assert_eq!(read(json).as_deref(), Some(text), "{json}");
        }
        for broken in [r#""\ud8"#, r#""\u"#, r#""\"#, r#""\uzzzz""#] {
            assert_eq!(read(broken), None, "{broken}");
        }
    }
}
