//! Files of a model that servers pass on to each other (`--share-weights`). What becomes of it among strangers is in `sharing_hostile`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use petals_e2e::{Giver, Giving, Goldens, HubServer, Node, write_shards};
use petals_model::Checkpoint;
use petals_protocol::{ContentHash, ModelId};
use petals_swarm::PeerId;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

const MODEL: &str = "org/tiny";
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A hub with a model of four blocks, whose files are the second to the fifth of six, and a member of a swarm.
pub(crate) struct Place {
    pub(crate) server: HubServer,
    pub(crate) model: TempDir,
    pub(crate) bootstrap: Node,
}

/// A machine with a cache of its own.
pub(crate) struct Machine {
    pub(crate) home: TempDir,
}

impl Place {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let model = tempfile::tempdir()?;
        anyhow::ensure!(write_shards(&Goldens::load("llama-gqa")?.model(), model.path())? == 6, "other shards");
        let server = HubServer::start()?;
        server.publish(MODEL, "main", model.path())?;
        Ok(Self { server, model, bootstrap: Node::start(&["bootstrap"])? })
    }

    pub(crate) fn serve(&self, machine: &Machine, more: &[&str]) -> anyhow::Result<Node> {
        let endpoint = self.server.endpoint();
        let home = machine.home.path().to_str().context("a path that is not UTF-8")?;
        let environment = [("HF_ENDPOINT", endpoint.as_str()), ("HF_HOME", home), ("HF_HUB_OFFLINE", "")];
        let base = ["serve", "--model", MODEL, "--device", "cpu", "--peers", &self.bootstrap.address];
        Node::start_in(&environment, &[&base[..], more].concat())
    }

    pub(crate) fn sharing(&self, machine: &Machine, blocks: &str) -> anyhow::Result<Node> {
        self.serve(machine, &["--share-weights", "--blocks", blocks])
    }

    /// How often the store was asked for each file of weights, by their numbers, and in which ranges.
    pub(crate) fn asked(&self) -> Vec<(u32, Option<String>)> {
        let number = |file: &str| file.strip_prefix("model-")?.get(..5)?.parse().ok();
        let weights = self.server.log().into_iter().filter(|asked| asked.store && asked.method == "GET");
        let mut asked: Vec<_> =
            weights.filter_map(|asked| Some((number(asked.file.as_deref()?)?, asked.range))).collect();
        asked.sort();
        asked
    }

    /// Whether a machine has a file as it was published.
    pub(crate) fn assert_equal(&self, machine: &Machine, number: u32) -> anyhow::Result<()> {
        let file = shard(number);
        let (got, expected) = (std::fs::read(machine.file(&file)?)?, std::fs::read(self.model.path().join(&file))?);
        assert!(got == expected, "{file} differs");
        Ok(())
    }

    pub(crate) fn id(&self) -> anyhow::Result<ModelId> {
        Ok(Checkpoint::open(self.model.path())?.model_id(Some(MODEL))?)
    }

    pub(crate) fn hash(&self, number: u32) -> anyhow::Result<(ContentHash, Vec<u8>)> {
        let bytes = std::fs::read(self.model.path().join(shard(number)))?;
        Ok((ContentHash(Sha256::digest(&bytes).into()), bytes))
    }
}

impl Machine {
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self { home: tempfile::tempdir()? })
    }

    pub(crate) fn blobs(&self) -> PathBuf {
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

pub(crate) fn peer(node: &Node) -> anyhow::Result<PeerId> {
    Ok(node.address.rsplit('/').next().context("an address without a peer")?.parse()?)
}

/// What a server told of its download, by state.
pub(crate) fn told<'a>(events: &'a [Value], state: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["event"] == "download" && event["state"] == state).collect()
}

/// The bytes of weights that came from peers.
pub(crate) fn from_peers(events: &[Value]) -> u64 {
    told(events, "done").iter().filter_map(|done| done["from_peers"].as_u64()).sum()
}

#[test]
fn two_servers_share_one_download() -> anyhow::Result<()> {
    let (place, [first, second, third]) = (Place::new()?, [Machine::new()?, Machine::new()?, Machine::new()?]);
    let one = place.sharing(&first, "0..4")?;
    let ready = one.event("ready")?;
    let command = one.event("join")?["node"].as_str().unwrap_or_default().to_owned();
    assert!(command.contains("--share-weights"), "{command}");
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

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_download_from_a_peer_goes_on_with_another() -> anyhow::Result<()> {
    let (place, [first, second]) = (Place::new()?, [Machine::new()?, Machine::new()?]);
    let stalling = Giving::Stall(1500);
    let giver =
        Giver::start(&place.bootstrap.address, &place.id()?, "0..4".parse()?, place.model.path(), stalling).await?;
    let (hash, bytes) = place.hash(2)?;
    tokio::task::spawn_blocking(move || {
        let mut node = place.sharing(&second, "0..1")?;
        let part = second.blobs().join(format!("{hash}.incomplete"));
        let deadline = std::time::Instant::now() + PATIENCE;
        while part.metadata().map_or(0, |part| part.len()) != 1500 {
            anyhow::ensure!(std::time::Instant::now() < deadline, "the part never came");
            std::thread::sleep(Duration::from_millis(20));
        }
        node.kill()?;
        // The directory still knows the first one, which is gone by now.
        drop(giver);
        let other = place.sharing(&first, "0..2")?;
        other.event("ready")?;
        place.server.forget();
        let node = place.sharing(&second, "0..1")?;
        let events = node.events("ready")?;
        assert_eq!((place.asked(), from_peers(&events)), (Vec::new(), bytes.len() as u64 - 1500));
        let (from, taking) = (peer(&other)?.to_string(), told(&events, "taking"));
        assert!(taking.len() == 1 && taking[0]["from"] == from.as_str(), "{taking:?}");
        place.assert_equal(&second, 2)
    })
    .await?
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
