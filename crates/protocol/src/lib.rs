//! What travels between the members of a swarm: identifiers, tensors, messages, frames and server records.
//!
//! No libp2p, no burn and no async runtime here: a [`FrameReader`] works on anything that is [`futures::io::AsyncRead`].
//! `docs/protocol.md` specifies the same bytes in prose.

mod adaptation;
mod codec;
mod content;
mod frame;
mod ids;
mod layout;
mod message;
mod pass;
mod printable;
mod refusal;
mod relay;
mod server_info;
mod session;
mod tensor;
mod version;
mod weights;

pub use adaptation::{
    BlockTable, BlockWidths, Module, Modules, TableKind, UnknownModule, WeightChange, WeightChangeError,
};
pub use codec::{DecodeError, decode, encode};
pub use content::{
    CONTENT_PROTOCOL_NAME, ContentAnswer, ContentError, ContentHash, ContentRequest, MAX_CONTENT_RANGE,
    read_content_message, write_content_message,
};
pub use frame::{
    FRAME_VERSION, Frame, FrameError, FrameKind, FrameLimits, FrameReader, FrameWriter, MAGIC, PREAMBLE_LEN,
};
pub use ids::{BlockSpanError, Fingerprint, ModelId, ModelIdError, SessionId, Span, StashId, TablesId};
pub use layout::{Injection, LayoutError, PassLayout};
pub use message::{Limits, Request, Response, Welcome};
pub use pass::{
    BackwardReply, BackwardRequest, BlockPasses, ForwardReply, ForwardRequest, Handover, StashLevel, TableSource,
};
pub use printable::{MAX_PUBLIC_NAME, is_printable, printable};
pub use refusal::{Refusal, Remedy};
pub use relay::{NextServer, RelayToken, RowSource, RowTarget};
pub use server_info::{InUse, MAX_NEXT_PINGS, MAX_RECORD_LEN, RecordError, ServerInfo, ServerState};
pub use session::{SessionOpen, StepError, StepRequest};
pub use tensor::{Tensor, TensorError, TensorMeta, WireDtype};
pub use version::WireVersion;
pub use weights::{BlockHashes, MAX_HASHED_BLOCKS, WeightsHash, WeightsHashError};
