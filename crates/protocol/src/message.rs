//! Requests and responses on a stream between a client and a server, or between two servers of a chain.
//!
//! A stream carries any number of requests; each has an id (in the frame) that its response repeats. Responses may come
//! in another order than the requests. The first request of a stream is [`Request::Hello`].

use serde::{Deserialize, Serialize};

use crate::ids::{ModelId, SessionId, StashId};
use crate::pass::{BackwardReply, BackwardRequest, ForwardReply, ForwardRequest};
use crate::refusal::Refusal;
use crate::relay::RelayToken;
use crate::server_info::{RecordError, ServerInfo};
use crate::session::StepRequest;

/// What a client asks. The tensors named in each variant follow the header, in this order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Opens the stream. No tensors. Answered by [`Response::Welcome`].
    Hello {
        /// The model the client wants to use.
        model: ModelId,
    },
    /// Runs a span forward. Tensors: text `[tokens, hidden]`; prefix `[prefix_len, hidden]` if the layout carries one;
    /// tables `[span, block_values]` ([`crate::PassLayout::block_tables`]) if it has them and they are not [`crate::TableSource::Kept`].
    Forward(ForwardRequest),
    /// Runs a span backward to the gradients of its inputs (weights are frozen and have none).
    /// Tensors: without a stash, first those of the forward; then the output gradients: text `[output_rows, hidden]`
    /// and, if the layout returns a prefix, prefix `[prefix_len, hidden]`.
    Backward(BackwardRequest),
    /// Drops a stash that will not be used, without an answer. No tensors.
    Forget {
        /// Which.
        stash: StashId,
    },
    /// Hands over the rows that another server's request waits for ([`crate::RowSource::Relay`]). Tensors: text, and the prefix
    /// if that request's layout has one at this place. Answered by [`Response::Relayed`] once the request has taken them.
    Relay {
        /// Which request they are for.
        token: RelayToken,
    },
    /// Gives up a request of this stream, without an answer to either. No tensors.
    Cancel {
        /// The id that the request's frame had.
        request: u64,
    },
    /// Runs new rows of an inference session forward. Tensors and answer are those of [`Request::Forward`].
    Step(Box<StepRequest>),
    /// Ends a session and frees its memory, without an answer. No tensors.
    EndSession {
        /// Which.
        session: SessionId,
    },
    /// Since [`crate::WireVersion::KEYS_VALUES`]. As [`Request::Forward`], which must not ask for a stash, with a prefix whose keys and values are wanted: behind the tensors of its
    /// answer there is one with those of each block as they are attended to, `[span, prefix_len * 2 * key]`.
    KeysValues(ForwardRequest),
}

/// What a server answers. The tensors named in each variant follow the header, in this order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Response {
    /// The stream is open. No tensors.
    Welcome(Box<Welcome>),
    /// Tensors: text `[output_rows, hidden]`; prefix `[prefix_len, hidden]` if the layout returns one. None if they were
    /// passed on. Behind them the prefix's keys and values, if asked for.
    Forward(ForwardReply),
    /// Tensors: text gradient `[tokens, hidden]` if asked for; prefix gradient `[prefix_len, hidden]` if the layout
    /// carries one; gradients of the tables `[span, block_values]` if it has any. Those of prefix and tables are
    /// summed over the examples. Of these only the tables' if the others were passed on.
    Backward(BackwardReply),
    /// Nothing was done. No tensors.
    Refused(Refusal),
    /// The rows of a [`Request::Relay`] have reached the request that waited for them. No tensors.
    Relayed,
}

/// See [`Response::Welcome`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    /// What the server hosts, as of now, in the form it is announced in ([`ServerInfo::to_json`]).
    pub info: String,
    /// What it accepts.
    pub limits: Limits,
}

/// Bounds on one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Rows of one pass, prefix included.
    pub max_rows: u32,
    /// Bytes of one frame's tensors.
    pub max_body: u64,
    /// Requests of one stream that may be unanswered at a time.
    pub max_in_flight: u32,
    /// Bytes, in f32, of the tables that one request brings along.
    pub max_adapter: u64,
}

impl Welcome {
    /// The server's record.
    ///
    /// # Errors
    /// If it is malformed or too long.
    pub fn server_info(&self) -> Result<ServerInfo, RecordError> {
        ServerInfo::from_json(self.info.as_bytes())
    }
}
