//! TCP with Noise and Yamux, QUIC, circuits through relays, and names for all.

use std::error::Error;
use std::io;
use std::time::Duration;

use libp2p::core::Transport;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::timeout::{TransportTimeout, TransportTimeoutError};
use libp2p::core::transport::{Boxed, OrTransport};
use libp2p::core::upgrade::Version;
use libp2p::pnet::PnetConfig;
use libp2p::{PeerId, dns, noise, quic, relay, tcp, yamux};

use super::gate::Gate;
use super::targets::SharedTargets;
use crate::identity::Identity;
use crate::swarm_key::SwarmKey;

type Base = Boxed<(PeerId, StreamMuxerBox)>;

/// Streams of one connection, ours and the other side's. Yamux grants each stream a window of 256 KiB before anyone
/// reads, so a hostile peer can make this node buffer 32 MiB per connection. Windows grow with what is actually read, up
/// to twice what the link holds, so that one stream fills a fast link.
const MAX_YAMUX_STREAMS: usize = 128;

/// What a handshake has to explain why it took too long.
const EXPLANATION: Duration = Duration::from_millis(500);

/// The transport, and the behaviour that its circuits need.
pub(super) fn build(
    identity: &Identity,
    timeout: Duration,
    key: Option<SwarmKey>,
    targets: &SharedTargets,
) -> Result<(Base, relay::client::Behaviour), Box<dyn Error + Send + Sync>> {
    let (circuits, relay_client) = relay::client::new(identity.peer_id());
    let circuits = circuits
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(identity.keypair())?)
        .multiplex(multiplexer())
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    // That of a private swarm says what it was waiting for, so it must end first.
    let longest = if key.is_some() { timeout + EXPLANATION } else { timeout };
    // Below names, so that those of strangers are judged by what they mean.
    let direct = Gate::new(base(identity, timeout, key)?, targets.clone());
    let named = match dns::tokio::Transport::system(direct) {
        Ok(transport) => transport.boxed(),
        Err(error) => {
            // Closed machines may have no resolver; numeric addresses must still work there.
            tracing::debug!(%error, "no system resolver, using the default one");
            let (config, options) = (dns::ResolverConfig::default(), dns::ResolverOpts::default());
            let direct = Gate::new(base(identity, timeout, key)?, targets.clone());
            dns::tokio::Transport::custom(direct, config, options).boxed()
        }
    };
    let all = OrTransport::new(circuits, named).map(|either, _| either.into_inner());
    Ok((TransportTimeout::new(all, longest).boxed(), relay_client))
}

fn multiplexer() -> yamux::Config {
    let mut config = yamux::Config::default();
    config.set_max_num_streams(MAX_YAMUX_STREAMS);
    config
}

/// What a connection fails with besides the reasons of the system.
#[derive(Debug, thiserror::Error)]
enum HandshakeError {
    #[error("the handshake failed; is a node of a private swarm there, which needs its swarm key?")]
    Public,
    #[error("the handshake failed: the other side uses another swarm key or none")]
    Private,
    #[error("no answer in time: nothing is there, or the other side uses another swarm key or none")]
    PrivateTimeout,
}

/// The system did not connect. Errors of layered transports hide themselves and show their sources, hence two types.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NotConnected(#[source] SystemError);

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct SystemError(io::Error);

fn base(identity: &Identity, timeout: Duration, key: Option<SwarmKey>) -> Result<Base, Box<dyn Error + Send + Sync>> {
    let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .map_err(|error| NotConnected(SystemError(error)));
    let noise = noise::Config::new(identity.keypair())?;
    if let Some(key) = key {
        let key = PnetConfig::new(key.pre_shared());
        let private = tcp
            .and_then(move |socket, _| key.handshake(socket))
            .upgrade(Version::V1Lazy)
            .authenticate(noise)
            .multiplex(multiplexer())
            .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
            .map_err(|error| explain(error, HandshakeError::Private));
        // Two different keys often leave both sides waiting for the rest of what they take for a message.
        let timed = TransportTimeout::new(private, timeout).map_err(|error| match error {
            TransportTimeoutError::Other(error) => error,
            TransportTimeoutError::Timeout => io::Error::other(HandshakeError::PrivateTimeout),
            TransportTimeoutError::TimerError(error) => error,
        });
        return Ok(timed.boxed());
    }
    let tcp = tcp
        .upgrade(Version::V1Lazy)
        .authenticate(noise)
        .multiplex(multiplexer())
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
        .map_err(|error| explain(error, HandshakeError::Public));
    let quic = quic::tokio::Transport::new(quic::Config::new(identity.keypair()))
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    Ok(OrTransport::new(quic, tcp).map(|either, _| either.into_inner()).boxed())
}

/// What goes wrong between the connection and its encryption says little by itself.
fn explain(error: impl Error + Send + Sync + 'static, handshake: HandshakeError) -> io::Error {
    let mut cause = error.source();
    while let Some(error) = cause {
        if error.is::<SystemError>() {
            return io::Error::other(error.to_string());
        }
        cause = error.source();
    }
    io::Error::other(handshake)
}
