//! What a server learns about itself from others: another one under its identity, an address where nobody reaches it, a wrong clock.

use std::process::Command;

use petals_e2e::{Goldens, Node, ProcessSwarm};

#[test]
fn a_second_server_under_one_identity_refuses_to_start() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &[])?;
    let directory = tempfile::tempdir()?;
    let (key, copy) = (directory.path().join("same.key"), directory.path().join("copy.key"));
    let path = |file: &std::path::Path| file.to_str().unwrap_or_default().to_owned();
    let first = swarm.spawn_server(&["--blocks", "0..2", "--identity", &path(&key)])?;
    first.event("ready")?;
    let model = path(&goldens.model());
    let serve = |key: &str| {
        let peers = ["serve", "--model", &model, "--device", "cpu", "--peers", &swarm.bootstrap.address];
        Node::refused(
            &[&peers[..], &["--blocks", "2..4", "--identity", key, "--listen", "/ip4/127.0.0.1/tcp/0"]].concat(),
        )
    };
    let refused = serve(&path(&key))?;
    assert!(refused.contains("same.key is in use") && refused.contains("--identity"), "{refused}");
    // On another machine there is no lock; there the directory knows, and the other one answers.
    std::fs::copy(&key, &copy)?;
    let refused = serve(&path(&copy))?;
    assert!(refused.contains("in use by another node") && refused.contains("0..2"), "{refused}");
    let events = swarm.tune("route")?.output()?;
    assert!(String::from_utf8_lossy(&events.stderr).contains("2..4"), "the first one serves on");
    Ok(())
}

#[test]
fn doctor_does_not_believe_an_announced_address_that_nobody_reaches() -> anyhow::Result<()> {
    let bootstrap = Node::start(&["bootstrap"])?;
    let announce =
        ["doctor", "--no-upnp", "--no-mdns", "--listen", "/ip4/127.0.0.1/tcp/0", "--peers", &bootstrap.address];
    // A port that nothing listens on.
    let refused = Node::refused(&[&announce[..], &["--announce", "/ip4/127.0.0.1/tcp/9", "--json"]].concat())?;
    assert!(refused.contains("announced address /ip4/127.0.0.1/tcp/9"), "{refused}");
    Ok(())
}

#[test]
fn doctor_tells_of_the_server_that_runs_with_its_identity() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &[])?;
    let directory = tempfile::tempdir()?;
    let (key, model) = (directory.path().join("node.key"), goldens.model());
    let (key, model) = (key.to_str().unwrap_or_default(), model.to_str().unwrap_or_default());
    let server = swarm.spawn_server(&["--blocks", "1..3", "--identity", key])?;
    server.event("ready")?;
    let peers = ["doctor", "--model", model, "--device", "cpu", "--peers", &swarm.bootstrap.address, "--identity", key];
    let doctor = Node::output(&[&peers[..], &["--listen", "/ip4/127.0.0.1/tcp/0"]].concat())?;
    let text = String::from_utf8_lossy(&doctor.stdout);
    assert!(doctor.status.success(), "{text}");
    assert!(text.contains("a node runs with it on this machine"), "{text}");
    assert!(text.contains("the swarm knows it: blocks 1..3, online"), "{text}");
    Ok(())
}

#[test]
fn doctor_keeps_its_log_away_from_its_answers_and_private_things_out_of_its_report() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    let directory = tempfile::tempdir()?;
    let (key, report) = (directory.path().join("my secret.key"), directory.path().join("report.txt"));
    let path = |file: &std::path::Path| file.to_str().unwrap_or_default().to_owned();
    let peer = swarm.bootstrap.address.clone();
    let (model, key_path, report_path) = (path(&goldens.model()), path(&key), path(&report));
    let doctor = ["doctor", "--model", &model, "--device", "cpu", "--peers", &peer, "--identity", &key_path];
    let doctor = [&doctor[..], &["--listen", "/ip4/127.0.0.1/tcp/0", "--report", &report_path]].concat();

    let quiet = Node::output(&doctor)?;
    let (said, log) = (String::from_utf8_lossy(&quiet.stdout), String::from_utf8_lossy(&quiet.stderr));
    assert!(quiet.status.success() && said.contains("ok    versions"), "{said}{log}");
    assert_eq!(log, "", "nobody asked for the log");
    let written = std::fs::read_to_string(&report)?;
    let id = peer.rsplit('/').next().unwrap_or_default();
    let own = std::fs::canonicalize(directory.path())?;
    for private in [id, &model, "my secret.key", &path(&own), &peer] {
        assert!(!written.contains(private), "{private} is in the report:\n{written}");
    }
    for wanted in ["petals-node 0.", "commit", "processor", "ok    memory", "listening", "/ip4/127.0.0.1/tcp/"] {
        assert!(written.contains(wanted), "{wanted} is not in the report:\n{written}");
    }

    let again = Node::refused(&doctor)?;
    assert!(again.contains("report.txt") && again.contains("does not exist yet"), "{again}");
    let wordy = Node::output_in(&[("RUST_LOG", "info")], doctor.get(..doctor.len() - 2).unwrap_or_default())?;
    let log = String::from_utf8_lossy(&wordy.stderr);
    assert!(log.contains("listening") && !String::from_utf8_lossy(&wordy.stdout).contains("INFO"), "{log}");
    Ok(())
}

#[test]
fn a_clock_that_is_minutes_off_is_said_by_server_and_client() -> anyhow::Result<()> {
    if Command::new("faketime").arg("--version").output().is_err() {
        eprintln!("skipped: there is no faketime here");
        return Ok(());
    }
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &[])?;
    let model = goldens.model();
    let model = model.to_str().unwrap_or_default();
    let serve = ["serve", "--model", model, "--device", "cpu", "--blocks", "0..4", "--peers", &swarm.bootstrap.address];
    let server = Node::start_at("+3m", &serve)?;
    let off = server.event("clock_off")?;
    let ahead = off["ahead_s"].as_f64().unwrap_or_default();
    assert!((170.0..190.0).contains(&ahead), "{off}");
    let output = swarm.tune("route")?.args(&["--give-up-after", "5s"]).output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("the clock of server") && stderr.contains("ahead"), "{stderr}");
    Ok(())
}
