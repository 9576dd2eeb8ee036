//! What is asked for, and how it lies in the cache.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use petals_e2e::{Goldens, HubServer};
use petals_hub::{ModelSource, Progress};
use petals_model::{Device, Dtype};
use petals_protocol::Span;

use crate::support::{MODEL, Place, SHARDS, name, shard};

fn set(files: &[&str]) -> BTreeSet<String> {
    files.iter().map(|file| (*file).to_owned()).collect()
}

#[test]
fn a_server_asks_for_the_shards_of_its_blocks_alone() -> anyhow::Result<()> {
    let place = Place::new()?;
    let checkpoint = place.source()?.checkpoint()?;
    assert_eq!(place.server.files_asked(), set(&["config.json", "model.safetensors.index.json"]));
    let span: Span = "1..3".parse()?;
    let stack = checkpoint.load_span(span, &Device::cpu(), Dtype::F32)?;
    assert_eq!(stack.weight_bytes(), checkpoint.span_bytes(span, Dtype::F32));
    let (second, third) = (shard(3), shard(4));
    let expected = set(&["config.json", "model.safetensors.index.json", &second, &third]);
    assert_eq!(place.server.files_asked(), expected);
    // The model is the one that a copy of it on this machine is.
    let local = petals_model::Checkpoint::open(place.model.path())?;
    assert_eq!(checkpoint.fingerprint(), local.fingerprint());
    assert_eq!(checkpoint.model_id(None)?, local.model_id(Some(MODEL))?);
    place.server.forget();
    checkpoint.load_span("2..4".parse()?, &Device::cpu(), Dtype::F32)?;
    assert_eq!(place.server.files_asked(), set(&[&shard(5)]), "what is here is not asked for again");
    Ok(())
}

#[test]
fn a_client_asks_for_what_it_reads_alone() -> anyhow::Result<()> {
    let place = Place::new()?;
    fs::create_dir(place.model.path().join("additional_chat_templates"))?;
    fs::write(place.model.path().join("additional_chat_templates/tool_use.jinja"), "{{ messages }}")?;
    fs::write(place.model.path().join("README.md"), "not read")?;
    fs::write(place.model.path().join("pytorch_model.bin"), "not read")?;
    let commit = place.server.publish(MODEL, "main", place.model.path())?;
    let mut place = place;
    place.commit = commit;
    place.source()?.fetch_client()?;
    let (first, last) = (shard(1), shard(SHARDS));
    let expected = [
        "config.json",
        "model.safetensors.index.json",
        "tokenizer.json",
        "generation_config.json",
        "additional_chat_templates/tool_use.jinja",
        &first,
        &last,
    ];
    assert_eq!(place.server.files_asked(), set(&expected));
    for file in expected {
        place.assert_equal(file)?;
    }
    place.server.forget();
    place.source()?.fetch_client()?;
    assert_eq!(place.server.files_asked(), set(&[]), "nothing is fetched twice");
    Ok(())
}

#[test]
fn weights_in_one_file_are_not_fetched_before_they_are_needed() -> anyhow::Result<()> {
    let model = tempfile::tempdir()?;
    for entry in fs::read_dir(Goldens::load("qwen3")?.model())? {
        let entry = entry?;
        fs::copy(entry.path(), model.path().join(entry.file_name()))?;
    }
    let place = Place::of(model)?;
    let checkpoint = place.source()?.checkpoint()?;
    let local = petals_model::Checkpoint::open(place.model.path())?;
    assert_eq!(checkpoint.fingerprint(), local.fingerprint());
    checkpoint.check_span(checkpoint.blocks())?;
    let ranges: Vec<_> = place.server.log().into_iter().filter(|asked| asked.store).map(|asked| asked.range).collect();
    assert!(ranges.len() == 2 && ranges[0].as_deref() == Some("bytes=0-7"), "{ranges:?}");
    assert!(!place.cached("model.safetensors").exists());
    checkpoint.load_span("0..1".parse()?, &Device::cpu(), Dtype::F32)?;
    place.assert_equal("model.safetensors")
}

#[test]
fn the_cache_is_the_hubs_own() -> anyhow::Result<()> {
    let place = Place::new()?;
    place.source()?.fetch_client()?;
    let folder = place.folder();
    assert_eq!(fs::read_to_string(folder.join("refs/main"))?, place.commit);
    let link = fs::read_link(place.cached("config.json"))?;
    // `git hash-object config.json`, and `sha256sum` of a shard.
    assert_eq!(link.parent(), Some(Path::new("../../blobs")));
    assert_eq!(link.file_name().map(|name| name.len()), Some(40));
    assert_eq!(fs::read_link(place.cached(&shard(1)))?.file_name().map(|name| name.len()), Some(64));
    assert!(place.incomplete()?.is_empty());
    assert!(place.cache.path().join(".locks/models--org--tiny").is_dir());
    Ok(())
}

#[test]
fn a_cache_that_python_filled_is_used_as_it_is() -> anyhow::Result<()> {
    let place = Place::new()?;
    // As huggingface_hub writes it: contents by their hashes, links, and the commit with a line end from a person's editor.
    place.source()?.fetch_all()?;
    fs::write(place.folder().join("refs/main"), format!("{}\n", place.commit))?;
    fs::remove_dir_all(place.folder().join(".no_exist")).ok();
    fs::remove_dir_all(place.cache.path().join(".locks"))?;
    place.server.forget();
    place.source()?.fetch_all()?;
    assert_eq!(place.server.files_asked(), set(&[]));
    // A content without its link, as after an upgrade to a revision that shares it.
    fs::remove_file(place.cached(&shard(2)))?;
    place.source()?.fetch_all()?;
    assert_eq!(place.server.files_asked(), set(&[]), "a content that is here is linked");
    place.assert_equal(&shard(2))
}

#[test]
fn the_token_goes_to_the_hub_and_nowhere_else() -> anyhow::Result<()> {
    let place = Place::new()?;
    place.server.gate(MODEL);
    place.server.account("hf_good", true);
    let source = ModelSource::find(Path::new(MODEL), || Ok(place.hub_as("hf_good")))?;
    source.fetch_all()?;
    place.assert_equal(&shard(1))?;
    let log = place.server.log();
    let bearer = Some("Bearer hf_good".to_owned());
    assert!(log.iter().any(|asked| asked.store), "no large file was fetched");
    for asked in log {
        assert_eq!(asked.authorization, if asked.store { None } else { bearer.clone() }, "{asked:?}");
    }
    // A hub that sends us to another machine which claims to be one.
    let other = HubServer::start()?;
    place.server.publish("org/moved", "main", place.model.path())?;
    place
        .server
        .fault("hub org/moved config.json", petals_e2e::Fault::Redirect(format!("{}/org/moved/x", other.endpoint())));
    // It refuses whoever does not say who he is, and the next time the hub itself answers.
    ModelSource::find(Path::new("org/moved"), || Ok(place.hub_as("hf_good")))?;
    let leaked: Vec<_> = other.log().into_iter().filter(|asked| asked.authorization.is_some()).collect();
    assert!(!other.log().is_empty() && leaked.is_empty(), "{leaked:?}");
    Ok(())
}

#[test]
fn a_revision_may_be_a_branch_a_tag_or_a_commit() -> anyhow::Result<()> {
    let place = Place::new()?;
    fs::write(place.model.path().join("generation_config.json"), "{\"eos_token_id\": 7}")?;
    let newer = place.server.publish(MODEL, "refs/pr/3", place.model.path())?;
    assert_ne!(newer, place.commit);
    let hub = place.hub();
    for (revision, commit) in [("main", &place.commit), ("refs/pr/3", &newer), (newer.as_str(), &newer)] {
        let snapshot = hub.snapshot(&name(&format!("{MODEL}@{revision}")))?;
        snapshot.fetch(["generation_config.json", &shard(1)])?;
        assert_eq!(snapshot.commit(), commit);
        assert!(snapshot.directory().join(shard(1)).is_file());
    }
    assert_eq!(fs::read_to_string(place.folder().join("refs/refs/pr/3"))?, newer);
    assert!(!place.folder().join("refs").join(&newer).exists());
    // What both revisions have was fetched once.
    let fetched = place.server.log().into_iter().filter(|asked| asked.store && asked.file == Some(shard(1)));
    assert_eq!(fetched.count(), 1);
    // A branch that has moved on is followed.
    place.server.publish(MODEL, "main", place.model.path())?;
    assert_eq!(hub.snapshot(&name(MODEL))?.commit(), newer);
    Ok(())
}

#[test]
fn a_hub_that_lists_names_only_is_asked_for_the_rest() -> anyhow::Result<()> {
    let place = Place::new()?;
    place.server.list_names_only();
    place.source()?.fetch_client()?;
    for file in ["config.json", "tokenizer.json", &shard(1)] {
        place.assert_equal(file)?;
    }
    assert_eq!(fs::read_link(place.cached(&shard(1)))?.file_name().map(|name| name.len()), Some(64));
    Ok(())
}

#[test]
fn progress_is_told_from_the_first_byte_to_the_last() -> anyhow::Result<()> {
    let place = Place::new()?;
    let snapshot = place.hub().snapshot(&name(MODEL))?;
    snapshot.fetch([shard(1), shard(2)])?;
    let told = place.told();
    let bytes: u64 =
        [1, 2].iter().map(|number| fs::metadata(place.model.path().join(shard(*number))).unwrap().len()).sum();
    let first = Progress::Coming { model: MODEL.into(), files: 2, done_bytes: 0, bytes };
    assert_eq!(told.first(), Some(&first));
    assert!(
        matches!(told.last(), Some(Progress::Done { files: 2, bytes: done, commit, .. }) if *done == bytes && *commit == place.commit),
        "{told:?}"
    );
    Ok(())
}

#[test]
fn a_gguf_is_named_with_its_repository() -> anyhow::Result<()> {
    let ggufs = tempfile::tempdir()?;
    let golden = fs::read_dir(Goldens::root().join("gguf"))?.flatten().map(|entry| entry.path());
    let golden = golden.filter(|path| path.extension().is_some_and(|end| end == "gguf")).min().unwrap();
    fs::create_dir(ggufs.path().join("q"))?;
    fs::copy(&golden, ggufs.path().join("q/tiny-Q8_0.gguf"))?;
    let place = Place::of(ggufs)?;
    let error = place.source().unwrap_err().to_string();
    assert!(error.contains("--model org/tiny/q/tiny-Q8_0.gguf"), "{error}");
    let source = ModelSource::find(Path::new("org/tiny/q/tiny-Q8_0.gguf"), || Ok(place.hub()))?;
    source.fetch_client()?;
    let (named, local) = (source.checkpoint()?, petals_model::Checkpoint::open(&golden)?);
    assert_eq!(named.fingerprint(), local.fingerprint());
    assert_eq!(named.model_id(None)?.name(), "tiny-Q8_0");
    Ok(())
}
