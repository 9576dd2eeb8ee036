//! Without a hub.

use std::path::Path;

use petals_e2e::HubServer;
use petals_hub::{Hub, HubError, ModelSource};

use crate::support::{MODEL, Place, name, shard};

/// The model for somebody who may not ask, and who could not.
fn offline(place: &Place) -> Hub {
    place.hub_with(|settings| (settings.offline, settings.endpoint) = (true, "http://127.0.0.1:9".to_owned()))
}

#[test]
fn offline_uses_what_is_there_and_names_what_is_not() -> anyhow::Result<()> {
    let place = Place::new()?;
    let error = ModelSource::find(Path::new(MODEL), || Ok(offline(&place))).unwrap_err();
    assert!(matches!(error, HubError::Offline { .. }) && error.is_input());
    let text = error.to_string();
    assert!(text.contains("revision main is not in the cache") && text.contains("HF_HUB_OFFLINE"), "{text}");
    place.source()?.fetch_client()?;
    place.server.forget();
    let source = ModelSource::find(Path::new(MODEL), || Ok(offline(&place)))?;
    source.fetch_client()?;
    let error = source.checkpoint()?.supply("0..2".parse()?).unwrap_err();
    let error = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    assert!(error.contains(&format!("{}, {} are not in the cache", shard(2), shard(3))), "{error}");
    // A commit is known by its folder.
    let pinned = format!("{MODEL}@{}", place.commit);
    assert!(ModelSource::find(Path::new(&pinned), || Ok(offline(&place))).is_ok());
    let other = ModelSource::find(Path::new("org/tiny@other"), || Ok(offline(&place))).unwrap_err().to_string();
    assert!(other.contains("revision other"), "{other}");
    assert!(place.server.log().is_empty());
    Ok(())
}

#[test]
fn a_hub_that_is_gone_is_no_reason_to_stop_whoever_has_the_model() -> anyhow::Result<()> {
    let place = Place::new()?;
    place.source()?.fetch_all()?;
    let gone = HubServer::start()?.endpoint();
    let hub = || place.hub_with(|settings| settings.endpoint.clone_from(&gone));
    let source = ModelSource::find(Path::new(MODEL), || Ok(hub()))?;
    source.fetch_all()?;
    assert_eq!(source.snapshot().map(|snapshot| snapshot.commit()), Some(place.commit.as_str()));
    // One who was shown the door does not come in by the window.
    place.server.account("hf_good", true);
    let refused = place.hub_as("hf_bad").snapshot(&name(MODEL)).unwrap_err();
    assert!(matches!(refused, HubError::Unauthorized { .. }), "{refused}");
    let missing = hub().snapshot(&name("org/other")).unwrap_err();
    assert!(matches!(missing, HubError::Unreachable { .. }), "{missing}");
    Ok(())
}
