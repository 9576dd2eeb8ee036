//! TCP relays that put [`Link`]s in front of nodes.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};

use crate::link::{Lane, Link};

/// Receive buffer of the relay's sockets. The kernel's own choice of megabytes would be another queue, in front of the lane.
const SOCKET_BUFFER: u32 = 128 << 10;
/// Pieces between two lanes; their bytes are bounded by what the lanes hold.
const PIECES: usize = 4096;

/// The hosts of one simulated net, and the thread that moves their bytes.
///
/// A relay must know which host dials it. Nodes dial from the port they listen on (libp2p reuses it), so the source port
/// tells; whoever dials from an unknown port is a client.
#[derive(Debug)]
pub struct Net {
    runtime: Option<Runtime>,
    hosts: Arc<Hosts>,
}

#[derive(Debug)]
struct Hosts {
    by_port: Mutex<HashMap<u16, Arc<Link>>>,
    client: Option<Arc<Link>>,
}

/// An address that leads to a node through links.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    target: watch::Sender<Option<SocketAddr>>,
    link: Arc<Link>,
    hosts: Arc<Hosts>,
    connections: Arc<Mutex<JoinSet<()>>>,
    listening: AbortHandle,
}

/// What bytes pass on their way from the dialling host and back to it.
struct Route {
    there: Vec<Arc<Lane>>,
    back: Vec<Arc<Lane>>,
}

impl Net {
    /// A net whose clients all share `client`; without it they are in the core.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn new(client: Option<Arc<Link>>) -> io::Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("net").enable_all().build()?;
        Ok(Self { runtime: Some(runtime), hosts: Arc::new(Hosts { by_port: Mutex::default(), client }) })
    }

    /// A relay on a free port of loopback in front of a host whose access is `link`. Connections wait until
    /// [`Relay::lead_to`] says where the host is.
    ///
    /// # Errors
    /// If no port can be had.
    pub fn relay(&self, link: Arc<Link>) -> io::Result<Relay> {
        self.relay_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), link)
    }

    /// As [`Self::relay`], at a given address.
    ///
    /// # Errors
    /// If the address cannot be had.
    pub fn relay_at(&self, listen: SocketAddr, link: Arc<Link>) -> io::Result<Relay> {
        let runtime = self.runtime.as_ref().map(Runtime::handle).ok_or_else(|| io::Error::other("the net is gone"))?;
        let listener = {
            let _inside = runtime.enter();
            let socket = TcpSocket::new_v4()?;
            socket.set_reuseaddr(true)?;
            socket.set_recv_buffer_size(SOCKET_BUFFER)?;
            socket.bind(listen)?;
            socket.listen(1024)?
        };
        let (target, known) = watch::channel(None);
        let connections = Arc::default();
        let accepted = Accepted { hosts: self.hosts.clone(), link: link.clone(), target: known };
        let address = listener.local_addr()?;
        let task = accept(listener, accepted, runtime.clone(), Arc::clone(&connections));
        let listening = runtime.spawn(task).abort_handle();
        Ok(Relay { address, target, link, hosts: self.hosts.clone(), connections, listening })
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Hosts {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u16, Arc<Link>>> {
        self.by_port.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn dialler(&self, from: SocketAddr) -> Option<Arc<Link>> {
        self.lock().get(&from.port()).cloned().or_else(|| self.client.clone())
    }
}

impl Relay {
    /// Where to connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same for `--announce`.
    pub fn multiaddr(&self) -> String {
        format!("/ip4/{}/tcp/{}", self.address.ip(), self.address.port())
    }

    /// The access link of the host.
    pub fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// Says where the host listens, now or after it was restarted.
    pub fn lead_to(&self, host: SocketAddr) {
        self.hosts.lock().insert(host.port(), self.link.clone());
        self.target.send_replace(Some(host));
    }

    /// Breaks every connection that is open through this relay. New ones are accepted.
    pub fn break_connections(&self) {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.listening.abort();
        self.break_connections();
    }
}

#[derive(Clone)]
struct Accepted {
    hosts: Arc<Hosts>,
    link: Arc<Link>,
    target: watch::Receiver<Option<SocketAddr>>,
}

async fn accept(listener: TcpListener, accepted: Accepted, runtime: Handle, connections: Arc<Mutex<JoinSet<()>>>) {
    loop {
        let Ok((stream, from)) = listener.accept().await else {
            // Out of descriptors, most likely; others will be closed.
            sleep(Duration::from_millis(10)).await;
            continue;
        };
        let route = Route::new(accepted.hosts.dialler(from).as_deref(), &accepted.link);
        let connection = connect(stream, accepted.target.clone(), route);
        let mut connections = connections.lock().unwrap_or_else(PoisonError::into_inner);
        while connections.try_join_next().is_some() {}
        connections.spawn_on(
            async move {
                // Either end may break a connection at any time; the other end sees it broken.
                let _ = connection.await;
            },
            &runtime,
        );
    }
}

impl Route {
    fn new(dialler: Option<&Link>, host: &Link) -> Self {
        let lanes = |first: Option<&Arc<Lane>>, second: Option<&Arc<Lane>>| {
            [first, second].into_iter().flatten().cloned().collect::<Vec<_>>()
        };
        Self {
            there: lanes(dialler.map(|link| &link.up), Some(&host.down)),
            back: lanes(Some(&host.up), dialler.map(|link| &link.down)),
        }
    }

    fn round_trip(&self) -> Duration {
        self.there.iter().chain(&self.back).map(|lane| lane.delay()).sum()
    }
}

async fn connect(outside: TcpStream, mut target: watch::Receiver<Option<SocketAddr>>, route: Route) -> io::Result<()> {
    let target = *target.wait_for(Option::is_some).await.map_err(io::Error::other)?;
    let target = target.ok_or(io::ErrorKind::NotConnected)?;
    // TCP's own handshake takes a round trip.
    sleep(route.round_trip()).await;
    for lane in route.there.iter().chain(&route.back) {
        lane.connected(Instant::now()).await;
    }
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    let inside = socket.connect(target).await?;
    outside.set_nodelay(true)?;
    inside.set_nodelay(true)?;
    let ((read_out, write_out), (read_in, write_in)) = (outside.into_split(), inside.into_split());
    tokio::try_join!(carry(read_out, write_in, route.there), carry(read_in, write_out, route.back))?;
    Ok(())
}

/// Bytes on their way, with the time they reach the next lane or the end. No bytes are the end of the stream.
struct Piece {
    bytes: Vec<u8>,
    at: Instant,
    _room: Option<OwnedSemaphorePermit>,
}

/// One direction of a connection: from a socket through the lanes into another one.
async fn carry(from: OwnedReadHalf, to: OwnedWriteHalf, lanes: Vec<Arc<Lane>>) -> io::Result<()> {
    let (sender, mut receiver) = mpsc::channel(PIECES);
    let mut stages = JoinSet::new();
    let mut lanes_left = lanes.clone().into_iter();
    let Some(first) = lanes_left.next() else { return Ok(()) };
    let capacity: usize = lanes.iter().map(|lane| lane.capacity()).sum();
    stages.spawn(read(from, first, sender, capacity));
    for lane in lanes_left {
        let (next, output) = mpsc::channel(PIECES);
        stages.spawn(pass(std::mem::replace(&mut receiver, output), lane, next));
    }
    stages.spawn(write(receiver, to, lanes));
    while let Some(stage) = stages.join_next().await {
        stage.map_err(io::Error::other)??;
    }
    Ok(())
}

async fn read(mut from: OwnedReadHalf, lane: Arc<Lane>, next: mpsc::Sender<Piece>, capacity: usize) -> io::Result<()> {
    let room = Arc::new(Semaphore::new(capacity.max(4 * lane.piece())));
    loop {
        let mut bytes = Vec::with_capacity(lane.piece());
        // `take`: a vector grows when it is full.
        let read = (&mut from).take(lane.piece() as u64).read_buf(&mut bytes).await?;
        let permits = room.clone().acquire_many_owned(read as u32).await.map_err(io::Error::other)?;
        let at = lane.send(Instant::now(), read).await;
        let end = read == 0;
        if next.send(Piece { bytes, at, _room: Some(permits) }).await.is_err() || end {
            return Ok(());
        }
    }
}

async fn pass(mut pieces: mpsc::Receiver<Piece>, lane: Arc<Lane>, next: mpsc::Sender<Piece>) -> io::Result<()> {
    while let Some(mut piece) = pieces.recv().await {
        sleep_until(piece.at).await;
        // A timer that fired late does not make the wire slower.
        piece.at = lane.send(piece.at, piece.bytes.len()).await;
        if next.send(piece).await.is_err() {
            break;
        }
    }
    Ok(())
}

async fn write(mut pieces: mpsc::Receiver<Piece>, mut to: OwnedWriteHalf, lanes: Vec<Arc<Lane>>) -> io::Result<()> {
    while let Some(piece) = pieces.recv().await {
        sleep_until(piece.at).await;
        for lane in &lanes {
            lane.connected(piece.at).await;
        }
        if piece.bytes.is_empty() {
            return to.shutdown().await;
        }
        to.write_all(&piece.bytes).await?;
    }
    Ok(())
}
