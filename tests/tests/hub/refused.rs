//! What the hub refuses, and what a person is told.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use petals_e2e::Fault;
use petals_hub::{Hub, HubError, ModelSource, Progress};

use crate::support::{MODEL, Place, name, shard};

/// Why a model cannot be had.
fn refusal(hub: Hub, model: &str) -> HubError {
    ModelSource::find(Path::new(model), || Ok(hub)).expect_err("it was found")
}

fn says(error: &HubError, words: &[&str]) {
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "`{word}` is missing in: {text}");
    }
    assert!(!text.contains("hf_"), "a token shows: {text}");
}

#[test]
fn a_gated_model_says_whose_token_and_which_page() -> anyhow::Result<()> {
    let place = Place::new()?;
    place.server.gate(MODEL);
    place.server.account("hf_stranger", false);
    let page = format!("{}/{MODEL}", place.server.endpoint());
    let error = refusal(place.hub(), MODEL);
    assert!(matches!(error, HubError::Unauthorized { .. }) && error.is_input());
    says(&error, &["401", "restricted", &page, "set HF_TOKEN", "hf auth login"]);
    let error = refusal(place.hub_as("hf_stranger"), MODEL);
    assert!(matches!(error, HubError::Forbidden { .. }));
    says(&error, &["403", "restricted", &page, "accept its conditions", "whose token is in HF_TOKEN"]);
    let error = refusal(place.hub_as("hf_unknown"), MODEL);
    assert!(matches!(error, HubError::Unauthorized { .. }));
    says(&error, &["401", "Invalid credentials", "the token in HF_TOKEN is not taken"]);
    Ok(())
}

#[test]
fn what_is_not_there_is_named() -> anyhow::Result<()> {
    let place = Place::new()?;
    place.server.account("hf_good", true);
    let error = refusal(place.hub(), "org/tinny");
    says(&error, &["org/tinny", "401", "how it is spelt"]);
    let error = refusal(place.hub_as("hf_good"), "org/tinny");
    assert!(matches!(error, HubError::NoRepository { .. }));
    says(&error, &["no model org/tinny at", "no directory of that name here"]);
    let error = refusal(place.hub(), "org/tiny@v9");
    assert!(matches!(error, HubError::NoRevision { .. }));
    says(&error, &["org/tiny has no revision `v9`", "/commits/main"]);
    let error = place.hub().snapshot(&name(MODEL))?.fetch(["config.json", "model.bin"]).unwrap_err();
    assert!(matches!(error, HubError::NoFile { .. }));
    says(&error, &["org/tiny has no file `model.bin`", "/tree/main"]);
    // A file that is listed and is gone.
    place
        .server
        .fault(&format!("hub {}", shard(1)), Fault::Status(404, vec![("x-error-code", "EntryNotFound".into())], ""));
    let error = place.hub().snapshot(&name(MODEL))?.fetch([shard(1)]).unwrap_err();
    says(&error, &["has no file", &shard(1)]);
    Ok(())
}

#[test]
fn models_without_weights_that_are_read_say_what_they_have() -> anyhow::Result<()> {
    let place = Place::new()?;
    let found = |repository: &str, files: &[&str], words: &[&str]| -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        for file in files {
            fs::write(folder.path().join(file), "{}")?;
        }
        place.server.publish(repository, "main", folder.path())?;
        let error = refusal(place.hub(), repository);
        assert!(matches!(error, HubError::NoWeights { .. }), "{error}");
        says(&error, words);
        Ok(())
    };
    found("org/a", &["config.json", "a-Q4_0.gguf", "a-Q8_0.gguf"], &["--model org/a/a-Q4_0.gguf", "a-Q8_0.gguf"])?;
    found("org/b", &["config.json", "pytorch_model.bin"], &["pickles", "safetensors"])?;
    found("org/c", &["adapter_config.json", "adapter_model.safetensors"], &["is an adapter", "--adapter"])?;
    found("org/d", &["config.json"], &["no weights in safetensors", "model.safetensors"])?;
    assert!(place.server.files_asked().is_empty(), "nothing is fetched of what cannot be used");
    Ok(())
}

#[test]
fn too_many_requests_wait_as_long_as_the_hub_says() -> anyhow::Result<()> {
    let place = Place::new()?;
    let later = |seconds: &str| Fault::Status(429, vec![("retry-after", seconds.to_owned())], "rate limited");
    place.server.fault("hub /api/models", later("1"));
    place.server.fault(&format!("hub {}", shard(1)), later("1"));
    let started = Instant::now();
    place.hub().snapshot(&name(MODEL))?.fetch([shard(1)])?;
    assert!(started.elapsed() >= Duration::from_secs(2), "{:?}", started.elapsed());
    place.assert_equal(&shard(1))?;
    let waits = place.told().into_iter().filter_map(|told| match told {
        Progress::Waiting { reason, retry_in_s, .. } => Some((reason, retry_in_s)),
        _ => None,
    });
    let waits = waits.collect::<Vec<_>>();
    assert!(waits.len() == 2 && waits.iter().all(|(reason, wait)| reason.contains("429") && *wait == 1.0), "{waits:?}");
    // Longer than anybody waits at a terminal, and again and again.
    place.server.fault("hub /api/models", later("3600"));
    let error = refusal(place.hub(), "org/other");
    says(&error, &["429", "wait for 3600 s", "set HF_TOKEN"]);
    (0..4).for_each(|_| place.server.fault("hub /api/models", later("0")));
    says(&refusal(place.hub_as("hf_x"), "org/other"), &["429", "try again later"]);
    Ok(())
}

#[test]
fn faults_of_the_hub_are_waited_out_and_then_told() -> anyhow::Result<()> {
    let place = Place::new()?;
    for status in [500, 502, 503] {
        place.server.fault("hub /api/models", Fault::Status(status, Vec::new(), "<html>oops</html>"));
    }
    place.server.fault("hub config.json", Fault::Status(504, Vec::new(), ""));
    place.server.fault("store", Fault::Status(500, Vec::new(), "InternalError"));
    place.hub().snapshot(&name(MODEL))?.fetch(["config.json", &shard(2)])?;
    place.assert_equal(&shard(2))?;
    (0..4).for_each(|_| place.server.fault("hub org/other", Fault::Status(503, Vec::new(), "down for maintenance")));
    let error = refusal(place.hub(), "org/other");
    assert!(matches!(error, HubError::Server { status: 503, attempts: 4, .. }) && !error.is_input(), "{error}");
    says(&error, &["503", "down for maintenance", "after 4 attempts", "try again later"]);
    Ok(())
}

#[test]
fn whoever_answers_and_is_no_hub_is_found_out() -> anyhow::Result<()> {
    let place = Place::new()?;
    let answers = |fault: Fault| {
        place.server.fault("hub /api/models", fault);
        refusal(place.hub(), "org/other")
    };
    says(
        &answers(Fault::Status(200, Vec::new(), "<html>Please log in to the guest network</html>")),
        &["no list of files", "HF_ENDPOINT"],
    );
    says(
        &answers(Fault::Status(200, Vec::new(), r#"{"sha": "../../etc", "siblings": []}"#)),
        &["its commit is", "HF_ENDPOINT"],
    );
    says(&answers(Fault::Status(418, Vec::new(), "teapot")), &["418", "teapot", "HF_ENDPOINT"]);
    says(&answers(Fault::Status(302, Vec::new(), "")), &["without saying where to go"]);
    let own = format!("{}/api/models/org/other/revision/main", place.server.endpoint());
    for _ in 0..12 {
        place.server.fault("hub /api/models", Fault::Redirect(own.clone()));
    }
    says(&refusal(place.hub(), "org/other"), &["more than 10 times"]);
    let gone = refusal(place.hub_with(|settings| settings.endpoint = "http://127.0.0.1:9".to_owned()), MODEL);
    assert!(matches!(gone, HubError::Unreachable { .. }));
    says(&gone, &["127.0.0.1:9", "HF_ENDPOINT", "HTTPS_PROXY"]);
    Ok(())
}

#[test]
fn names_that_lead_out_of_the_snapshot_are_passed_over() -> anyhow::Result<()> {
    let place = Place::new()?;
    let listing = r#"{"sha": "0123456789012345678901234567890123456789", "siblings": [
        {"rfilename": "../../../evil", "size": 1, "blobId": "00"}, {"rfilename": "/etc/evil"}, {"rfilename": "config.json", "blobId": "../../evil"},
        {"rfilename": "model.safetensors", "size": 18446744073709551615, "lfs": {"sha256": "../evil", "size": 18446744073709551615}}]}"#;
    place.server.fault("hub /api/models", Fault::Status(200, Vec::new(), listing));
    let snapshot = place.hub().snapshot(&name(MODEL))?;
    assert_eq!(snapshot.files(), ["config.json", "model.safetensors"]);
    // Sizes beyond all numbers are added up without harm.
    let hash = "ab".repeat(32);
    let large = |name: &str| {
        format!(r#"{{"rfilename": "{name}", "lfs": {{"sha256": "{hash}", "size": 18446744073709551615}}}}"#)
    };
    let listing = format!(r#"{{"sha": "{}", "siblings": [{}, {}]}}"#, "0".repeat(40), large("a"), large("b"));
    place.server.fault("hub /api/models", Fault::Body(listing));
    let error = place.hub().with_max_disk(Some(1 << 40)).snapshot(&name(MODEL))?.fetch(["a", "b"]).unwrap_err();
    assert!(matches!(error, HubError::TooLarge { .. }), "{error}");
    // Neither does a file's own answer say where it goes.
    let evil = Fault::Status(200, vec![("etag", "\"../../evil\"".to_owned())], "{}");
    place.server.fault("HEAD config.json", evil);
    let error = snapshot.fetch(["config.json"]).unwrap_err();
    says(&error, &["ETag", "HF_ENDPOINT"]);
    Ok(())
}
