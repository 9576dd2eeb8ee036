//! Connections that are lost, stall or lie, and downloads that go on.

use std::fs;
use std::time::{Duration, Instant};

use petals_e2e::Fault;
use petals_hub::{HubError, Progress};

use crate::support::{MODEL, Place, name, shard};

/// The ranges in which the store was asked for a file.
fn ranges(place: &Place, file: &str) -> Vec<Option<String>> {
    let of = |asked: &petals_e2e::Asked| asked.store && asked.file.as_deref() == Some(file);
    place.server.log().into_iter().filter(of).map(|asked| asked.range).collect()
}

fn fetch(place: &Place, file: &str) -> Result<(), HubError> {
    place.hub().snapshot(&name(MODEL))?.fetch([file])
}

#[test]
fn a_connection_that_is_cut_goes_on_where_it_was() -> anyhow::Result<()> {
    let place = Place::new()?;
    let file = shard(1);
    for bytes in [1000, 0, 500, 1] {
        place.server.fault(&format!("store {file}"), Fault::Cut(bytes));
    }
    fetch(&place, &file)?;
    place.assert_equal(&file)?;
    let asked = ranges(&place, &file);
    let expected = [None, Some("bytes=1000-"), Some("bytes=1000-"), Some("bytes=1500-"), Some("bytes=1501-")];
    assert_eq!(asked.iter().map(Option::as_deref).collect::<Vec<_>>(), expected);
    // The hub was asked for a new address each time: one that is signed is not for ever.
    let waits = place.told().into_iter().filter(|told| matches!(told, Progress::Waiting { .. })).count();
    assert_eq!(waits, 4);
    Ok(())
}

#[test]
fn a_small_file_that_is_cut_goes_on_too() -> anyhow::Result<()> {
    let place = Place::new()?;
    place.server.fault("resolve-cache tokenizer.json", Fault::Cut(100));
    fetch(&place, "tokenizer.json")?;
    place.assert_equal("tokenizer.json")
}

#[test]
fn what_has_come_is_kept_for_the_next_start() -> anyhow::Result<()> {
    let place = Place::new()?;
    let file = shard(1);
    place.server.fault(&format!("store {file}"), Fault::Cut(2000));
    for _ in 0..3 {
        place.server.fault(&format!("store {file}"), Fault::Cut(0));
    }
    let error = fetch(&place, &file).unwrap_err();
    assert!(matches!(error, HubError::Unreachable { attempts: 4, .. }), "{error}");
    let told = error.to_string();
    assert!(told.contains("what has come is kept") && told.contains("after 4 attempts"), "{told}");
    assert!(!told.contains("Signature"), "{told}");
    let [part] = place.incomplete()?.try_into().unwrap();
    assert_eq!(fs::metadata(&part)?.len(), 2000);
    assert!(!place.cached(&file).exists());
    place.server.forget();
    fetch(&place, &file)?;
    place.assert_equal(&file)?;
    assert_eq!(ranges(&place, &file), [Some("bytes=2000-".to_owned())]);
    assert!(!part.exists());
    Ok(())
}

#[test]
fn a_part_that_was_damaged_is_fetched_from_its_start() -> anyhow::Result<()> {
    let place = Place::new()?;
    let file = shard(1);
    let right = fs::read(place.model.path().join(&file))?;
    fetch(&place, &file)?;
    let blob = place.blob(&file)?;
    let part = blob.with_extension("incomplete");
    // Other bytes; more than it has; all of it, with one wrong.
    let mut wrong = right.clone();
    wrong[5] ^= 1;
    for content in [vec![7; 1000], vec![7; right.len() + 1], wrong] {
        fs::remove_file(&blob)?;
        fs::write(&part, content)?;
        fetch(&place, &file)?;
        place.assert_equal(&file)?;
        assert!(!part.exists());
    }
    // All of it and right: nothing is left to ask for.
    fs::rename(&blob, &part)?;
    place.server.forget();
    fetch(&place, &file)?;
    place.assert_equal(&file)?;
    assert!(ranges(&place, &file).is_empty());
    Ok(())
}

#[test]
fn bytes_that_are_not_the_hubs_are_refused_the_second_time() -> anyhow::Result<()> {
    let place = Place::new()?;
    let file = shard(1);
    place.server.fault(&format!("store {file}"), Fault::Flip(17));
    fetch(&place, &file)?;
    place.assert_equal(&file)?;
    // A small one, of which only git's hash is known.
    for _ in 0..2 {
        place.server.fault("resolve-cache config.json", Fault::Flip(3));
    }
    let error = fetch(&place, "config.json").unwrap_err();
    assert!(matches!(&error, HubError::Corrupt { file, .. } if file == "config.json"), "{error}");
    assert!(!place.cached("config.json").exists() && place.incomplete()?.is_empty(), "nothing of it stays");
    Ok(())
}

#[test]
fn a_server_without_ranges_sends_all_of_it_again() -> anyhow::Result<()> {
    let place = Place::new()?;
    let file = shard(1);
    place.server.fault(&format!("store {file}"), Fault::Cut(3000));
    place.server.fault(&format!("store {file}"), Fault::NoRanges);
    fetch(&place, &file)?;
    place.assert_equal(&file)
}

#[test]
fn silence_is_not_waited_for_for_ever() -> anyhow::Result<()> {
    let place = Place::new()?;
    let file = shard(1);
    place.server.fault(&format!("store {file}"), Fault::Stall(1234, Duration::from_secs(20)));
    let started = Instant::now();
    fetch(&place, &file)?;
    place.assert_equal(&file)?;
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    assert_eq!(ranges(&place, &file)[1].as_deref(), Some("bytes=1234-"));
    Ok(())
}

#[test]
fn an_address_that_is_no_longer_signed_is_asked_for_anew() -> anyhow::Result<()> {
    let place = Place::new()?;
    let file = shard(1);
    place
        .server
        .fault(&format!("store {file}"), Fault::Status(403, Vec::new(), "<Error><Code>AccessDenied</Code></Error>"));
    fetch(&place, &file)?;
    place.assert_equal(&file)
}

#[test]
fn two_who_want_the_same_fetch_it_once() -> anyhow::Result<()> {
    let place = Place::new()?;
    let file = shard(1);
    place.server.fault(&format!("store {file}"), Fault::Stall(100, Duration::from_millis(400)));
    let fetched: Vec<_> = std::thread::scope(|scope| {
        let both = [0, 1].map(|_| scope.spawn(|| fetch(&place, &file)));
        both.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert!(fetched.iter().all(Result::is_ok), "{fetched:?}");
    place.assert_equal(&file)?;
    // The one request that stalled may have been cut by its own end.
    let whole = ranges(&place, &file).into_iter().filter(Option::is_none).count();
    assert_eq!(whole, 1);
    Ok(())
}
