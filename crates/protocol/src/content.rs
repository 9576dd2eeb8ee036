//! Contents of the hub that a server passes on to others: what is asked for, and what is answered before the bytes.
//!
//! A message is its length (`u32`, little-endian, at most 64) and its encoding. Behind [`ContentAnswer::Bytes`] as many bytes follow as it says, with nothing
//! around them. A stream has one request after the other; the asking end sends the next one when all of an answer has come.

use std::fmt;
use std::io::{Error, ErrorKind};
use std::ops::Range;

use futures::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::codec::{DecodeError, decode, encode};

/// The libp2p protocol of these streams.
pub const CONTENT_PROTOCOL_NAME: &str = "/petals-rs/weights/1";
/// Most bytes that one request may ask for.
pub const MAX_CONTENT_RANGE: u64 = 64 << 20;
/// Longest encoded message.
const MAX_MESSAGE: usize = 64;

/// The SHA-256 of a content, by which alone it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ContentHash(pub [u8; 32]);

impl ContentHash {
    /// Reads 64 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let mut hash = [0; 32];
        let digits = text.as_bytes();
        if digits.len() != 2 * hash.len() {
            return None;
        }
        for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |at: usize| char::from(*pair.get(at)?).to_digit(16);
            *byte = u8::try_from(digit(0)? << 4 | digit(1)?).ok()?;
        }
        Some(Self(hash))
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A part of a content is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentRequest {
    /// Of which content.
    pub hash: ContentHash,
    /// Where the part begins.
    pub offset: u64,
    /// How long it may be, at most [`MAX_CONTENT_RANGE`].
    pub length: u64,
}

impl ContentRequest {
    /// Which bytes of a content of `size` bytes are sent: those asked for that there are. `None` if that is none, or more than may be asked for.
    pub fn range(&self, size: u64) -> Option<Range<u64>> {
        let fits = (1..=MAX_CONTENT_RANGE).contains(&self.length) && self.offset < size;
        fits.then(|| self.offset..self.offset.saturating_add(self.length).min(size))
    }
}

/// What is answered to a [`ContentRequest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContentAnswer {
    /// The bytes follow.
    Bytes {
        /// Bytes of the whole content.
        size: u64,
        /// Bytes that follow: those asked for, up to the content's end.
        length: u64,
    },
    /// The content is not here, or not for others.
    NotShared,
    /// Others are being served.
    Busy,
    /// The content is here and is being held against its hash: worth asking for again soon.
    Later,
    /// The part begins behind the content's end, is empty or too long.
    BadRange {
        /// Bytes of the whole content.
        size: u64,
    },
}

/// Why a message could not be read. The stream is of no further use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContentError {
    /// The stream failed, or ended within a message.
    #[error("the stream failed: {0}")]
    Io(#[from] Error),
    /// The stream ended between two messages.
    #[error("the peer closed the stream")]
    Closed,
    /// Longer than any message.
    #[error("a message of {0} bytes, and none has more than {MAX_MESSAGE}")]
    TooLong(u32),
    /// Not the message that belongs here.
    #[error("a message that cannot be read: {0}")]
    Malformed(#[from] DecodeError),
}

/// Reads a message.
///
/// # Errors
/// [`ContentError`].
pub async fn read_content_message<M: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<M, ContentError> {
    let mut length = [0; 4];
    let (first, rest) = length.split_at_mut(1);
    loop {
        match stream.read(first).await {
            Ok(0) => return Err(ContentError::Closed),
            Ok(_) => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    stream.read_exact(rest).await?;
    let claimed = u32::from_le_bytes(length);
    let mut bytes = [0; MAX_MESSAGE];
    let message = usize::try_from(claimed).ok().and_then(|length| bytes.get_mut(..length));
    let message = message.ok_or(ContentError::TooLong(claimed))?;
    stream.read_exact(message).await?;
    Ok(decode(message)?)
}

/// Writes a message.
///
/// # Errors
/// If the stream fails.
pub async fn write_content_message<M: Serialize>(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &M,
) -> Result<(), Error> {
    let message = encode(message);
    let length = u32::try_from(message.len()).map_err(Error::other)?;
    stream.write_all(&[&length.to_le_bytes()[..], &message].concat()).await?;
    stream.flush().await
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use futures::io::Cursor;

    use super::*;

    fn written<M: Serialize>(message: &M) -> Vec<u8> {
        let mut bytes = Vec::new();
        block_on(write_content_message(&mut bytes, message)).unwrap();
        bytes
    }

    fn read<M: DeserializeOwned>(bytes: &[u8]) -> Result<M, ContentError> {
        block_on(read_content_message(&mut Cursor::new(bytes)))
    }

    #[test]
    fn messages_are_read_as_they_were_written() {
        let request = ContentRequest { hash: ContentHash([7; 32]), offset: 5, length: 9 };
        let bytes = written(&request);
        // As docs/protocol.md has it: a length of 48, the hash, two numbers.
        assert_eq!(bytes, [&[48, 0, 0, 0][..], &[7; 32], &[5, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]].concat());
        assert_eq!(read::<ContentRequest>(&bytes).unwrap(), request);
        for answer in [
            ContentAnswer::Bytes { size: 9, length: 4 },
            ContentAnswer::NotShared,
            ContentAnswer::Busy,
            ContentAnswer::Later,
            ContentAnswer::BadRange { size: 3 },
        ] {
            assert_eq!(read::<ContentAnswer>(&written(&answer)).unwrap(), answer);
        }
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let request = written(&ContentRequest { hash: ContentHash([7; 32]), offset: 5, length: 9 });
        assert!(matches!(read::<ContentRequest>(&[]), Err(ContentError::Closed)));
        assert!(matches!(read::<ContentRequest>(&request[..2]), Err(ContentError::Io(_))));
        assert!(matches!(read::<ContentRequest>(&request[..50]), Err(ContentError::Io(_))));
        assert!(matches!(read::<ContentRequest>(&[255; 80]), Err(ContentError::TooLong(u32::MAX))));
        assert!(matches!(read::<ContentRequest>(&[65, 0, 0, 0, 1]), Err(ContentError::TooLong(65))));
        assert!(matches!(read::<ContentRequest>(&[3, 0, 0, 0, 1, 2, 3]), Err(ContentError::Malformed(_))));
        assert!(matches!(read::<ContentAnswer>(&[4, 0, 0, 0, 9, 0, 0, 0]), Err(ContentError::Malformed(_))));
        let longer = [&[49, 0, 0, 0][..], &request[4..], &[0]].concat();
        assert!(matches!(read::<ContentRequest>(&longer), Err(ContentError::Malformed(_))));
    }

    #[test]
    fn a_range_stays_within_its_content() {
        let range = |offset, length| ContentRequest { hash: ContentHash([0; 32]), offset, length }.range(100);
        assert_eq!((range(0, 10), range(95, 10), range(99, 1)), (Some(0..10), Some(95..100), Some(99..100)));
        assert_eq!((range(0, MAX_CONTENT_RANGE), range(0, MAX_CONTENT_RANGE + 1)), (Some(0..100), None));
        assert_eq!((range(100, 1), range(u64::MAX, 1), range(0, 0), range(5, u64::MAX)), (None, None, None, None));
        assert_eq!(range(99, MAX_CONTENT_RANGE), Some(99..100));
    }

    #[test]
    fn hashes_are_hexadecimal() {
        let text = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        assert_eq!(ContentHash::parse(text).unwrap().to_string(), text);
        assert_eq!(ContentHash::parse(&text.to_uppercase()), ContentHash::parse(text));
        for wrong in ["", &text[1..], &text.replace('f', "g"), &format!("{text}00"), &"\u{e4}".repeat(32)] {
            assert_eq!(ContentHash::parse(wrong), None, "{wrong}");
        }
    }
}
