//! What this node hosts, which changes when it moves.

use petals_protocol::{BlockHashes, BlockWidths, ModelId, Refusal, ServerInfo, ServerState, Span};
use petals_swarm::{AnnounceError, SwarmHandle};
use tokio::sync::{Mutex, watch};

/// What is said of this node, and what requests are held to.
#[derive(Debug)]
pub(crate) struct Hosted {
    /// Of the model's blocks.
    pub(crate) widths: BlockWidths,
    now: watch::Sender<Now>,
    /// Held while the directory is told, so that it never hears an older state after a newer one.
    telling: Mutex<()>,
}

#[derive(Debug, Clone)]
pub(crate) struct Now {
    pub(crate) info: ServerInfo,
    /// Blocks that were left a moment ago: backwards of what was begun there are still taken.
    pub(crate) retiring: Option<Span>,
}

impl Now {
    /// Serves these blocks, whose weights are told with them.
    pub(crate) fn serve(&mut self, span: Span, weights: Option<BlockHashes>) {
        (self.info.span, self.info.weights) = (span, weights);
    }
}

impl Hosted {
    pub(crate) fn new(info: ServerInfo, widths: BlockWidths) -> Self {
        let (now, _) = watch::channel(Now { info, retiring: None });
        Self { widths, now, telling: Mutex::new(()) }
    }

    pub(crate) fn info(&self) -> ServerInfo {
        self.now.borrow().info.clone()
    }

    pub(crate) fn model(&self) -> ModelId {
        self.now.borrow().info.model.clone()
    }

    pub(crate) fn span(&self) -> Span {
        self.now.borrow().info.span
    }

    /// Follows all changes.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Now> {
        self.now.subscribe()
    }

    /// Changes what requests are held to, from this moment on.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Now)) {
        self.now.send_modify(change);
    }

    /// Tells the directory what this node is now.
    pub(crate) async fn tell(&self, swarm: &SwarmHandle) -> Result<ServerInfo, AnnounceError> {
        let _turn = self.telling.lock().await;
        let info = self.info();
        swarm.announce(info.clone()).await?;
        Ok(info)
    }

    /// Whether passes over `span` are taken: everything while the node serves it, and of what it is leaving only the
    /// backwards of stashes.
    pub(crate) fn admit(&self, span: Span, of_stash: bool) -> Result<(), Refusal> {
        let now = self.now.borrow();
        let served = now.info.span;
        let hosted = served.covers(span);
        let left = now.retiring.is_some_and(|retiring| retiring.covers(span));
        match () {
            () if of_stash && (hosted || left) => Ok(()),
            () if !hosted => Err(Refusal::WrongSpan { asked: span, served }),
            () if now.info.state != ServerState::Online => Err(Refusal::Draining),
            () => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use petals_protocol::Fingerprint;

    #[test]
    fn a_span_that_was_left_takes_backwards_of_stashes_only() {
        let span = |a, b| Span::new(a, b).unwrap();
        let model = ModelId::new("m", Fingerprint([0; 8])).unwrap();
        let hosted = Hosted::new(ServerInfo::new(model, span(0, 4), ServerState::Online), BlockWidths::uniform(8));
        assert_eq!(hosted.admit(span(1, 4), false), Ok(()));
        hosted.change(|now| {
            now.retiring = Some(now.info.span);
            now.info.span = span(3, 7);
        });
        let wrong = Refusal::WrongSpan { asked: span(1, 4), served: span(3, 7) };
        assert_eq!(hosted.admit(span(1, 4), false), Err(wrong.clone()));
        assert_eq!((hosted.admit(span(1, 4), true), hosted.admit(span(3, 5), false)), (Ok(()), Ok(())));
        hosted.change(|now| now.retiring = None);
        assert_eq!(hosted.admit(span(1, 4), true), Err(wrong));
        hosted.change(|now| now.info.state = ServerState::Draining);
        assert_eq!((hosted.admit(span(3, 7), false), hosted.admit(span(3, 7), true)), (Err(Refusal::Draining), Ok(())));
    }
}
