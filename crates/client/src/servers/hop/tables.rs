//! Tables that travel once for the requests of a stream that share them.

use std::sync::Arc;

use petals_protocol::{Span, TableSource, TablesId, Tensor, WireDtype};

use crate::adapter::tables::PromptTables;

/// The tables of a request. Whether they travel with it is decided when it is written, in the order of the stream.
#[derive(Debug, Clone)]
pub(crate) struct RequestTables {
    pub(crate) tables: Arc<PromptTables>,
    pub(crate) span: Span,
    /// Which of the request's tensors they are.
    pub(crate) place: usize,
}

impl RequestTables {
    /// The tensor, `[span, block_values]`. Tables are few, shared by all examples and trained: always at full precision.
    pub(super) fn tensor(&self) -> Tensor {
        let values = self.tables.tables_for(self.span).unwrap_or_default();
        Tensor::from_f32(WireDtype::F32, &[self.span.len(), values.len() / self.span.len()], &values)
    }

    pub(super) fn id(&self) -> TablesId {
        self.tables.version()
    }
}

/// What the server of a stream was asked to keep.
#[derive(Debug, Default)]
pub(super) struct SentTables {
    id: Option<TablesId>,
    spans: Vec<Span>,
    /// The server lost these tables or never kept them; until the next ones come, every request brings its own.
    gone: bool,
}

impl SentTables {
    /// Where the next request on the stream gets its tables from. If not [`TableSource::Kept`], they are written with it.
    pub(super) fn source(&mut self, id: TablesId, span: Span) -> TableSource {
        if self.id != Some(id) {
            *self = Self { id: Some(id), ..Self::default() };
        }
        if self.gone {
            return TableSource::Inline;
        }
        if self.spans.contains(&span) {
            return TableSource::Kept(id);
        }
        self.spans.push(span);
        TableSource::Keep(id)
    }

    /// The server does not have the tables that it was named.
    pub(super) fn gone(&mut self, id: TablesId) {
        self.gone |= self.id == Some(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_travel_once_for_each_span_and_name() {
        let mut sent = SentTables::default();
        let (one, other) = (Span::new(0, 2).unwrap(), Span::new(2, 4).unwrap());
        let (a, b) = (TablesId(1), TablesId(2));
        assert_eq!(sent.source(a, one), TableSource::Keep(a));
        assert_eq!(sent.source(a, one), TableSource::Kept(a));
        assert_eq!(sent.source(a, other), TableSource::Keep(a));
        assert_eq!(sent.source(b, one), TableSource::Keep(b));
        assert_eq!(sent.source(b, other), TableSource::Keep(b));
        assert_eq!(sent.source(b, one), TableSource::Kept(b));
    }

    #[test]
    fn tables_that_are_gone_travel_with_every_request_until_the_next_ones_come() {
        let mut sent = SentTables::default();
        let span = Span::new(0, 2).unwrap();
        let (a, b) = (TablesId(1), TablesId(2));
        sent.source(a, span);
        sent.gone(a);
        assert_eq!(sent.source(a, span), TableSource::Inline);
        assert_eq!(sent.source(b, span), TableSource::Keep(b));
        sent.gone(a);
        assert_eq!(sent.source(b, span), TableSource::Kept(b), "that was a late answer");
    }
}
