//! Files of a model among strangers: who gives them wrong, and who asks for what is not shared.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use futures::{AsyncReadExt, AsyncWriteExt};
use petals_e2e::{Giver, Giving, Node};
use petals_protocol::{
    ContentAnswer, ContentError, ContentHash, ContentRequest, MAX_CONTENT_RANGE, Span, read_content_message,
    write_content_message,
};
use petals_swarm::{Identity, Multiaddr, PeerId, PeerStream, SwarmConfig, SwarmHandle, SwarmNode};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::sharing::{Machine, PATIENCE, Place, from_peers, peer, told};

/// A server takes what it needs in spite of a peer that gives in this way; returns what it told, and what the hub was asked for.
async fn in_spite_of(giving: Giving) -> anyhow::Result<(Vec<Value>, Vec<(u32, Option<String>)>)> {
    let (place, machine) = (Place::new()?, Machine::new()?);
    let blocks: Span = "0..4".parse()?;
    let giver = Giver::start(&place.bootstrap.address, &place.id()?, blocks, place.model.path(), giving).await?;
    let serving = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
        let node = place.sharing(&machine, "0..1")?;
        let events = node.events("ready")?;
        place.assert_equal(&machine, 2)?;
        Ok((events, place.asked()))
    });
    let (events, asked) = serving.await??;
    let of_giver = giver.peer();
    let told: Vec<_> = [told(&events, "taking"), told(&events, "left")].concat();
    assert!(told.iter().all(|event| event["from"] == of_giver.as_str()), "{told:?}");
    assert!(giving == Giving::Unsupported || !giver.asked().is_empty(), "{giving:?} was not asked");
    Ok((events, asked))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_gives_what_it_should_is_believed() -> anyhow::Result<()> {
    let (events, asked) = in_spite_of(Giving::Right).await?;
    assert!(asked.is_empty() && told(&events, "left").is_empty(), "{asked:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_are_found_out_and_the_hub_is_asked() -> anyhow::Result<()> {
    let (events, asked) = in_spite_of(Giving::Wrong).await?;
    assert_eq!((asked, from_peers(&events)), (vec![(2, None)], 0));
    let left = told(&events, "left");
    assert!(left.len() == 1 && left[0]["reason"].as_str().is_some_and(|why| why.contains("SHA-256")), "{left:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_stops_or_falls_silent_is_left_and_the_hub_has_the_rest() -> anyhow::Result<()> {
    let givings = [Giving::Cut(1000), Giving::Stall(1000), Giving::Trickle(Duration::from_millis(50))];
    let all = givings.map(|giving| async move { Ok::<_, anyhow::Error>((giving, in_spite_of(giving).await?)) });
    for (giving, (events, asked)) in futures::future::try_join_all(all).await? {
        let came = from_peers(&events);
        assert_eq!(asked, [(2, Some(format!("bytes={came}-")))], "{giving:?}");
        assert!(if let Giving::Trickle(_) = giving { (10..2000).contains(&came) } else { came == 1000 }, "{giving:?}");
        let left = told(&events, "left");
        let reason = left.first().context("nobody was left")?["reason"].as_str().unwrap_or_default().to_owned();
        let why = match giving {
            Giving::Cut(_) => "ended too early",
            Giving::Stall(_) => "nothing came for 10s",
            _ => "slower than 256 KiB/s",
        };
        assert!(left.len() == 1 && reason.contains(why), "{giving:?}: {reason}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_give_nothing_cost_a_moment() -> anyhow::Result<()> {
    for giving in
        [Giving::OtherSize, Giving::Garbage, Giving::Oversized, Giving::NotShared, Giving::Unsupported, Giving::Silence]
    {
        let (events, asked) = in_spite_of(giving).await?;
        assert_eq!((asked, from_peers(&events)), (vec![(2, None)], 0), "{giving:?}");
        assert!(told(&events, "taking").is_empty(), "{giving:?}");
    }
    Ok(())
}

/// Somebody who asks a server for files.
struct Asker {
    node: SwarmHandle,
    server: PeerId,
    address: Multiaddr,
}

impl Asker {
    async fn new(server: &Node) -> anyhow::Result<Self> {
        let (node, _) = SwarmNode::start(Identity::generate(), SwarmConfig::client()).await?;
        Ok(Self { node, server: peer(server)?, address: server.address.parse()? })
    }

    async fn open(&self) -> anyhow::Result<PeerStream> {
        Ok(self.node.open_content_stream(self.server, std::slice::from_ref(&self.address), PATIENCE).await?)
    }

    async fn ask(&self, hash: ContentHash, offset: u64, length: u64) -> anyhow::Result<ContentAnswer> {
        ask(&mut self.open().await?, ContentRequest { hash, offset, length }).await
    }

    /// A whole file, asked for until it was looked at.
    async fn take(&self, hash: ContentHash) -> anyhow::Result<Option<Vec<u8>>> {
        let mut stream = self.open().await?;
        for _ in 0..60 {
            match ask(&mut stream, ContentRequest { hash, offset: 0, length: MAX_CONTENT_RANGE }).await? {
                ContentAnswer::Bytes { length, .. } => {
                    let mut bytes = vec![0; length as usize];
                    tokio::time::timeout(PATIENCE, stream.read_exact(&mut bytes)).await??;
                    return Ok(Some(bytes));
                }
                ContentAnswer::Later => tokio::time::sleep(Duration::from_millis(100)).await,
                _ => return Ok(None),
            }
        }
        anyhow::bail!("it was never looked at")
    }
}

async fn ask(stream: &mut PeerStream, request: ContentRequest) -> anyhow::Result<ContentAnswer> {
    tokio::time::timeout(PATIENCE, async {
        write_content_message(stream, &request).await?;
        Ok(read_content_message(stream).await?)
    })
    .await?
}

async fn ends(stream: &mut PeerStream) -> anyhow::Result<()> {
    let read = tokio::time::timeout(PATIENCE, read_content_message::<ContentAnswer>(stream)).await;
    let read = read.context("the stream goes on")?;
    anyhow::ensure!(matches!(read, Err(ContentError::Closed | ContentError::Io(_))), "{read:?}");
    Ok(())
}

/// A content that lies in a cache beside those of the model.
fn put(blobs: &Path, bytes: &[u8]) -> anyhow::Result<ContentHash> {
    let hash = ContentHash(Sha256::digest(bytes).into());
    std::fs::create_dir_all(blobs)?;
    std::fs::write(blobs.join(hash.to_string()), bytes)?;
    Ok(hash)
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_what_is_not_shared_however_he_asks() -> anyhow::Result<()> {
    let (place, machine) = (Place::new()?, Machine::new()?);
    let node = place.sharing(&machine, "0..4")?;
    node.event("ready")?;
    let (hash, bytes) = place.hash(2)?;
    let size = bytes.len() as u64;
    let asker = Asker::new(&node).await?;
    assert_eq!(asker.take(hash).await?, Some(bytes.clone()));
    assert_eq!(asker.ask(hash, size - 1, 50).await?, ContentAnswer::Bytes { size, length: 1 });

    // Files of the model that are not here, small ones, what else is in its folder, and what belongs to another model.
    let small = ContentHash(Sha256::digest(std::fs::read(place.model.path().join("config.json"))?).into());
    let foreign = put(&machine.blobs(), b"of another revision")?;
    let other = put(&machine.home.path().join("hub/models--org--other/blobs"), b"private")?;
    for wrong in [ContentHash([0; 32]), place.hash(1)?.0, small, foreign, other] {
        assert_eq!(asker.ask(wrong, 0, 10).await?, ContentAnswer::NotShared, "{wrong}");
    }
    // Parts that there are none of.
    for (offset, length) in [(size, 1), (u64::MAX, 1), (0, 0), (0, MAX_CONTENT_RANGE + 1), (5, u64::MAX)] {
        assert_eq!(asker.ask(hash, offset, length).await?, ContentAnswer::BadRange { size }, "{offset}+{length}");
    }
    // What is no request ends its stream, and so does asking in vain again and again.
    for junk in [&[0xff; 64][..], &[3, 0, 0, 0, 1, 2, 3], &[0; 64]] {
        let mut stream = asker.open().await?;
        stream.write_all(junk).await?;
        stream.flush().await?;
        ends(&mut stream).await?;
    }
    let mut stream = asker.open().await?;
    let in_vain = ContentRequest { hash: ContentHash([1; 32]), offset: 0, length: 1 };
    for _ in 0..64 {
        assert_eq!(ask(&mut stream, in_vain).await?, ContentAnswer::NotShared);
    }
    write_content_message(&mut stream, &in_vain).await?;
    ends(&mut stream).await?;

    // One who begins files and takes no more of them has no more places, and keeps nobody else from taking.
    let (mut held, beginning) = (Vec::new(), ContentRequest { hash, offset: 0, length: 1 });
    for _ in 0..4 {
        let mut stream = asker.open().await?;
        assert_eq!(ask(&mut stream, beginning).await?, ContentAnswer::Bytes { size, length: 1 });
        held.push(stream);
    }
    assert_eq!(asker.ask(hash, 0, 1).await?, ContentAnswer::Busy);
    assert_eq!(Asker::new(&node).await?.take(hash).await?, Some(bytes));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_run_left_is_looked_at_before_it_is_given() -> anyhow::Result<()> {
    let (place, machine) = (Place::new()?, Machine::new()?);
    let mut node = place.sharing(&machine, "0..2")?;
    node.event("ready")?;
    node.kill()?;
    let (damaged, bytes) = place.hash(3)?;
    let mut wrong = bytes;
    let last = wrong.len() - 4;
    wrong[last] ^= 1;
    std::fs::write(machine.blobs().join(damaged.to_string()), wrong)?;
    let node = place.sharing(&machine, "0..1")?;
    node.event("ready")?;
    let (asker, (whole, bytes)) = (Asker::new(&node).await?, place.hash(2)?);
    assert_eq!(asker.ask(whole, 0, 1).await?, ContentAnswer::Later);
    assert_eq!(asker.take(whole).await?, Some(bytes));
    assert_eq!(asker.take(damaged).await?, None);
    assert_eq!(asker.ask(damaged, 0, 1).await?, ContentAnswer::NotShared);
    Ok(())
}
