//! Requests and responses on a stream between a client and a server, or between two servers of a chain.
//!
//! A stream carries any number of requests; each has an id (in the frame) that its response repeats. Responses may come
//! in another order than the requests. The first request of a stream is [`Request::Hello`].

use serde::{Deserialize, Serialize};

use crate::ids::{ModelId, PromptsId, SessionId, StashId};
use crate::layout::PassLayout;
use crate::refusal::Refusal;
use crate::relay::{RelayToken, RowSource, RowTarget};
use crate::server_info::ServerInfo;
use crate::session::StepRequest;
use crate::tensor::WireDtype;

/// libp2p protocol name of block streams. Changes with every incompatible change of the frames or messages.
pub const PROTOCOL_NAME: &str = "/petals-rs/blocks/2";

/// What a client asks. The tensors named in each variant follow the header, in this order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Opens the stream. No tensors. Answered by [`Response::Welcome`].
    Hello {
        /// The model the client wants to use.
        model: ModelId,
    },
    /// Runs a span forward. Tensors: text `[tokens, hidden]`; prefix `[prefix_len, hidden]` if the layout carries one;
    /// prompts `[span, prefix_len, hidden]` if it has them and they are not [`PromptSource::Kept`].
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
    /// Hands over the rows that another server's request waits for ([`RowSource::Relay`]). Tensors: text, and the prefix
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
}

/// See [`Request::Forward`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ForwardRequest {
    /// Shape of the micro-batch.
    pub layout: PassLayout,
    /// Where the prompts come from; [`PromptSource::Inline`] if the layout has none.
    pub prompts: PromptSource,
    /// Keep what the backward needs under this name, if memory allows.
    pub stash: Option<StashId>,
    /// Where text and prefix come from.
    pub input: RowSource,
    /// Where the output goes.
    pub output: RowTarget,
    /// Dtype of the tensors in the response.
    pub reply_dtype: WireDtype,
    /// The client gives up after this many milliseconds; work not started by then may be dropped.
    pub deadline_ms: u32,
}

/// See [`Request::Backward`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackwardRequest {
    /// Shape of the micro-batch, as in its forward.
    pub layout: PassLayout,
    /// As in [`ForwardRequest`]; [`PromptSource::Inline`] if there is a stash, which has them.
    pub prompts: PromptSource,
    /// The stash of the forward; `None` if the inputs are sent again.
    pub stash: Option<StashId>,
    /// Whether the gradient of the text input is wanted. Nobody needs it below block 0.
    pub text_grad: bool,
    /// Where the output gradients come from.
    pub grads: RowSource,
    /// Where the gradients of text and prefix go; those of the prompts always come with the reply.
    pub output: RowTarget,
    /// Dtype of the tensors in the response.
    pub reply_dtype: WireDtype,
    /// As in [`ForwardRequest`].
    pub deadline_ms: u32,
}

/// Where the prompts of a pass come from. The micro-batches of a step share them, so they need to travel once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum PromptSource {
    /// With the request, for it alone.
    #[default]
    Inline,
    /// With the request, and kept under this name for later requests of the stream if memory allows, in the place of what
    /// was kept before.
    Keep(PromptsId),
    /// Those that were kept for the same span under this name.
    Kept(PromptsId),
}

/// How much a server keeps of a forward for its backward. Every level but the last costs more computation or traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StashLevel {
    /// Nothing: the backward sends the inputs again and the forward is repeated.
    #[default]
    None,
    /// What enters each block: the backward repeats the forward, block by block.
    Inputs,
    /// Everything that the backward needs.
    Full,
}

/// Blocks that a server ran for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BlockPasses {
    /// Forward, repetitions included.
    pub forward: u32,
    /// Backward.
    pub backward: u32,
}

/// What a server answers. The tensors named in each variant follow the header, in this order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Response {
    /// The stream is open. No tensors.
    Welcome(Box<Welcome>),
    /// Tensors: text `[output_rows, hidden]`; prefix `[prefix_len, hidden]` if the layout returns one. None if they were
    /// passed on.
    Forward(ForwardReply),
    /// Tensors: text gradient `[tokens, hidden]` if asked for; prefix gradient `[prefix_len, hidden]` if the layout
    /// carries one; prompt gradients `[span, prefix_len, hidden]` if it has prompts. Prefix and prompt gradients are
    /// summed over the examples. Of these only the prompts' if the others were passed on.
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
}

/// See [`Response::Forward`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ForwardReply {
    /// What was kept of it for the backward; it may be reduced or dropped at any time.
    pub stash: StashLevel,
    /// What was computed.
    pub passes: BlockPasses,
    /// Microseconds between the request's arrival and the start of the computation.
    pub queue_us: u32,
    /// Microseconds of computation.
    pub compute_us: u32,
    /// What it took to pass the output on; zeros if it comes with this reply.
    pub handover: Handover,
}

/// See [`Response::Backward`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BackwardReply {
    /// What was computed.
    pub passes: BlockPasses,
    /// As in [`ForwardReply`].
    pub queue_us: u32,
    /// As in [`ForwardReply`].
    pub compute_us: u32,
    /// As in [`ForwardReply`], of the gradients.
    pub handover: Handover,
}

/// Rows passed on to the next server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Handover {
    /// Microseconds from having the rows to the next server's word that it has them.
    pub us: u32,
    /// Bytes of the frame that carried them.
    pub bytes: u64,
}

impl Welcome {
    /// The server's record.
    ///
    /// # Errors
    /// If it is malformed or too long.
    pub fn server_info(&self) -> Result<ServerInfo, crate::RecordError> {
        ServerInfo::from_json(self.info.as_bytes())
    }
}
