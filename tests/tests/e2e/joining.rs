//! Ways into a swarm besides `--peers` on the command line.

use petals_e2e::{Access, Goldens, Internet, Node, ProcessSwarm, Tune};
use serde_json::Value;

/// Where nobody is.
const DEAD: &str = "/ip4/127.0.0.1/tcp/9/p2p/12D3KooWSahP5pFRCEfaziPEba7urXGeif6T1y8jmodzdFUvzBHj";

fn named<'a>(events: &'a [Value], name: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["event"] == name).collect()
}

#[test]
fn a_client_takes_its_settings_from_the_environment_and_a_file() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("petals.toml");
    let model = goldens.model();
    std::fs::write(&file, format!("peers = '{DEAD}'\nmodel = '{}'\n[tune]\nhedge_after = '2s'\n", model.display()))?;
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

#[test]
fn a_server_that_is_ready_says_how_others_join_it() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &[])?;
    let server = swarm.spawn_server(&["--blocks", "0..4", "--model-name", "a-name"])?;
    let join = server.event("join")?;
    let (node, client) = (join["node"].as_str().unwrap_or_default(), join["client"].as_str().unwrap_or_default());
    assert_eq!(join["this_machine_only"], true);
    let model = goldens.model().display().to_string();
    let common = format!("--model {model} --model-name a-name --peers {}", server.address);
    assert_eq!(node, format!("petals-node serve {common}"));
    assert_eq!(client, format!("petals-tune generate {common} --prompt 'Once upon a time' --max-new-tokens 32"));
    // What is printed is what works.
    let flags: Vec<&str> = client.split(" --prompt").next().unwrap_or_default().split(' ').skip(1).collect();
    let generated = Tune::bare(&flags)?.args(&["--prompt", "the", "--max-new-tokens", "1"]).events()?;
    assert_eq!(named(&generated, "generated").len(), 1, "{generated:?}");
    Ok(())
}

#[test]
fn an_address_that_does_not_answer_is_said_while_it_is_tried() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let model = goldens.model();
    let route = |more: &[&str]| anyhow::Ok(Tune::bare(&["route"])?.path("--model", &model).args(more));
    let (mut child, waiting) = route(&["--peers", DEAD])?.start("waiting")?;
    child.kill()?;
    child.wait()?;
    let reason = waiting["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("/ip4/127.0.0.1/tcp/9"), "{reason}");
    // Of 15 s.
    assert!(waiting["left_s"].as_f64().unwrap_or_default() >= 12.0, "{waiting}");
    // Without an address, on a network that is not searched, there is nothing to wait for but everything is said.
    let output = route(&["--no-mdns"])?.output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && stderr.contains("--peers") && stderr.contains("no member was met"), "{stderr}");
    let node = Node::start(&["bootstrap", "--peers", DEAD])?;
    let alone = node.event("alone")?;
    assert!(alone["reason"].as_str().unwrap_or_default().contains("/ip4/127.0.0.1/tcp/9"), "{alone}");
    Ok(())
}

#[test]
fn a_wait_for_servers_is_told_once_and_not_with_every_attempt() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..2"])?;
    let output = swarm.tune("generate")?;
    let output =
        output.args(&["--prompt", "the", "--max-new-tokens", "1", "--give-up-after", "5s", "--json"]).output()?;
    let lines = String::from_utf8(output.stdout)?;
    let events: Vec<Value> = lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    // Attempts come after 0, 0.1, 0.2, 0.4, 0.8 and 1.6 s.
    assert_eq!(named(&events, "waiting").len(), 1, "{lines}");
    assert_eq!(output.status.code(), Some(1));
    Ok(())
}

#[test]
fn a_swarm_is_found_again_when_its_bootstrap_node_is_gone() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let directory = tempfile::tempdir()?;
    let key = directory.path().join("server.key");
    let key = key.to_str().unwrap_or_default();
    let cache = directory.path().join("cache");
    let cache = cache.to_str().unwrap_or_default();
    let mut swarm = ProcessSwarm::start(&goldens.model(), &["0..2"])?;
    let mut second = swarm.spawn_server(&["--blocks", "2..4", "--identity", key])?;
    second.event("ready")?;
    let route = |tune: Tune| tune.env("XDG_CACHE_HOME", cache).args(&["--give-up-after", "20s"]).events();
    let routes = route(swarm.tune("route")?)?;
    assert_eq!(named(&routes, "server").len(), 2, "{routes:?}");
    swarm.bootstrap.kill()?;
    second.signal("TERM")?;
    assert_eq!(second.wait()?, 0);
    let model = goldens.model();
    let model = model.to_str().unwrap_or_default();
    let serve = ["serve", "--model", model, "--device", "cpu", "--blocks", "2..4", "--identity", key];
    let again = Node::start(&serve)?;
    again.event("ready")?;
    let routes = route(Tune::bare(&["route", "--model", model, "--no-mdns"])?)?;
    assert_eq!(named(&routes, "server").len(), 2, "{routes:?}");
    let hops = named(&routes, "route")[0]["hops"].as_array().map_or(0, Vec::len);
    assert_eq!(hops, 2, "{routes:?}");
    // An address that led there once does as well.
    let dead = swarm.bootstrap.address.clone();
    let routes = route(Tune::bare(&["route", "--model", model, "--peers", &dead])?)?;
    assert_eq!(named(&routes, "server").len(), 2, "{routes:?}");
    Ok(())
}

#[test]
fn a_client_finds_a_server_of_the_local_network() -> anyhow::Result<()> {
    // A network of its own, which nothing leaves.
    let Some(internet) = Internet::new(&[Access::Public])? else { return Ok(()) };
    let goldens = Goldens::load("llama-gqa")?;
    let (host, model) = (internet.host(0), goldens.model());
    let model = model.to_str().unwrap_or_default();
    let server =
        Node::start_on(host, &["serve", "--model", model, "--device", "cpu", "--blocks", "0..4", "--no-upnp"])?;
    let join = server.event("join")?;
    assert_eq!(join["addresses"][0].as_str(), Some(server.address.as_str()));
    assert_eq!(join["this_machine_only"], false);
    let routes = Tune::on(host, &["route", "--model", model])?.events()?;
    assert_eq!(named(&routes, "server").len(), 1, "{routes:?}");
    let output = Tune::on(host, &["route", "--model", model, "--no-mdns"])?.output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && stderr.contains("was not searched"), "{stderr}");
    Ok(())
}

#[test]
fn an_invitation_leads_into_a_private_swarm_and_a_damaged_one_is_refused() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let directory = tempfile::tempdir()?;
    let path = |name: &str| directory.path().join(name).to_str().unwrap_or_default().to_owned();
    let (key, identity) = (path("swarm.key"), path("node.key"));
    Node::run(&["keygen", "--swarm-key", &key])?;
    let model = goldens.model();
    let model = model.to_str().unwrap_or_default();
    // Another name than the directory's, which only the line tells.
    let serve = ["serve", "--model", model, "--device", "cpu", "--model-name", "ours", "--swarm-key", &key];
    let first = Node::start(&[&serve[..], &["--blocks", "0..2", "--identity", &identity]].concat())?;
    first.event("ready")?;
    let invite = |more: &[&str]| {
        // Written just after the server is ready.
        let state = std::path::PathBuf::from(path("node.key.state"));
        (0..100).find(|_| {
            state.exists() || {
                std::thread::sleep(std::time::Duration::from_millis(50));
                false
            }
        });
        Node::run(&[&["invite", "--identity", &identity], more].concat())
    };
    let line = |events: &[Value]| events[0]["line"].as_str().unwrap_or_default().to_owned();
    let plain = invite(&[])?;
    assert_eq!(
        (plain[0]["with_key"].as_bool(), plain[0]["addresses"][0].as_str()),
        (Some(false), Some(first.address.as_str()))
    );
    let with_key = line(&invite(&["--swarm-key", &key, "--with-key"])?);
    let second = ["serve", "--model", model, "--device", "cpu", "--blocks", "2..4", "--join", &with_key];
    let second = Node::start(&second)?;
    let ready = second.event("ready")?;
    assert!(ready["model"].as_str().unwrap_or_default().starts_with("ours@"), "{ready}");
    let routes = Tune::bare(&["route", "--model", model, "--join", &with_key])?.events()?;
    assert_eq!(named(&routes, "server").len(), 2, "{routes:?}");
    let routes = Tune::bare(&["route", "--model", model, "--join", &line(&plain), "--swarm-key", &key])?.events()?;
    assert_eq!(named(&routes, "server").len(), 2, "{routes:?}");
    // Cut on its way, changed, and for another model.
    let cut = &with_key[..with_key.len() - 5];
    let refused = Node::refused(&["serve", "--model", model, "--join", cut])?;
    assert!(refused.contains("--join") && refused.contains("missing or was changed"), "{refused}");
    let output = Tune::bare(&["route", "--model", model, "--join", "petals9:abc"])?.output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && stderr.contains("version 9"), "{stderr}");
    let other = Goldens::load("qwen3")?.model();
    let other = other.to_str().unwrap_or_default();
    let refused = Node::refused(&["serve", "--model", other, "--device", "cpu", "--join", &with_key])?;
    assert!(refused.contains("the invitation is to serve ours@"), "{refused}");
    let nobody = Node::refused(&["invite", "--identity", &path("other.key")])?;
    assert!(nobody.contains("--peers"), "{nobody}");
    Ok(())
}

#[test]
fn a_node_restarts_into_the_blocks_that_it_had() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let directory = tempfile::tempdir()?;
    let key = directory.path().join("node.key");
    let key = key.to_str().unwrap_or_default();
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    let mut node = swarm.spawn_server(&["--blocks", "1..3", "--identity", key])?;
    node.event("ready")?;
    let state = directory.path().join("node.key.state");
    while !state.exists() {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    node.signal("TERM")?;
    node.wait()?;
    // Everything fits, and no block is served worse than another one, so that it would not choose these.
    let mut again = swarm.spawn_server(&["--identity", key])?;
    assert_eq!(again.event("ready")?["blocks"], "1..3");
    again.signal("TERM")?;
    again.wait()?;
    let other = swarm.spawn_server(&["--identity", key, "--num-blocks", "1"])?;
    assert_eq!(other.event("ready")?["blocks"].as_str().map(|blocks| blocks.contains("1..3")), Some(false));
    drop(other);
    std::fs::write(&state, "{")?;
    let damaged = swarm.spawn_server(&["--identity", key])?;
    assert_eq!(damaged.event("ready")?["blocks"], "0..4");
    Ok(())
}
