//! Others who are asked before the hub: what they give, and what becomes of it if it is not what it should be.

use std::fs;
use std::io::{self, Cursor, Read};
use std::sync::{Arc, Mutex, PoisonError};

use petals_e2e::{Asked, Fault};
use petals_hub::{Found, HubError, Nearby, Progress, SharedContent, Wanted};

use crate::support::{MODEL, Place, name, shard};

/// What somebody sends in place of what is wanted.
#[derive(Debug, Clone, Copy)]
enum Habit {
    Honest,
    /// One byte is another one.
    Lies,
    /// So many bytes, then nothing more.
    Cuts(usize),
    /// So many bytes, then an error.
    Breaks(usize),
    /// More than there is.
    Overflows,
}

/// Others with one file, by their habits. Each is asked until it failed.
#[derive(Debug)]
struct Others {
    content: Vec<u8>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    habits: Vec<(&'static str, Habit)>,
    starts: Vec<u64>,
    failed: Vec<String>,
    lied: Vec<String>,
}

impl Others {
    fn new(place: &Place, file: &str, habits: &[(&'static str, Habit)]) -> anyhow::Result<Arc<Self>> {
        let content = fs::read(place.model.path().join(file))?;
        let inner = Inner { habits: habits.to_vec(), starts: Vec::new(), failed: Vec::new(), lied: Vec::new() };
        Ok(Arc::new(Self { content, inner: Mutex::new(inner) }))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes, and then an error.
struct Breaking(Cursor<Vec<u8>>);

impl Read for Breaking {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buffer)? {
            0 => Err(io::Error::other("the peer is gone")),
            count => Ok(count),
        }
    }
}

impl Nearby for Others {
    fn find(&self, wanted: &Wanted<'_>) -> Option<Found> {
        let mut inner = self.lock();
        let (from, habit) = *inner.habits.first()?;
        if wanted.size != self.content.len() as u64 {
            return None;
        }
        inner.starts.push(wanted.start);
        let mut rest = self.content[wanted.start as usize..].to_vec();
        let bytes: Box<dyn Read + Send> = match habit {
            Habit::Honest => Box::new(Cursor::new(rest)),
            Habit::Lies => {
                rest[7] ^= 1;
                Box::new(Cursor::new(rest))
            }
            Habit::Cuts(count) => Box::new(Cursor::new(rest[..count].to_vec())),
            Habit::Breaks(count) => Box::new(Breaking(Cursor::new(rest[..count].to_vec()))),
            Habit::Overflows => {
                rest.push(0);
                Box::new(Cursor::new(rest))
            }
        };
        Some(Found { from: from.to_owned(), bytes })
    }

    fn failed(&self, from: &str) {
        let mut inner = self.lock();
        inner.habits.retain(|(other, _)| *other != from);
        inner.failed.push(from.to_owned());
    }

    fn lied(&self, from: &str) {
        let mut inner = self.lock();
        inner.habits.retain(|(other, _)| *other != from);
        inner.lied.push(from.to_owned());
    }
}

/// The ranges in which the store was asked for a file.
fn ranges(place: &Place, file: &str) -> Vec<Option<String>> {
    let of = |asked: &Asked| asked.store && asked.file.as_deref() == Some(file);
    place.server.log().into_iter().filter(of).map(|asked| asked.range).collect()
}

fn fetch(place: &Place, others: &Arc<Others>, file: &str) -> Result<(), HubError> {
    place.hub().with_nearby(others.clone()).snapshot(&name(MODEL))?.fetch([file])
}

/// Bytes that came from others, as was told at the end.
fn from_peers(place: &Place) -> Option<u64> {
    place.told().into_iter().rev().find_map(|told| match told {
        Progress::Done { from_peers, .. } => Some(from_peers),
        _ => None,
    })
}

#[test]
fn what_others_have_is_not_asked_of_the_hub() -> anyhow::Result<()> {
    let place = Place::new()?;
    let file = shard(2);
    let others = Others::new(&place, &file, &[("one", Habit::Honest)])?;
    fetch(&place, &others, &file)?;
    place.assert_equal(&file)?;
    assert!(ranges(&place, &file).is_empty() && place.incomplete()?.is_empty());
    assert_eq!(from_peers(&place), Some(others.content.len() as u64));
    let taking = Progress::Taking { model: MODEL.to_owned(), file: file.clone(), from: "one".to_owned() };
    assert!(place.told().contains(&taking) && taking.to_string().contains("from peer one"), "{:?}", place.told());
    // What only git's hash is known of is the hub's alone.
    let small = Others::new(&place, "config.json", &[("one", Habit::Lies)])?;
    fetch(&place, &small, "config.json")?;
    place.assert_equal("config.json")?;
    assert!(small.lock().starts.is_empty());
    Ok(())
}

#[test]
fn a_download_that_was_interrupted_goes_on_with_others() -> anyhow::Result<()> {
    let place = Place::new()?;
    let file = shard(2);
    place.server.fault(&format!("store {file}"), Fault::Cut(2000));
    for _ in 0..3 {
        place.server.fault(&format!("store {file}"), Fault::Cut(0));
    }
    let nobody = Others::new(&place, &file, &[])?;
    fetch(&place, &nobody, &file).unwrap_err();
    place.server.forget();
    let others = Others::new(&place, &file, &[("one", Habit::Honest)])?;
    fetch(&place, &others, &file)?;
    place.assert_equal(&file)?;
    assert_eq!(others.lock().starts, [2000]);
    assert!(ranges(&place, &file).is_empty());
    assert_eq!(from_peers(&place), Some(others.content.len() as u64 - 2000));
    Ok(())
}

#[test]
fn one_after_the_other_and_the_hub_for_the_rest() -> anyhow::Result<()> {
    let place = Place::new()?;
    let file = shard(2);
    let habits = [("one", Habit::Cuts(1000)), ("two", Habit::Breaks(500)), ("three", Habit::Cuts(0))];
    let others = Others::new(&place, &file, &habits)?;
    fetch(&place, &others, &file)?;
    place.assert_equal(&file)?;
    let inner = others.lock();
    assert_eq!(
        (inner.starts.as_slice(), inner.failed.as_slice()),
        (&[0, 1000, 1500][..], &["one", "two", "three"].map(str::to_owned)[..])
    );
    assert!(inner.lied.is_empty());
    assert_eq!(ranges(&place, &file), [Some("bytes=1500-".to_owned())]);
    let left = |told: &Progress| matches!(told, Progress::Left { from, reason, .. } if from == "two" && reason.contains("the peer is gone"));
    assert!(place.told().iter().any(left), "{:?}", place.told());
    assert_eq!(from_peers(&place), Some(1500));
    Ok(())
}

#[test]
fn a_liar_costs_one_file_and_is_remembered() -> anyhow::Result<()> {
    let place = Place::new()?;
    let file = shard(2);
    let others = Others::new(&place, &file, &[("liar", Habit::Lies), ("honest", Habit::Honest)])?;
    fetch(&place, &others, &file)?;
    place.assert_equal(&file)?;
    assert_eq!(others.lock().lied, ["liar"]);
    // All of it comes from the hub then: nobody knows whom else to believe.
    assert_eq!((ranges(&place, &file), others.lock().starts.len()), (vec![None], 1));
    let left = |told: &Progress| matches!(told, Progress::Left { from, reason, .. } if from == "liar" && reason.contains("SHA-256"));
    assert!(place.told().iter().any(left), "{:?}", place.told());
    assert_eq!(from_peers(&place), Some(0));
    Ok(())
}

#[test]
fn lies_of_others_are_not_laid_to_the_hubs_charge() -> anyhow::Result<()> {
    let place = Place::new()?;
    let file = shard(2);
    let others = Others::new(&place, &file, &[("liar", Habit::Lies)])?;
    // The hub's own bytes are damaged once as well, which alone is no reason to give up.
    place.server.fault(&format!("store {file}"), Fault::Flip(17));
    fetch(&place, &others, &file)?;
    place.assert_equal(&file)?;
    assert_eq!(ranges(&place, &file), [None, None]);
    Ok(())
}

#[test]
fn more_than_there_is_is_not_taken() -> anyhow::Result<()> {
    let place = Place::new()?;
    let file = shard(2);
    let others = Others::new(&place, &file, &[("one", Habit::Overflows)])?;
    fetch(&place, &others, &file)?;
    place.assert_equal(&file)?;
    assert_eq!(others.lock().failed, ["one"]);
    Ok(())
}

#[test]
fn only_whole_and_right_files_of_the_revision_are_shared() -> anyhow::Result<()> {
    let place = Place::new()?;
    let (first, second) = (shard(1), shard(2));
    let snapshot = place.hub().snapshot(&name(MODEL))?;
    snapshot.fetch([&first, "config.json"])?;
    let hash = |file: &str| -> anyhow::Result<String> {
        Ok(place.blob(file)?.file_name().unwrap().to_string_lossy().into_owned())
    };
    let (of_first, of_config) = (hash(&first)?, hash("config.json")?);
    let length = fs::metadata(place.model.path().join(&first))?.len();
    // It came in this process, so it was held against its hash.
    let shared = |snapshot: &petals_hub::Snapshot, hash: &str| match snapshot.shared_content(hash) {
        Some(SharedContent::Whole { mut file, size }) => {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            assert_eq!(bytes.len() as u64, size);
            Some(Some(size))
        }
        Some(_) => Some(None),
        None => None,
    };
    assert_eq!(shared(&snapshot, &of_first), Some(Some(length)));
    // No small ones, nothing by a path, nothing that is not of it, nothing that has not come whole.
    let blobs = place.folder().join("blobs");
    let foreign = "0123456789abcdef".repeat(4);
    fs::write(blobs.join(&foreign), "of another revision")?;
    fs::write(blobs.join(format!("{of_first}.incomplete")), "a part")?;
    for wrong in [of_config.as_str(), &foreign, "", "../refs/main", &format!("{of_first}.incomplete"), &of_first[..63]]
    {
        assert_eq!(shared(&snapshot, wrong), None, "{wrong}");
    }
    // Another process finds it in the cache, with a hub and without, and has to look first.
    for offline in [false, true] {
        let later = place.hub_with(|settings| settings.offline = offline).snapshot(&name(MODEL))?;
        assert_eq!(shared(&later, &of_first), Some(None));
        later.check_content(&of_first, || false);
        assert_eq!(shared(&later, &of_first), Some(None), "a check that was stopped says nothing");
        later.check_content(&of_first, || true);
        assert_eq!(shared(&later, &of_first), Some(Some(length)));
        assert_eq!(shared(&later, &foreign), None);
    }
    // One that was damaged is not shared, however often it is asked for.
    snapshot.fetch([&second])?;
    let (blob, of_second) = (place.blob(&second)?, hash(&second)?);
    let mut bytes = fs::read(&blob)?;
    bytes[99] ^= 1;
    fs::write(&blob, bytes)?;
    let later = place.hub().snapshot(&name(MODEL))?;
    assert_eq!(shared(&later, &of_second), Some(None));
    later.check_content(&of_second, || true);
    assert_eq!(shared(&later, &of_second), None);
    Ok(())
}
