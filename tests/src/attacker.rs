//! Peers that take what they can get, from addresses of their own.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, ensure};
use futures::{AsyncWriteExt, io::AsyncReadExt};
use petals_protocol::{
    Frame, FrameKind, FrameLimits, FrameReader, FrameWriter, Limits, ModelId, Request, Response, Tensor,
};
use petals_swarm::{Identity, Multiaddr, PeerId, PeerStream, SwarmConfig, SwarmHandle, SwarmNode};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinSet;

/// Longest wait for what a server does at once.
const PATIENCE: Duration = Duration::from_secs(20);

/// A node of its own, and whom it is after.
#[derive(Debug)]
pub struct Attacker {
    node: SwarmHandle,
    server: PeerId,
    addresses: Vec<Multiaddr>,
    model: ModelId,
    _detour: JoinSet<()>,
}

/// A stream whose greeting is over.
#[derive(Debug)]
pub struct AttackStream {
    stream: PeerStream,
    /// What the server says it takes.
    pub limits: Limits,
}

impl Attacker {
    /// One more id at `ip`, an address of this machine.
    ///
    /// # Errors
    /// If the node does not start.
    pub async fn at(ip: &str, server: &SwarmHandle, model: &ModelId) -> anyhow::Result<Self> {
        Self::after(ip, (server.local_peer(), server.listen_addresses()), model).await
    }

    /// As [`Self::at`], by the server's id and addresses.
    ///
    /// # Errors
    /// If the node does not start.
    pub async fn after(
        ip: &str,
        (server, addresses): (PeerId, Vec<Multiaddr>),
        model: &ModelId,
    ) -> anyhow::Result<Self> {
        let address = addresses.first().context("the server listens nowhere")?.to_string();
        let parts: Vec<&str> = address.split('/').collect();
        let [_, "ip4", host, "tcp", port, ..] = parts.as_slice() else { anyhow::bail!("{address} is no socket") };
        let (way, detour) = detour(ip.parse()?, format!("{host}:{port}").parse()?).await?;
        let addresses = vec![format!("/ip4/{}/tcp/{}/p2p/{server}", way.ip(), way.port()).parse()?];
        let (node, _) = SwarmNode::start(Identity::generate(), SwarmConfig::client()).await?;
        Ok(Self { node, server, addresses, model: model.clone(), _detour: detour })
    }

    /// Opens a stream and greets.
    ///
    /// # Errors
    /// If the server has none left for it.
    pub async fn greeted(&self) -> anyhow::Result<AttackStream> {
        let mut stream = self.node.open_stream(self.server, &self.addresses, PATIENCE).await?;
        FrameWriter::new(&mut stream, FrameKind::Request)
            .write(0, &Request::Hello { model: self.model.clone() }, &[])
            .await?;
        let answer: Frame<Response> = read(&mut stream).await?;
        let Response::Welcome(welcome) = answer.message else { anyhow::bail!("no greeting: {:?}", answer.message) };
        Ok(AttackStream { stream, limits: welcome.limits })
    }
}

impl AttackStream {
    /// Says that a request of this many bytes comes, and sends `bytes` of it.
    ///
    /// # Errors
    /// If the server has ended the stream.
    pub async fn claim(&mut self, request: &Request, tensor: Tensor, bytes: usize) -> anyhow::Result<()> {
        let mut whole = Vec::new();
        FrameWriter::new(&mut whole, FrameKind::Request).write(1, request, &[tensor]).await?;
        ensure!(bytes < whole.len(), "that is all of it");
        self.send_raw(&whole[..bytes]).await
    }

    /// Sends bytes, whatever they are.
    ///
    /// # Errors
    /// If the server has ended the stream.
    pub async fn send_raw(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.stream.write_all(bytes).await?;
        Ok(self.stream.flush().await?)
    }

    /// Sends a request and waits for nothing.
    ///
    /// # Errors
    /// If the server has ended the stream.
    pub async fn send(&mut self, id: u64, request: &Request, tensors: &[Tensor]) -> anyhow::Result<()> {
        Ok(FrameWriter::new(&mut self.stream, FrameKind::Request).write(id, request, tensors).await?)
    }

    /// Sends a request and waits for an answer, which may be another's.
    ///
    /// # Errors
    /// If there is none.
    pub async fn ask(&mut self, request: &Request, tensors: &[Tensor]) -> anyhow::Result<Response> {
        self.send(7, request, tensors).await?;
        Ok(read(&mut self.stream).await?.message)
    }

    /// Returns once the server has ended the stream.
    pub async fn ended(&mut self) {
        while let Ok(1..) = self.stream.read(&mut [0; 1024]).await {}
    }
}

/// A socket whose connections go on to `target` from `ip`: nodes do not choose where they come from.
async fn detour(ip: Ipv4Addr, target: SocketAddr) -> anyhow::Result<(SocketAddr, JoinSet<()>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let way = listener.local_addr()?;
    let mut forwards = JoinSet::new();
    forwards.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut from, _)) = listener.accept().await {
            while connections.try_join_next().is_some() {}
            connections.spawn(async move {
                let socket = TcpSocket::new_v4()?;
                socket.bind((ip, 0).into())?;
                let mut to = socket.connect(target).await?;
                from.set_nodelay(true)?;
                to.set_nodelay(true)?;
                tokio::io::copy_bidirectional(&mut from, &mut to).await
            });
        }
    });
    Ok((way, forwards))
}

async fn read(stream: &mut PeerStream) -> anyhow::Result<Frame<Response>> {
    let mut reader = FrameReader::new(stream, FrameKind::Response, FrameLimits::default());
    Ok(tokio::time::timeout(PATIENCE, reader.read()).await??)
}
