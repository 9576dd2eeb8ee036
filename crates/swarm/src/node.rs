//! A running node: one task owns the network; handles talk to it.

mod announcer;
mod dialler;
mod event_loop;
mod gate;
mod handle;
mod members;
mod publisher;
mod queries;
mod reach;
mod targets;
mod transport;
mod view;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use libp2p::Multiaddr;
use libp2p::swarm::{self, Swarm, SwarmEvent};
use petals_protocol::CONTENT_PROTOCOL_NAME;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use announcer::AnnounceError;
pub(crate) use handle::DirectoryQuery;
pub use handle::{ConnectError, SwarmHandle};
pub use reach::Reachability;
pub use view::DirectoryTraffic;

use crate::addresses::{AddressError, is_tcp, tcp_socket};
use crate::behaviour::Behaviour;
use crate::carried::Carried;
use crate::config::{SwarmConfig, SwarmMode};
use crate::identity::Identity;
use crate::streams::{self, Admission, AllowList, INCOMING_CAPACITY, Incoming, Spoken};
use event_loop::EventLoop;
use targets::SharedTargets;
use view::View;

/// Commands waiting for the event loop, which takes microseconds for each.
const COMMAND_CAPACITY: usize = 64;
/// A listener reports its addresses at once; more than this is a fault of the machine.
const LISTEN_DEADLINE: Duration = Duration::from_secs(5);
/// Streams on which files are passed on that one peer may have open to this node: it fetches a few files side by side, and those that it closed may be on
/// their way. And all peers.
const CONTENT_STREAMS_PER_PEER: usize = 16;
const CONTENT_STREAMS: usize = 128;

/// Starts nodes.
#[derive(Debug)]
pub struct SwarmNode;

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// An address of the configuration is unusable.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The encryption layer could not be set up.
    #[error("cannot set up the encrypted transport")]
    Transport(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// QUIC has its own encryption and knows no pre-shared keys.
    #[error("a private swarm works over TCP only: {0} cannot be listened on with a swarm key")]
    PrivateQuic(Multiaddr),
    /// A listen address cannot be used.
    #[error("cannot listen on {address}: is it in use, or not an address of this machine?")]
    Listen {
        /// The address as configured.
        address: Multiaddr,
        /// What the system says.
        source: io::Error,
    },
    /// No listener became ready.
    #[error("none of the listen addresses became ready within {LISTEN_DEADLINE:?}")]
    NotListening,
}

impl SwarmNode {
    /// Starts a node: listens, dials the configured peers in the background, and serves the directory until
    /// [`SwarmHandle::shutdown`] is called or all handles are dropped. Must be called within a tokio runtime.
    ///
    /// When this returns the node listens; [`SwarmHandle::wait_connected`] waits for the peers.
    ///
    /// # Errors
    /// [`StartError`] if an address is wrong or cannot be listened on.
    pub async fn start(identity: Identity, config: SwarmConfig) -> Result<(SwarmHandle, Incoming), StartError> {
        config.validate()?;
        let admission = Admission::new(config.max_streams_per_peer, config.max_streams);
        let (incoming_sender, incoming) = mpsc::channel(INCOMING_CAPACITY);
        let incoming_sender = (config.mode == SwarmMode::Server).then_some(incoming_sender);
        let allowed = AllowList::new(config.allow_peers.clone());
        let spoken = Spoken::blocks(&config.wire_versions);
        let streams = streams::Behaviour::new(spoken, incoming_sender, Arc::clone(&admission), allowed.clone());
        // Apart from the others, so that neither takes the other's places.
        let (content_sender, contents) = config
            .shares_contents
            .then(|| mpsc::channel(CONTENT_STREAMS))
            .map_or((None, None), |(to, from)| (Some(to), Some(Incoming::new(from))));
        let content_admission = Admission::new(CONTENT_STREAMS_PER_PEER, CONTENT_STREAMS);
        let content_streams = streams::Behaviour::new(
            Spoken::only(CONTENT_PROTOCOL_NAME),
            content_sender,
            content_admission,
            allowed.clone(),
        );
        let carried = Carried::new(&config.relay_limits);
        let targets = SharedTargets::new(&config);
        let swarm = build_swarm(&identity, &config, (streams, content_streams), &carried, &targets)?;
        let swarm = (swarm, carried, targets);

        let (commands, command_receiver) = mpsc::channel(COMMAND_CAPACITY);
        let (view_sender, view) = watch::channel(View::default());
        let shutdown = CancellationToken::new();
        let local = identity.peer_id();
        let lookup_timeout = config.lookup_timeout;
        let mut event_loop =
            EventLoop::new(swarm, identity, config, allowed, command_receiver, view_sender, shutdown.clone());
        event_loop.listen().await?;

        let tasks = TaskTracker::new();
        let started_ms = event_loop.started_ms;
        tasks.spawn(event_loop.run());
        tasks.close();
        let streams = (admission, contents);
        let handle = SwarmHandle::new(local, commands, view, streams, shutdown, tasks, (lookup_timeout, started_ms));
        Ok((handle, Incoming::new(incoming)))
    }
}

fn build_swarm(
    identity: &Identity,
    config: &SwarmConfig,
    streams: (streams::Behaviour, streams::Behaviour),
    carried: &Carried,
    targets: &SharedTargets,
) -> Result<Swarm<Behaviour>, StartError> {
    let (transport, relay_client) =
        transport::build(identity, config.dial_timeout, config.swarm_key, targets).map_err(StartError::Transport)?;
    let behaviour = Behaviour::new(identity, config, streams, carried, relay_client);
    let swarm_config = swarm::Config::with_tokio_executor().with_idle_connection_timeout(config.idle_timeout);
    Ok(Swarm::new(transport, behaviour, identity.peer_id(), swarm_config))
}

impl EventLoop {
    /// Opens the listeners and waits until each has told its addresses.
    async fn listen(&mut self) -> Result<(), StartError> {
        let mut waiting = Vec::new();
        let private = self.config.swarm_key.is_some();
        for address in self.config.listen.clone() {
            if private && !is_tcp(&address) {
                return Err(StartError::PrivateQuic(address));
            }
            let failed = |source| StartError::Listen { address: address.clone(), source };
            check_port_is_free(&address).map_err(failed)?;
            let listener = self.swarm.listen_on(address.clone()).map_err(|error| failed(io::Error::other(error)))?;
            waiting.push(listener);
        }
        for address in self.config.listen_if_possible.clone() {
            if private && !is_tcp(&address) {
                tracing::info!("a private swarm works over TCP only, QUIC is not used");
                continue;
            }
            if let Err(error) = self.swarm.listen_on(address.clone()) {
                tracing::debug!(%address, %error, "not listening there");
            }
        }
        let deadline = tokio::time::Instant::now() + LISTEN_DEADLINE;
        while !waiting.is_empty() {
            let next = futures::StreamExt::select_next_some(&mut self.swarm);
            let event = tokio::time::timeout_at(deadline, next).await.map_err(|_| StartError::NotListening)?;
            if let SwarmEvent::NewListenAddr { listener_id, .. } = &event {
                waiting.retain(|listener| listener != listener_id);
            }
            self.on_swarm_event(event);
        }
        Ok(())
    }
}

/// libp2p shares listening ports (`SO_REUSEPORT`): a second server on the same port would start, and each would get some
/// of the other's connections. An ordinary bind finds out.
fn check_port_is_free(address: &Multiaddr) -> io::Result<()> {
    match tcp_socket(address) {
        Some(socket) if socket.port() != 0 => std::net::TcpListener::bind(socket).map(drop),
        _ => Ok(()),
    }
}
