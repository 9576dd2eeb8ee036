//! TCP with Noise and Yamux, QUIC, circuits through relays, and names for all.

use std::error::Error;
use std::time::Duration;

use libp2p::core::Transport;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::{Boxed, OrTransport, timeout::TransportTimeout};
use libp2p::core::upgrade::Version;
use libp2p::{PeerId, dns, noise, quic, relay, tcp, yamux};

use crate::identity::Identity;

type Base = Boxed<(PeerId, StreamMuxerBox)>;

/// Streams of one connection, ours and the other side's. Yamux grants each stream a window of 256 KiB before anyone
/// reads, so a hostile peer can make this node buffer 32 MiB per connection. Windows grow with what is actually read, up
/// to twice what the link holds, so that one stream fills a fast link.
const MAX_YAMUX_STREAMS: usize = 128;

/// The transport, and the behaviour that its circuits need.
pub(super) fn build(
    identity: &Identity,
    timeout: Duration,
) -> Result<(Base, relay::client::Behaviour), Box<dyn Error + Send + Sync>> {
    let (circuits, relay_client) = relay::client::new(identity.peer_id());
    let circuits = circuits
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(identity.keypair())?)
        .multiplex(multiplexer())
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    let direct = base(identity)?;
    let named = match dns::tokio::Transport::system(direct) {
        Ok(transport) => transport.boxed(),
        Err(error) => {
            // Closed machines may have no resolver; numeric addresses must still work there.
            tracing::debug!(%error, "no system resolver, using the default one");
            let (config, options) = (dns::ResolverConfig::default(), dns::ResolverOpts::default());
            dns::tokio::Transport::custom(base(identity)?, config, options).boxed()
        }
    };
    let all = OrTransport::new(circuits, named).map(|either, _| either.into_inner());
    Ok((TransportTimeout::new(all, timeout).boxed(), relay_client))
}

fn multiplexer() -> yamux::Config {
    let mut config = yamux::Config::default();
    config.set_max_num_streams(MAX_YAMUX_STREAMS);
    config
}

fn base(identity: &Identity) -> Result<Base, Box<dyn Error + Send + Sync>> {
    let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(identity.keypair())?)
        .multiplex(multiplexer())
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    let quic = quic::tokio::Transport::new(quic::Config::new(identity.keypair()))
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    Ok(OrTransport::new(quic, tcp).map(|either, _| either.into_inner()).boxed())
}
