//! Ways into a swarm besides `--peers` on the command line.

use petals_e2e::{Goldens, Node, ProcessSwarm, Tune};

#[test]
fn a_client_takes_its_settings_from_the_environment_and_a_file() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("petals.toml");
    let model = goldens.model();
    let dead = "/ip4/127.0.0.1/tcp/9/p2p/12D3KooWSahP5pFRCEfaziPEba7urXGeif6T1y8jmodzdFUvzBHj";
    std::fs::write(&file, format!("peers = '{dead}'\nmodel = '{}'\n[tune]\nhedge_after = '2s'\n", model.display()))?;
    let tune = |command: &[&str]| anyhow::Ok(Tune::bare(command)?.path("--config", &file));
    let routes = tune(&["route"])?.env("PETALS_PEERS", &swarm.bootstrap.address).events()?;
    assert!(routes.iter().any(|event| event["event"] == "route"), "{routes:?}");
    let shown = tune(&["config", "route"])?.env("PETALS_PEERS", &swarm.bootstrap.address).events()?;
    let of = |key: &str| shown.iter().find(|event| event["key"] == key).cloned().unwrap_or_default();
    assert_eq!(
        (of("peers")["source"].as_str(), of("peers")["variable"].as_str()),
        (Some("environment"), Some("PETALS_PEERS"))
    );
    assert_eq!((of("hedge_after")["source"].as_str(), of("hedge_after")["line"].as_u64()), (Some("file"), Some(4)));
    assert_eq!(of("routes")["source"], "default");
    let output = Tune::bare(&["route", "--config", "/nonexistent.toml"])?.output()?;
    assert_eq!(output.status.code(), Some(2));
    Ok(())
}

#[test]
fn a_mistake_in_a_nodes_file_is_named_with_its_line() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("petals.toml");
    let path = file.to_str().unwrap_or_default();
    let refused = |text: &str| {
        std::fs::write(&file, text)?;
        Node::refused(&["bootstrap", "--listen", "/ip4/127.0.0.1/tcp/0", "--config", path])
    };
    let refused_peers = refused("\npeers = ['localhost:80']\n")?;
    assert!(
        refused_peers.contains("petals.toml, line 2: ") && refused_peers.contains("localhost:80"),
        "{refused_peers}"
    );
    let unknown = refused("[node]\nlisten = []\nlisen = 'x'\n")?;
    assert!(unknown.contains("line 3: unknown key `lisen`") && unknown.contains("listen"), "{unknown}");
    std::fs::write(&file, "[node]\nidentity = 'node.key'\n")?;
    let shown = Node::run(&["config", "bootstrap", "--no-upnp", "--config", path])?;
    let of = |key: &str| shown.iter().find(|event| event["key"] == key).cloned().unwrap_or_default();
    let key = directory.path().join("node.key");
    assert_eq!((of("identity")["values"][0].as_str(), of("identity")["line"].as_u64()), (key.to_str(), Some(2)));
    assert_eq!(of("no_upnp")["source"], "flag");
    Ok(())
}
