//! Headers to bytes and back. The only file that knows bincode.
//!
//! bincode is complete but no longer maintained (RUSTSEC-2025-0141); its format is simple and specified, so replacing it
//! is a change of this file.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Largest header. Row lists of a large batch fit; a hostile length does not.
pub(crate) const MAX_HEADER_LEN: usize = 1 << 20;

const CONFIG: Configuration<LittleEndian, Fixint, Limit<MAX_HEADER_LEN>> =
    bincode::config::standard().with_little_endian().with_fixed_int_encoding().with_limit::<MAX_HEADER_LEN>();

/// Why bytes are not the message they should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The bytes do not decode.
    #[error("the message header cannot be decoded")]
    Malformed(#[source] bincode::error::DecodeError),
    /// The message ends before its bytes do.
    #[error("{0} bytes follow the message header")]
    TrailingBytes(usize),
}

/// Encodes a header.
///
/// # Panics
/// If it exceeds the header limit, which requests built by this project cannot.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    bincode::serde::encode_to_vec(message, CONFIG).expect("a message header encodes within its limit")
}

/// Decodes a header; every byte must be used.
///
/// # Errors
/// [`DecodeError`] for anything that is not exactly one encoded `T` within the limit.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let (message, used) = bincode::serde::decode_from_slice(bytes, CONFIG).map_err(DecodeError::Malformed)?;
    match bytes.len() - used {
        0 => Ok(message),
        rest => Err(DecodeError::TrailingBytes(rest)),
    }
}
