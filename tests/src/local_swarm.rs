//! A swarm in this process, for what the command line does not show: gradients, and single requests.

use std::path::Path;
use std::sync::Arc;

use petals_client::{AdaptedModel, RemoteSequence, SequenceConfig};
use petals_model::{Checkpoint, ClientModel, Device, Division, Dtype, KvDtype, Place};
use petals_node::{ExecutorConfig, MeasureConfig, Server, ServerConfig};
use petals_protocol::{ModelId, ServerInfo, Span, WireVersion};
use petals_swarm::{Identity, Multiaddr, SwarmConfig, SwarmHandle, SwarmNode};

/// Servers and a client over loopback TCP.
#[derive(Debug)]
pub struct LocalSwarm {
    /// In the order of the spans asked for.
    pub servers: Vec<Server>,
    /// The client's node.
    pub client: SwarmHandle,
    /// What the servers host.
    pub model: ModelId,
    /// Every block of the model.
    pub blocks: Span,
    /// Width of the hidden states.
    pub hidden: usize,
    /// The client's part of the model.
    pub local: Arc<ClientModel>,
}

impl LocalSwarm {
    /// Starts a server for each of `spans`; all know the first one.
    ///
    /// # Errors
    /// If a node or the model does not come up.
    pub async fn start(model: &Path, spans: &[&str], executor: ExecutorConfig) -> anyhow::Result<Self> {
        Self::start_with(model, spans, |config| ServerConfig { executor: executor.clone(), ..config }).await
    }

    /// As [`Self::start`], with servers as `configure` wants them.
    ///
    /// # Errors
    /// If a node or the model does not come up.
    pub async fn start_with(
        model: &Path,
        spans: &[&str],
        configure: impl Fn(ServerConfig) -> ServerConfig,
    ) -> anyhow::Result<Self> {
        let spoken: &[WireVersion] = &WireVersion::SPOKEN;
        let spans: Vec<_> = spans.iter().map(|span| (*span, spoken)).collect();
        Self::of_versions(model, &spans, spoken, configure).await
    }

    /// As [`Self::start_with`], with members of different versions: each server speaks those beside its span, the client the `spoken` ones.
    ///
    /// # Errors
    /// If a node or the model does not come up.
    pub async fn of_versions(
        model: &Path,
        spans: &[(&str, &[WireVersion])],
        spoken: &[WireVersion],
        configure: impl Fn(ServerConfig) -> ServerConfig,
    ) -> anyhow::Result<Self> {
        let checkpoint = Checkpoint::open(model)?;
        let id = ModelId::new("golden", checkpoint.fingerprint())?;
        let blocks = Span::new(0, checkpoint.config().num_hidden_layers as u32)?;
        let hidden = checkpoint.config().hidden_size;
        let local = Arc::new(checkpoint.load_client(petals_model::Dtype::F32)?);
        let mut servers: Vec<Server> = Vec::new();
        let mut first = None;
        for &(span, versions) in spans {
            let server = start_server(model, &id, (span, versions), first.clone(), &configure).await?;
            first = first.or_else(|| server.swarm().listen_addresses().first().cloned());
            servers.push(server);
        }
        let peers = first.into_iter().collect();
        let config = SwarmConfig { peers, wire_versions: spoken.to_vec(), ..SwarmConfig::client() };
        let (client, _) = SwarmNode::start(Identity::generate(), config).await?;
        client.wait_connected(std::time::Duration::from_secs(10)).await?;
        Ok(Self { servers, client, model: id, blocks, hidden, local })
    }

    /// Starts one more server, which knows the first one.
    ///
    /// # Errors
    /// If the node or the blocks do not come up.
    pub async fn add_server(&mut self, model: &Path, span: &str) -> anyhow::Result<()> {
        let first = self.servers.first().and_then(|server| server.swarm().listen_addresses().first().cloned());
        let span: (&str, &[WireVersion]) = (span, &WireVersion::SPOKEN);
        self.servers.push(start_server(model, &self.model, span, first, &|config| config).await?);
        Ok(())
    }

    /// Lets every server announce this many tokens per second, whatever it measured: clients that have not used them yet
    /// plan with it. Returns when the client's node finds these announcements.
    ///
    /// # Errors
    /// If a node is gone.
    pub async fn announce_speed(&self, tokens_per_s: f32) -> anyhow::Result<()> {
        let announced = |info: &ServerInfo| info.forward_tokens_per_s == Some(tokens_per_s);
        for server in &self.servers {
            server.announce_speed(tokens_per_s).await?;
        }
        loop {
            let found = self.client.lookup(&self.model, self.blocks).await?;
            if found.iter().filter(|entry| announced(&entry.info)).count() >= self.servers.len() {
                return Ok(());
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    /// What adapters must know of the model.
    pub fn adapted(&self) -> AdaptedModel {
        AdaptedModel::new(self.model.clone(), String::new(), self.local.config())
    }

    /// All blocks, through this swarm.
    pub fn sequence(&self, config: SequenceConfig) -> RemoteSequence {
        RemoteSequence::new(self.client.clone(), self.model.clone(), self.blocks, self.hidden, config)
    }
}

async fn start_server(
    model: &Path,
    id: &ModelId,
    (span, versions): (&str, &[WireVersion]),
    peer: Option<Multiaddr>,
    configure: &impl Fn(ServerConfig) -> ServerConfig,
) -> anyhow::Result<Server> {
    let config = SwarmConfig {
        listen: vec!["/ip4/127.0.0.1/tcp/0".parse()?],
        peers: peer.into_iter().collect(),
        wire_versions: versions.to_vec(),
        ..SwarmConfig::server()
    };
    let (swarm, incoming) = SwarmNode::start(Identity::generate(), config).await?;
    let config = ServerConfig {
        model: id.clone(),
        division: Division::whole(
            span.parse()?,
            Place { device: Device::cpu(), dtype: Dtype::F32, kv_dtype: KvDtype::F32 },
        ),
        max_rows: 4096,
        request_bytes: 1 << 30,
        max_adapter_bytes: None,
        executor: ExecutorConfig::default(),
        measure: MeasureConfig::default(),
        rebalance: None,
        shares_weights: false,
        public_name: None,
    };
    Server::start(swarm, incoming, Checkpoint::open(model)?, configure(config)).await
}
