//! A server that says that it passes files of its model on, and does so in one chosen way.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use futures::{AsyncReadExt, AsyncWriteExt};
use petals_protocol::{
    ContentAnswer, ContentHash, ContentRequest, ModelId, ServerInfo, ServerState, Span, read_content_message,
    write_content_message,
};
use petals_swarm::{Identity, Multiaddr, PeerStream, SwarmConfig, SwarmHandle, SwarmNode};
use sha2::{Digest, Sha256};
use tokio::task::JoinHandle;

/// How it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Giving {
    /// As it should.
    Right,
    /// With one byte that is another one.
    Wrong,
    /// It closes the stream after so many bytes.
    Cut(usize),
    /// It sends so many bytes, then nothing more.
    Stall(usize),
    /// It sends a byte every so often.
    Trickle(Duration),
    /// It says that the file is longer.
    OtherSize,
    /// With bytes that are no answer.
    Garbage,
    /// With an answer that is longer than any.
    Oversized,
    /// It says that it has not got the file.
    NotShared,
    /// Not at all.
    Silence,
    /// It takes no streams for files, though it says so.
    Unsupported,
}

/// A running server of this kind, which ends when it is dropped.
#[derive(Debug)]
pub struct Giver {
    swarm: SwarmHandle,
    shared: Arc<Shared>,
    task: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    giving: Giving,
    files: BTreeMap<ContentHash, Vec<u8>>,
    asked: Mutex<Vec<ContentRequest>>,
}

impl Giver {
    /// Starts a server of all blocks of a model with the files of a directory, and waits until others find it.
    ///
    /// # Errors
    /// If the node does not come up.
    pub async fn start(
        member: &str,
        model: &ModelId,
        blocks: Span,
        files: &Path,
        giving: Giving,
    ) -> anyhow::Result<Self> {
        let member: Multiaddr = member.parse()?;
        let config = SwarmConfig {
            listen: vec!["/ip4/127.0.0.1/tcp/0".parse()?],
            peers: vec![member.clone()],
            shares_contents: giving != Giving::Unsupported,
            ..SwarmConfig::server()
        };
        let (swarm, _) = SwarmNode::start(Identity::generate(), config).await?;
        let mut contents = BTreeMap::new();
        for entry in std::fs::read_dir(files)? {
            let bytes = std::fs::read(entry?.path())?;
            contents.insert(ContentHash(Sha256::digest(&bytes).into()), bytes);
        }
        let shared = Arc::new(Shared { giving, files: contents, asked: Mutex::default() });
        let task = swarm.take_content_streams().map(|mut incoming| {
            let shared = shared.clone();
            tokio::spawn(async move {
                while let Some(accepted) = incoming.next().await {
                    let shared = shared.clone();
                    tokio::spawn(async move { shared.serve(accepted.stream).await });
                }
            })
        });
        swarm.wait_connected(Duration::from_secs(10)).await?;
        let info = ServerInfo {
            shares_weights: true,
            dtype: "f32".to_owned(),
            ..ServerInfo::new(model.clone(), blocks, ServerState::Online)
        };
        swarm.announce(info).await?;
        let (looker, _) =
            SwarmNode::start(Identity::generate(), SwarmConfig { peers: vec![member], ..SwarmConfig::client() })
                .await?;
        looker.wait_connected(Duration::from_secs(10)).await?;
        let found = async {
            loop {
                let found = looker.lookup(model, blocks).await.unwrap_or_default();
                if found.iter().any(|entry| entry.peer == swarm.local_peer() && entry.info.shares_weights) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), found).await.context("nobody finds the server")?;
        looker.shutdown().await;
        Ok(Self { swarm, shared, task })
    }

    /// Its peer id.
    pub fn peer(&self) -> String {
        self.swarm.local_peer().to_string()
    }

    /// What it was asked for.
    pub fn asked(&self) -> Vec<ContentRequest> {
        self.shared.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Giver {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Shared {
    async fn serve(&self, mut stream: PeerStream) {
        while let Ok(request) = read_content_message::<ContentRequest>(&mut stream).await {
            self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(request);
            // Whoever goes away has his reasons.
            match self.answer(&mut stream, request).await {
                Ok(true) => {}
                _ => return,
            }
        }
    }

    /// Answers a request; whether the stream goes on.
    async fn answer(&self, stream: &mut PeerStream, request: ContentRequest) -> std::io::Result<bool> {
        let Some(file) = self.files.get(&request.hash).filter(|_| self.giving != Giving::NotShared) else {
            write_content_message(stream, &ContentAnswer::NotShared).await?;
            return Ok(true);
        };
        let Some(range) = request.range(file.len() as u64) else { return Ok(false) };
        let mut bytes = file[range.start as usize..range.end as usize].to_vec();
        let (size, length) = (file.len() as u64, bytes.len() as u64);
        match self.giving {
            Giving::Garbage => {
                stream.write_all(&[&[5, 0, 0, 0][..], &[0xee; 500]].concat()).await?;
                stream.flush().await?;
                return Ok(true);
            }
            Giving::Oversized => {
                stream.write_all(&[0xff; 5000]).await?;
                stream.flush().await?;
                return Ok(true);
            }
            Giving::Silence => {
                // Until the other side is gone.
                let _ = stream.read(&mut [0; 16]).await;
                return Ok(false);
            }
            Giving::OtherSize => {
                write_content_message(stream, &ContentAnswer::Bytes { size: size + 1, length }).await?;
            }
            _ => write_content_message(stream, &ContentAnswer::Bytes { size, length }).await?,
        }
        match self.giving {
            Giving::Wrong => bytes[length as usize / 2] ^= 1,
            Giving::Cut(count) | Giving::Stall(count) => bytes.truncate(count),
            _ => {}
        }
        if let Giving::Trickle(pause) = self.giving {
            for byte in &bytes {
                stream.write_all(&[*byte]).await?;
                stream.flush().await?;
                tokio::time::sleep(pause).await;
            }
            return Ok(true);
        }
        stream.write_all(&bytes).await?;
        stream.flush().await?;
        match self.giving {
            Giving::Cut(_) => {
                stream.close().await?;
                Ok(false)
            }
            Giving::Stall(_) => {
                let _ = stream.read(&mut [0; 16]).await;
                Ok(false)
            }
            _ => Ok(true),
        }
    }
}
