//! The transport in front of which addresses are judged: what it does not dial, nothing in this node dials.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use libp2p::Multiaddr;
use libp2p::core::Transport;
use libp2p::core::transport::{DialOpts, ListenerId, TransportError, TransportEvent};

use super::targets::SharedTargets;

/// A transport that dials what [`SharedTargets`] lets through.
pub(super) struct Gate<T> {
    inner: T,
    targets: SharedTargets,
}

impl<T> Gate<T> {
    pub(super) fn new(inner: T, targets: SharedTargets) -> Self {
        Self { inner, targets }
    }
}

impl<T: Transport<Error = io::Error> + Unpin> Transport for Gate<T> {
    type Output = T::Output;
    type Error = io::Error;
    type ListenerUpgrade = T::ListenerUpgrade;
    type Dial = T::Dial;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<io::Error>> {
        self.inner.listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.remove_listener(id)
    }

    fn dial(&mut self, address: Multiaddr, opts: DialOpts) -> Result<T::Dial, TransportError<io::Error>> {
        if let Err(reason) = self.targets.judge(&address) {
            tracing::debug!(%address, %reason, "not dialled");
            return Err(TransportError::Other(io::Error::other(reason)));
        }
        self.inner.dial(address, opts)
    }

    fn poll(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        Pin::new(&mut self.inner).poll(context)
    }
}
