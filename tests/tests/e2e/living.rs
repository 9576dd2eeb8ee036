//! Servers that run for long: what they report, log, and read again.

use std::time::{Duration, Instant};

use petals_e2e::{Goldens, Node, ProcessSwarm, Tune};
use serde_json::Value;

#[test]
fn a_server_reports_what_it_did() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &[])?;
    let server = swarm.spawn_server(&["--blocks", "0..4", "--report-every", "1s"])?;
    server.event("ready")?;
    swarm.tune("generate")?.args(&["--prompt", "the", "--max-new-tokens", "4"]).events()?;
    let deadline = Instant::now() + Duration::from_secs(20);
    let report = loop {
        let report = server.event("report")?;
        if report["requests"].as_u64() > Some(0) || Instant::now() > deadline {
            break report;
        }
    };
    let figure = |name: &str| report[name].as_u64().unwrap_or_default();
    assert!(figure("requests") > 0 && figure("tokens") > 0 && figure("bytes_in") > 0, "{report}");
    assert_eq!(figure("clients"), 1, "{report}");
    assert!(figure("peers") > 0 && figure("resident_bytes") > 1 << 20, "{report}");
    Ok(())
}

#[test]
fn logs_are_one_object_in_a_line_if_wanted() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let key = directory.path().join("k");
    let key = key.to_str().unwrap_or_default();
    std::fs::write(key, "no state")?;
    // Something that is logged by a command that ends by itself.
    std::fs::write(
        format!("{key}.state"),
        r#"{"version":1,"model":null,"blocks":null,"addresses":[],"swarm_key":null}"#,
    )?;
    std::fs::remove_file(key)?;
    let peers = "/ip4/127.0.0.1/tcp/9/p2p/12D3KooWSahP5pFRCEfaziPEba7urXGeif6T1y8jmodzdFUvzBHj";
    let output = Node::output(&["invite", "--identity", key, "--peers", peers, "--log-format", "json"])?;
    let stderr = String::from_utf8(output.stderr)?;
    let logged: Value = serde_json::from_str(stderr.lines().next().unwrap_or_default())?;
    assert_eq!((logged["level"].as_str(), output.status.success()), (Some("WARN"), true), "{stderr}");
    assert!(logged["message"].as_str().unwrap_or_default().contains("no node runs"), "{stderr}");
    Ok(())
}

#[test]
fn the_list_of_those_who_may_use_a_server_is_read_again() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &[])?;
    let directory = tempfile::tempdir()?;
    let path = |name: &str| directory.path().join(name).to_str().unwrap_or_default().to_owned();
    let (key, list) = (path("me.key"), path("list"));
    let made = Node::run(&["keygen", "--out", &key])?;
    let peer = made[0]["peer_id"].as_str().unwrap_or_default().to_owned();
    std::fs::write(&list, "# nobody yet\n")?;
    let server = swarm.spawn_server(&["--blocks", "0..4", "--allow-file", &list])?;
    server.event("ready")?;
    let generate = || -> anyhow::Result<Tune> {
        let tune = swarm.tune("generate")?.args(&["--identity", &key, "--prompt", "the", "--max-new-tokens", "2"]);
        Ok(tune.args(&["--give-up-after", "2s"]))
    };
    assert!(!generate()?.output()?.status.success());
    std::fs::write(&list, format!("{peer} # me\n"))?;
    server.signal("HUP")?;
    assert_eq!(server.event("allow_list_read")?["peers"], 1);
    let output = generate()?.output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // A mistake in the file lets nobody in and keeps nobody out.
    std::fs::write(&list, "me\n")?;
    server.signal("HUP")?;
    assert!(generate()?.output()?.status.success());
    std::fs::write(&list, "")?;
    server.signal("HUP")?;
    assert_eq!(server.event("allow_list_read")?["peers"], 0);
    assert!(!generate()?.output()?.status.success());
    Ok(())
}
