//! Room on the disk, and none.

use std::fs;

use petals_hub::{HubError, Progress};
use petals_model::{Device, Dtype};

use crate::support::{MODEL, Place, name, shard};

#[test]
fn a_full_disk_keeps_what_has_come_and_says_what_to_do() -> anyhow::Result<()> {
    let place = Place::new()?;
    let snapshot = place.hub().snapshot(&name(MODEL))?;
    snapshot.fetch(["config.json"])?;
    let file = shard(1);
    snapshot.fetch([&file])?;
    let blob = place.blob(&file)?;
    fs::remove_file(&blob)?;
    // A device on which there is never room.
    std::os::unix::fs::symlink("/dev/full", blob.with_extension("incomplete"))?;
    let error = snapshot.fetch([&file]).unwrap_err();
    assert!(matches!(error, HubError::DiskFull { .. }), "{error}");
    let text = error.to_string();
    let bytes = fs::metadata(place.model.path().join(&file))?.len().to_string();
    for word in [&bytes, &file, "what has come is kept", "HF_HUB_CACHE", "--max-disk"] {
        assert!(text.contains(word), "`{word}` is missing in: {text}");
    }
    fs::remove_file(blob.with_extension("incomplete"))?;
    snapshot.fetch([&file])?;
    place.assert_equal(&file)
}

#[test]
fn a_cache_that_cannot_be_written_is_named() -> anyhow::Result<()> {
    let place = Place::new()?;
    let file = place.cache.path().join("file");
    fs::write(&file, "")?;
    let error = place.hub_with(|settings| settings.cache = file.join("cache")).snapshot(&name(MODEL)).unwrap_err();
    let text = error.to_string();
    assert!(
        matches!(error, HubError::Cache { .. }) && text.contains("HF_HUB_CACHE") && text.contains("cache"),
        "{text}"
    );
    Ok(())
}

#[test]
fn old_models_go_for_new_ones_and_what_is_used_stays() -> anyhow::Result<()> {
    let place = Place::new()?;
    place.server.publish("org/second", "main", place.model.path())?;
    let size = |number| fs::metadata(place.model.path().join(shard(number))).map(|of| of.len());
    let one = size(2)?;
    let hub = |most: u64| place.hub().with_max_disk(Some(most));
    let second = place.cache.path().join("models--org--second");

    let used = hub(3 * one).snapshot(&name(MODEL))?;
    used.fetch([shard(2), shard(3)])?;
    let error = hub(3 * one).snapshot(&name("org/second"))?.fetch([shard(2), shard(3)]).unwrap_err();
    assert!(matches!(error, HubError::TooLarge { .. }), "{error}");
    assert!(error.to_string().contains("--max-disk") && error.to_string().contains("serve fewer blocks"), "{error}");
    place.assert_equal(&shard(2))?;
    assert!(!second.join("blobs").exists(), "nothing is fetched that has no room");

    drop(used);
    hub(3 * one).snapshot(&name("org/second"))?.fetch([shard(2), shard(3)])?;
    assert!(second.join("blobs").is_dir());
    // One of the two was enough.
    let left = [2, 3].iter().filter(|number| place.cached(&shard(**number)).exists()).count();
    assert_eq!(left, 1);
    let removed = place.told().into_iter().find(|told| matches!(told, Progress::Removed { .. }));
    assert_eq!(removed, Some(Progress::Removed { model: MODEL.to_owned(), bytes: one }));
    Ok(())
}

#[test]
fn a_server_that_moves_leaves_what_it_moved_from() -> anyhow::Result<()> {
    let place = Place::new()?;
    let all = |numbers: &[usize]| -> std::io::Result<u64> {
        numbers.iter().map(|number| Ok(fs::metadata(place.model.path().join(shard(*number)))?.len())).sum()
    };
    let small: u64 = ["config.json", "model.safetensors.index.json"]
        .iter()
        .map(|file| fs::metadata(place.model.path().join(file)).map(|of| of.len()))
        .sum::<std::io::Result<u64>>()?;
    // Room for two spans of one block, and no more.
    let most = small + all(&[2, 3])?;
    let hub = place.hub().with_max_disk(Some(most));
    let source = petals_hub::ModelSource::find(std::path::Path::new(MODEL), || Ok(hub))?;
    let checkpoint = source.checkpoint()?;
    for block in 0..4u32 {
        checkpoint.load_span(format!("{block}..{}", block + 1).parse()?, &Device::cpu(), Dtype::F32)?;
        let here: Vec<u32> = (0..4).filter(|other| place.cached(&shard(*other as usize + 2)).exists()).collect();
        assert_eq!(here, (block.saturating_sub(1)..=block).collect::<Vec<_>>(), "what is served, and what was before");
    }
    Ok(())
}
