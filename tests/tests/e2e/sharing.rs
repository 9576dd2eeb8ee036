//! Files of a model that servers pass on to each other (`--share-weights`).

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use futures::{AsyncReadExt, AsyncWriteExt};
use petals_e2e::{Giver, Giving, Goldens, HubServer, Node, write_shards};
use petals_model::Checkpoint;
use petals_protocol::{
    ContentAnswer, ContentError, ContentHash, ContentRequest, MAX_CONTENT_RANGE, ModelId, Span, read_content_message,
    write_content_message,
};
use petals_swarm::{Identity, Multiaddr, PeerId, PeerStream, SwarmConfig, SwarmHandle, SwarmNode};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

const MODEL: &str = "org/tiny";
const PATIENCE: Duration = Duration::from_secs(20);

/// A hub with a model of four blocks, whose files are the second to the fifth of six, and a member of a swarm.
struct Place {
    server: HubServer,
    model: TempDir,
    bootstrap: Node,
}

/// A machine with a cache of its own.
struct Machine {
    home: TempDir,
}

impl Place {
    fn new() -> anyhow::Result<Self> {
        let model = tempfile::tempdir()?;
        anyhow::ensure!(write_shards(&Goldens::load("llama-gqa")?.model(), model.path())? == 6, "other shards");
        let server = HubServer::start()?;
        server.publish(MODEL, "main", model.path())?;
        Ok(Self { server, model, bootstrap: Node::start(&["bootstrap"])? })
    }

    fn serve(&self, machine: &Machine, more: &[&str]) -> anyhow::Result<Node> {
        let endpoint = self.server.endpoint();
        let home = machine.home.path().to_str().context("a path that is not UTF-8")?;
        let environment = [("HF_ENDPOINT", endpoint.as_str()), ("HF_HOME", home), ("HF_HUB_OFFLINE", "")];
        let base = ["serve", "--model", MODEL, "--device", "cpu", "--peers", &self.bootstrap.address];
        Node::start_in(&environment, &[&base[..], more].concat())
    }

    fn sharing(&self, machine: &Machine, blocks: &str) -> anyhow::Result<Node> {
        self.serve(machine, &["--share-weights", "--blocks", blocks])
    }

    /// How often the store was asked for each file of weights, by their numbers, and in which ranges.
    fn asked(&self) -> Vec<(u32, Option<String>)> {
        let number = |file: &str| file.strip_prefix("model-")?.get(..5)?.parse().ok();
        let weights = self.server.log().into_iter().filter(|asked| asked.store && asked.method == "GET");
        let mut asked: Vec<_> =
            weights.filter_map(|asked| Some((number(asked.file.as_deref()?)?, asked.range))).collect();
        asked.sort();
        asked
    }

    /// Whether a machine has a file as it was published.
    fn assert_equal(&self, machine: &Machine, number: u32) -> anyhow::Result<()> {
        let file = shard(number);
        let (got, expected) = (std::fs::read(machine.file(&file)?)?, std::fs::read(self.model.path().join(&file))?);
        assert!(got == expected, "{file} differs");
        Ok(())
    }

    fn id(&self) -> anyhow::Result<ModelId> {
        Ok(Checkpoint::open(self.model.path())?.model_id(Some(MODEL))?)
    }

    fn hash(&self, number: u32) -> anyhow::Result<(ContentHash, Vec<u8>)> {
        let bytes = std::fs::read(self.model.path().join(shard(number)))?;
        Ok((ContentHash(Sha256::digest(&bytes).into()), bytes))
    }
}

impl Machine {
    fn new() -> anyhow::Result<Self> {
        Ok(Self { home: tempfile::tempdir()? })
    }

    fn blobs(&self) -> PathBuf {
        self.home.path().join("hub/models--org--tiny/blobs")
    }

    fn file(&self, name: &str) -> anyhow::Result<PathBuf> {
        let snapshots = self.home.path().join("hub/models--org--tiny/snapshots");
        Ok(snapshots.read_dir()?.next().context("no snapshot")??.path().join(name))
    }
}

fn shard(number: u32) -> String {
    format!("model-{number:05}-of-00006.safetensors")
}

fn peer(node: &Node) -> anyhow::Result<PeerId> {
    Ok(node.address.rsplit('/').next().context("an address without a peer")?.parse()?)
}

/// What a server told of its download, by state.
fn told<'a>(events: &'a [Value], state: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["event"] == "download" && event["state"] == state).collect()
}

/// The bytes of weights that came from peers.
fn from_peers(events: &[Value]) -> u64 {
    told(events, "done").iter().filter_map(|done| done["from_peers"].as_u64()).sum()
}

#[test]
fn two_servers_share_one_download() -> anyhow::Result<()> {
    let (place, [first, second, third]) = (Place::new()?, [Machine::new()?, Machine::new()?, Machine::new()?]);
    let one = place.sharing(&first, "0..4")?;
    let ready = one.event("ready")?;
    let once = |numbers: &[u32]| numbers.iter().map(|number| (*number, None)).collect::<Vec<_>>();
    assert_eq!(place.asked(), once(&[2, 3, 4, 5]));
    // What the second one needs is all there: the hub is asked what the model is, and for none of its weights.
    let two = place.sharing(&second, "1..3")?;
    let events = two.events("ready")?;
    assert_eq!(events.last().context("no event")?["model"], ready["model"]);
    assert_eq!(place.asked(), once(&[2, 3, 4, 5]), "each file was asked for once");
    let (third_file, fourth_file) = (place.hash(3)?.1.len() as u64, place.hash(4)?.1.len() as u64);
    assert_eq!(from_peers(&events), third_file + fourth_file);
    let taking = told(&events, "taking");
    let of_one = peer(&one)?.to_string();
    assert!(taking.len() == 2 && taking.iter().all(|event| event["from"] == of_one.as_str()), "{taking:?}");
    for number in [3, 4] {
        place.assert_equal(&second, number)?;
    }
    for number in [2, 5] {
        assert!(second.file(&shard(number)).is_ok_and(|path| !path.exists()), "only what is needed");
    }
    // A third one takes from the second as well, once the first is gone; what nobody has comes from the hub.
    let mut one = one;
    one.signal("TERM")?;
    one.wait()?;
    let three = place.sharing(&third, "2..4")?;
    let events = three.events("ready")?;
    assert_eq!(place.asked(), once(&[2, 3, 4, 5, 5]));
    assert_eq!(from_peers(&events), fourth_file);
    let of_two = peer(&two)?.to_string();
    assert!(told(&events, "taking").iter().all(|event| event["from"] == of_two.as_str()));
    place.assert_equal(&third, 4)?;
    place.assert_equal(&third, 5)
}

#[test]
fn a_download_that_was_interrupted_goes_on_with_a_peer() -> anyhow::Result<()> {
    let (place, [first, second]) = (Place::new()?, [Machine::new()?, Machine::new()?]);
    let one = place.sharing(&first, "0..2")?;
    one.event("ready")?;
    place.server.forget();
    let (hash, bytes) = place.hash(2)?;
    std::fs::create_dir_all(second.blobs())?;
    std::fs::write(second.blobs().join(format!("{hash}.incomplete")), &bytes[..1500])?;
    let two = place.sharing(&second, "0..1")?;
    let events = two.events("ready")?;
    assert_eq!((place.asked(), from_peers(&events)), (Vec::new(), bytes.len() as u64 - 1500));
    place.assert_equal(&second, 2)
}

#[test]
fn nothing_is_given_or_taken_without_the_flag() -> anyhow::Result<()> {
    let (place, [first, second, third]) = (Place::new()?, [Machine::new()?, Machine::new()?, Machine::new()?]);
    let silent = place.serve(&first, &["--blocks", "0..1"])?;
    silent.event("ready")?;
    place.server.forget();
    let two = place.sharing(&second, "0..1")?;
    let events = two.events("ready")?;
    assert_eq!((place.asked(), from_peers(&events)), (vec![(2, None)], 0));
    assert!(told(&events, "left").is_empty(), "who does not share is not asked");
    place.server.forget();
    let three = place.serve(&third, &["--blocks", "0..1"])?;
    three.event("ready")?;
    assert_eq!(place.asked(), [(2, None)]);
    // Where nothing comes from the hub there is nothing to pass on.
    let local = place.model.path().to_str().context("a path that is not UTF-8")?;
    let refused = Node::refused(&["serve", "--model", local, "--share-weights", "--listen", "/ip4/127.0.0.1/tcp/0"])?;
    assert!(refused.contains("--share-weights") && refused.contains("org/name"), "{refused}");
    let slow = Node::refused(&["serve", "--model", MODEL, "--share-weights", "--share-rate", "10K"])?;
    assert!(slow.contains("at least 1M"), "{slow}");
    let alone = Node::refused(&["serve", "--model", MODEL, "--share-rate", "10M"])?;
    assert!(alone.contains("--share-weights"), "{alone}");
    Ok(())
}

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
    for giving in [Giving::Cut(1000), Giving::Stall(1000)] {
        let (events, asked) = in_spite_of(giving).await?;
        assert_eq!((asked, from_peers(&events)), (vec![(2, Some("bytes=1000-".to_owned()))], 1000), "{giving:?}");
        assert_eq!(told(&events, "left").len(), 1, "{giving:?}");
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

    // One who holds all his places and takes nothing keeps nobody else from taking.
    let mut held = Vec::new();
    for _ in 0..4 {
        let mut stream = asker.open().await?;
        let answer = ask(&mut stream, ContentRequest { hash, offset: 0, length: size }).await?;
        assert_eq!(answer, ContentAnswer::Bytes { size, length: size });
        held.push(stream);
    }
    ends(&mut asker.open().await?).await?;
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
