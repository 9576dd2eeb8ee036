//! A pass of a micro-batch over a span: what is asked, and what is said of it when it is done.

use serde::{Deserialize, Serialize};

use crate::ids::{StashId, TablesId};
use crate::layout::PassLayout;
use crate::relay::{RowSource, RowTarget};
use crate::tensor::WireDtype;

/// See [`crate::Request::Forward`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ForwardRequest {
    /// Shape of the micro-batch.
    pub layout: PassLayout,
    /// Where the blocks' tables come from; [`TableSource::Inline`] if the layout has none.
    pub tables: TableSource,
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

/// See [`crate::Request::Backward`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackwardRequest {
    /// Shape of the micro-batch, as in its forward.
    pub layout: PassLayout,
    /// As in [`ForwardRequest`]; [`TableSource::Inline`] if there is a stash, which has them.
    pub tables: TableSource,
    /// The stash of the forward; `None` if the inputs are sent again.
    pub stash: Option<StashId>,
    /// Whether the gradient of the text input is wanted. Nobody needs it below block 0.
    pub text_grad: bool,
    /// Where the output gradients come from.
    pub grads: RowSource,
    /// Where the gradients of text and prefix go; those of the tables always come with the reply.
    pub output: RowTarget,
    /// Dtype of the tensors in the response.
    pub reply_dtype: WireDtype,
    /// As in [`ForwardRequest`].
    pub deadline_ms: u32,
}

/// Where the tables of a pass come from. The micro-batches of a step share them, so they need to travel once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum TableSource {
    /// With the request, for it alone.
    #[default]
    Inline,
    /// With the request, and kept under this name for later requests of the stream if memory allows, in the place of what
    /// was kept before.
    Keep(TablesId),
    /// Those that were kept for the same span under this name.
    Kept(TablesId),
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

/// See [`crate::Response::Forward`].
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

/// See [`crate::Response::Backward`].
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
