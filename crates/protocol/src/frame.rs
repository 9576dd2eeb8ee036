//! Frames: a fixed preamble, a header (one encoded message) and the raw bytes of its tensors.
//!
//! ```text
//! offset  size  field (little-endian)
//!      0     4  magic "PTLS"
//!      4     2  version of the frames, 2
//!      6     1  kind: 0 request, 1 response
//!      7     1  reserved, 0
//!      8     8  id of the request
//!     16     4  header length in bytes
//!     20     8  body length in bytes
//!     28     -  header: (tensor descriptions, message), then the tensors' bytes back to back
//! ```

use futures::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::{DecodeError, MAX_HEADER_LEN, decode, encode};
use crate::tensor::{Tensor, TensorError, TensorMeta};

/// First bytes of every frame.
pub const MAGIC: [u8; 4] = *b"PTLS";
/// Version in every frame. What is in the frames has versions of its own, [`crate::WireVersion`].
pub const FRAME_VERSION: u16 = 2;
/// Bytes before the header.
pub const PREAMBLE_LEN: usize = 28;

/// Memory is taken as bytes arrive, as much again as is there, within these bounds: a claimed length alone costs next to nothing.
const FIRST_READ_STEP: usize = 16 << 10;
const READ_STEP: usize = 1 << 20;
/// Tensors of one message; the largest message has five.
const MAX_TENSORS: usize = 8;

/// Direction of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// From client to server.
    Request,
    /// From server to client.
    Response,
}

/// One message with its tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame<M> {
    /// Pairs a response with its request.
    pub id: u64,
    /// The message.
    pub message: M,
    /// Tensors in the order that the message's documentation gives.
    pub tensors: Vec<Tensor>,
}

/// What a reader accepts.
#[derive(Debug, Clone, Copy)]
pub struct FrameLimits {
    /// Bytes of all tensors of a frame together.
    pub max_body: u64,
}

impl Default for FrameLimits {
    /// 256 MiB: 8,192 rows of 8,192 f32 values.
    fn default() -> Self {
        Self { max_body: 256 << 20 }
    }
}

/// Why a frame could not be read or written. After any of these the stream is of no further use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The stream failed or ended in the middle of a frame.
    #[error("the stream failed")]
    Io(#[from] std::io::Error),
    /// The stream ended between two frames.
    #[error("the peer closed the stream")]
    Closed,
    /// Not this protocol.
    #[error("the frame does not start with the magic bytes")]
    Magic,
    /// A version that is not spoken here.
    #[error(
        "the peer's frames have version {0}, those of this node {FRAME_VERSION}: upgrade whichever program is older"
    )]
    Version(u16),
    /// A request where a response belongs, or the reverse.
    #[error("a frame of the wrong kind ({0}) arrived")]
    Kind(u8),
    /// A header beyond the limit.
    #[error("the frame's header of {0} bytes exceeds {MAX_HEADER_LEN}")]
    HeaderTooLong(u32),
    /// A body beyond the limit.
    #[error("the frame's body of {got} bytes exceeds {limit}")]
    BodyTooLong {
        /// Claimed length.
        got: u64,
        /// Accepted length.
        limit: u64,
    },
    /// The header's bytes are not a message.
    #[error("the frame's header is malformed")]
    Header(#[from] DecodeError),
    /// The tensors described do not add up to the body.
    #[error("the frame's tensors do not add up to its body")]
    BodyMismatch,
    /// A tensor does not fit its description.
    #[error("the frame has a malformed tensor")]
    Tensor(#[from] TensorError),
}

/// Reads frames of one kind. Counts the bytes it read.
#[derive(Debug)]
pub struct FrameReader<R> {
    stream: R,
    kind: FrameKind,
    limits: FrameLimits,
    bytes: u64,
    pending: Option<Preamble>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// A reader that accepts frames of `kind` within `limits`.
    pub fn new(stream: R, kind: FrameKind, limits: FrameLimits) -> Self {
        Self { stream, kind, limits, bytes: 0, pending: None }
    }

    /// Bytes read so far.
    pub fn bytes_read(&self) -> u64 {
        self.bytes
    }

    /// Waits for the next frame and tells how many bytes of tensors it has, so that memory can be reserved before
    /// [`Self::read`] takes it. Not cancel-safe.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn next_body_len(&mut self) -> Result<u64, FrameError> {
        let preamble = match self.pending.take() {
            Some(preamble) => preamble,
            None => self.preamble().await?,
        };
        Ok(self.pending.insert(preamble).body_len)
    }

    /// The id of the frame whose body's length was told last.
    pub fn next_id(&self) -> Option<u64> {
        self.pending.as_ref().map(|preamble| preamble.id)
    }

    /// Bytes of the header of the frame whose body's length was told last.
    pub fn header_len(&self) -> u64 {
        self.pending.as_ref().map_or(0, |preamble| preamble.header_len.into())
    }

    /// Reads the next frame. Not cancel-safe: a dropped future leaves the stream inside of a frame.
    ///
    /// # Errors
    /// [`FrameError::Closed`] at an orderly end, any other [`FrameError`] for what is not a frame.
    pub async fn read<M: DeserializeOwned>(&mut self) -> Result<Frame<M>, FrameError> {
        self.next_body_len().await?;
        let preamble = self.pending.take().ok_or(FrameError::Closed)?;
        let header = self.take(preamble.header_len as usize).await?;
        let (metas, message): (Vec<TensorMeta>, M) = decode(&header)?;
        let lengths: Option<Vec<usize>> = metas.iter().map(TensorMeta::byte_len).collect();
        let lengths = lengths.filter(|_| metas.len() <= MAX_TENSORS).ok_or(FrameError::BodyMismatch)?;
        let total = lengths.iter().try_fold(0u64, |sum, &n| sum.checked_add(n as u64));
        if total != Some(preamble.body_len) {
            return Err(FrameError::BodyMismatch);
        }
        let mut tensors = Vec::with_capacity(metas.len());
        for (meta, length) in metas.into_iter().zip(lengths) {
            tensors.push(Tensor::new(meta, self.take(length).await?)?);
        }
        Ok(Frame { id: preamble.id, message, tensors })
    }

    async fn preamble(&mut self) -> Result<Preamble, FrameError> {
        let mut bytes = [0; PREAMBLE_LEN];
        let first = self.stream.read(&mut bytes).await?;
        if first == 0 {
            return Err(FrameError::Closed);
        }
        self.stream.read_exact(&mut bytes[first..]).await?;
        self.bytes += PREAMBLE_LEN as u64;
        let preamble = Preamble::parse(&bytes, self.kind)?;
        if preamble.body_len > self.limits.max_body {
            return Err(FrameError::BodyTooLong { got: preamble.body_len, limit: self.limits.max_body });
        }
        Ok(preamble)
    }

    async fn take(&mut self, length: usize) -> Result<Vec<u8>, FrameError> {
        let mut bytes = Vec::new();
        while bytes.len() < length {
            let filled = bytes.len();
            let step = filled.clamp(FIRST_READ_STEP, READ_STEP);
            bytes.resize(length.min(filled + step), 0);
            self.stream.read_exact(&mut bytes[filled..]).await?;
        }
        self.bytes += length as u64;
        Ok(bytes)
    }
}

/// Writes frames of one kind. Counts the bytes it wrote.
#[derive(Debug)]
pub struct FrameWriter<W> {
    stream: W,
    kind: FrameKind,
    bytes: u64,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// A writer of frames of `kind`.
    pub fn new(stream: W, kind: FrameKind) -> Self {
        Self { stream, kind, bytes: 0 }
    }

    /// Bytes written so far.
    pub fn bytes_written(&self) -> u64 {
        self.bytes
    }

    /// Writes one frame and flushes it. Not cancel-safe.
    ///
    /// # Errors
    /// [`FrameError::Io`] if the stream fails.
    pub async fn write<M: Serialize>(&mut self, id: u64, message: &M, tensors: &[Tensor]) -> Result<(), FrameError> {
        let metas: Vec<&TensorMeta> = tensors.iter().map(Tensor::meta).collect();
        let header = encode(&(metas, message));
        let body_len = tensors.iter().map(|t| t.bytes().len() as u64).sum();
        let preamble = Preamble { kind: self.kind, id, header_len: header.len() as u32, body_len };
        let mut head = preamble.bytes().to_vec();
        head.extend_from_slice(&header);
        self.stream.write_all(&head).await?;
        for tensor in tensors {
            self.stream.write_all(tensor.bytes()).await?;
        }
        self.stream.flush().await?;
        self.bytes += head.len() as u64 + body_len;
        Ok(())
    }

    /// Ends the stream in this direction.
    ///
    /// # Errors
    /// [`FrameError::Io`] if the stream fails.
    pub async fn close(&mut self) -> Result<(), FrameError> {
        Ok(self.stream.close().await?)
    }
}

#[derive(Debug)]
struct Preamble {
    kind: FrameKind,
    id: u64,
    header_len: u32,
    body_len: u64,
}

impl Preamble {
    fn bytes(&self) -> [u8; PREAMBLE_LEN] {
        let mut bytes = [0; PREAMBLE_LEN];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&FRAME_VERSION.to_le_bytes());
        bytes[6] = self.kind as u8;
        bytes[8..16].copy_from_slice(&self.id.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.header_len.to_le_bytes());
        bytes[20..28].copy_from_slice(&self.body_len.to_le_bytes());
        bytes
    }

    fn parse(bytes: &[u8; PREAMBLE_LEN], expected: FrameKind) -> Result<Self, FrameError> {
        let [m0, m1, m2, m3, v0, v1, kind, _, rest @ ..] = *bytes;
        if [m0, m1, m2, m3] != MAGIC {
            return Err(FrameError::Magic);
        }
        let version = u16::from_le_bytes([v0, v1]);
        if version != FRAME_VERSION {
            return Err(FrameError::Version(version));
        }
        if kind != expected as u8 {
            return Err(FrameError::Kind(kind));
        }
        let [i0, i1, i2, i3, i4, i5, i6, i7, h0, h1, h2, h3, body @ ..] = rest;
        let header_len = u32::from_le_bytes([h0, h1, h2, h3]);
        if header_len as usize > MAX_HEADER_LEN {
            return Err(FrameError::HeaderTooLong(header_len));
        }
        let id = u64::from_le_bytes([i0, i1, i2, i3, i4, i5, i6, i7]);
        Ok(Self { kind: expected, id, header_len, body_len: u64::from_le_bytes(body) })
    }
}

#[cfg(test)]
mod tests;
