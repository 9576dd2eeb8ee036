//! Prompts that travel once for the requests of a stream that share them.

use std::sync::Arc;

use petals_protocol::{PromptSource, PromptsId, Span, Tensor, WireDtype};

use crate::adapter::tables::PromptTables;

/// The prompts of a request. Whether they travel with it is decided when it is written, in the order of the stream.
#[derive(Debug, Clone)]
pub(crate) struct RequestPrompts {
    pub(crate) tables: Arc<PromptTables>,
    pub(crate) span: Span,
    /// Which of the request's tensors they are.
    pub(crate) place: usize,
}

impl RequestPrompts {
    /// The tensor, `[span, prefix_len, hidden]`. Prompts are few, shared by all examples and trained: always at full
    /// precision.
    pub(super) fn tensor(&self) -> Tensor {
        let shape = self.tables.shape();
        let values = self.tables.prompts_for(self.span).unwrap_or_default();
        Tensor::from_f32(WireDtype::F32, &[self.span.len(), shape.prefix_len, shape.hidden], &values)
    }

    pub(super) fn id(&self) -> PromptsId {
        self.tables.version()
    }
}

/// What the server of a stream was asked to keep.
#[derive(Debug, Default)]
pub(super) struct SentPrompts {
    id: Option<PromptsId>,
    spans: Vec<Span>,
    /// The server lost these prompts or never kept them; until the next ones come, every request brings its own.
    gone: bool,
}

impl SentPrompts {
    /// Where the next request on the stream gets its prompts from. If not [`PromptSource::Kept`], they are written with it.
    pub(super) fn source(&mut self, id: PromptsId, span: Span) -> PromptSource {
        if self.id != Some(id) {
            *self = Self { id: Some(id), ..Self::default() };
        }
        if self.gone {
            return PromptSource::Inline;
        }
        if self.spans.contains(&span) {
            return PromptSource::Kept(id);
        }
        self.spans.push(span);
        PromptSource::Keep(id)
    }

    /// The server does not have the prompts that it was named.
    pub(super) fn gone(&mut self, id: PromptsId) {
        self.gone |= self.id == Some(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_travel_once_for_each_span_and_name() {
        let mut sent = SentPrompts::default();
        let (one, other) = (Span::new(0, 2).unwrap(), Span::new(2, 4).unwrap());
        let (a, b) = (PromptsId(1), PromptsId(2));
        assert_eq!(sent.source(a, one), PromptSource::Keep(a));
        assert_eq!(sent.source(a, one), PromptSource::Kept(a));
        assert_eq!(sent.source(a, other), PromptSource::Keep(a));
        assert_eq!(sent.source(b, one), PromptSource::Keep(b));
        assert_eq!(sent.source(b, other), PromptSource::Keep(b));
        assert_eq!(sent.source(b, one), PromptSource::Kept(b));
    }

    #[test]
    fn prompts_that_are_gone_travel_with_every_request_until_the_next_ones_come() {
        let mut sent = SentPrompts::default();
        let span = Span::new(0, 2).unwrap();
        let (a, b) = (PromptsId(1), PromptsId(2));
        sent.source(a, span);
        sent.gone(a);
        assert_eq!(sent.source(a, span), PromptSource::Inline);
        assert_eq!(sent.source(b, span), PromptSource::Keep(b));
        sent.gone(a);
        assert_eq!(sent.source(b, span), PromptSource::Kept(b), "that was a late answer");
    }
}
