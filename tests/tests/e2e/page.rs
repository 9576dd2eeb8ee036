//! The page of a swarm, and what is beside it: JSON, figures, and whether a node is ready.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use petals_e2e::{ApiServer, Goldens, HttpAnswer, Node, ProcessSwarm, Tune, http, send_signal};
use serde_json::{Value, json};

/// Longest wait for something that takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);

fn address(url: &Value) -> anyhow::Result<SocketAddr> {
    Ok(url.as_str().and_then(|url| url.strip_prefix("http://")).context("no address")?.parse()?)
}

fn get(page: SocketAddr, path: &str) -> anyhow::Result<HttpAnswer> {
    http(page, &[&format!("GET {path}")], "")
}

fn state(page: SocketAddr) -> anyhow::Result<Value> {
    get(page, "/api/v1/state")?.json()
}

/// Waits until what a page shows is as it should be, and returns it.
fn wait(page: SocketAddr, what: &str, is_so: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let state = state(page)?;
        if is_so(&state) {
            return Ok(state);
        }
        anyhow::ensure!(Instant::now() < deadline, "{what}: {state}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn server<'a>(state: &'a Value, name: &str) -> Option<&'a Value> {
    state["models"]
        .as_array()?
        .iter()
        .flat_map(|model| model["servers"].as_array())
        .flatten()
        .find(|s| s["name"] == name)
}

/// The value of a line of figures that begins like this.
fn figure(page: SocketAddr, begin: &str) -> anyhow::Result<f64> {
    let text = get(page, "/metrics")?.body;
    let line = text.lines().find(|line| line.starts_with(begin)).with_context(|| format!("no {begin} in {text}"))?;
    Ok(line.rsplit(' ').next().context("no value")?.parse()?)
}

#[test]
fn a_node_shows_the_swarm_and_who_has_died() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &[])?;
    let first = swarm.spawn_server(&["--blocks", "0..2", "--public-name", "here", "--page", "127.0.0.1:0"])?;
    let page = address(&first.event("page")?["url"])?;
    assert_eq!(get(page, "/healthz")?.status, 200, "from the first moment on");
    let ready = first.event("ready")?;
    assert_eq!(address(&ready["page"])?, page);
    assert_eq!(get(page, "/readyz")?.body, "ready\n");
    let mut second = swarm.spawn_server(&["--blocks", "2..4", "--public-name", "there"])?;
    second.event("ready")?;

    let seen = wait(page, "both servers are seen", |state| {
        let answers = |there: &Value| there["contact"] == "connected" || there["contact"] == "reached";
        server(state, "there").is_some_and(|there| answers(there) && there["state"] == "online")
    })?;
    let here = server(&seen, "here").context("it does not show itself")?;
    assert_eq!((&here["contact"], &here["blocks"], &here["device"]), (&json!("own"), &json!([0, 2]), &json!("cpu")));
    assert!(here["cache"]["of"].as_u64() > Some(0) && here["stash"]["used"] == 0 && here["relayed"] == false, "{here}");
    assert_eq!((&seen["models"][0]["missing"], &seen["role"]), (&json!([]), &json!("node")));
    let join = seen["join"]["node"].as_str().unwrap_or_default();
    assert!(join.starts_with("petals-node serve --model ") && join.contains("--peers /ip4/127.0.0.1/"), "{join}");

    // What it does is counted.
    let text = swarm.tune("generate")?.args(&["--prompt", "the", "--max-new-tokens", "3"]).output()?;
    assert!(text.status.success(), "{}", String::from_utf8_lossy(&text.stderr));
    assert!(figure(page, "petals_node_passes_total{kind=\"step\"}")? >= 3.0);
    assert!(
        figure(page, "petals_node_tokens_total")? >= 3.0 && figure(page, "petals_node_compute_seconds_total")? > 0.0
    );
    assert!(figure(page, "petals_node_stream_bytes_total{direction=\"in\"}")? > 0.0);
    assert_eq!((figure(page, "petals_node_ready")?, figure(page, "petals_node_block_end")?), (1.0, 2.0));
    assert!(server(&state(page)?, "here").is_some_and(|here| here["served_tokens"].as_u64() >= Some(3)));

    // Its record lives on for two minutes, and the page does not believe it.
    second.kill()?;
    let seen = wait(page, "the dead server is silent", |state| {
        server(state, "there").is_some_and(|there| there["contact"] == "silent")
    })?;
    assert_eq!(seen["models"][0]["missing"], json!([[2, 4]]), "{seen}");
    let told = seen["failures"].as_array().is_some_and(|failures| {
        failures.iter().any(|f| f["what"].as_str().is_some_and(|what| what.starts_with("does not answer")))
    });
    assert!(told, "{}", seen["failures"]);
    Ok(())
}

#[test]
fn the_page_is_for_those_it_is_meant_for() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &[])?;
    let open = swarm.spawn_server(&["--blocks", "0..4", "--page", "127.0.0.1:0"])?;
    let page = address(&open.event("page")?["url"])?;
    let status = |head: &[&str]| anyhow::Ok(http(page, head, "")?.status);
    for path in ["/", "/api/v1/state", "/metrics", "/healthz", "/readyz"] {
        // A page of another name that points to this machine.
        assert_eq!(status(&[&format!("GET {path}"), "Host: evil.example"])?, 403, "{path}");
        assert_eq!(status(&[&format!("POST {path}")])?, 405, "{path}");
    }
    assert_eq!((status(&["GET /nothing"])?, status(&["GET /", "Host: localhost:1"])?), (404, 200));
    let html = get(page, "/")?;
    let policy = html.header("content-security-policy").context("no policy")?.to_owned();
    assert!(policy.starts_with("default-src 'none'") && !html.body.contains("NONCE"), "{policy}");
    assert_ne!(get(page, "/")?.header("content-security-policy"), Some(policy.as_str()), "the nonce is used once");
    assert_eq!(html.header("x-content-type-options"), Some("nosniff"));

    let folder = tempfile::tempdir()?;
    let key = folder.path().join("page.key");
    let key_path = key.to_str().context("a path that is not UTF-8")?;
    let with_key = ["--blocks", "0..4", "--page", "127.0.0.1:0", "--page-key-file", key_path];
    let model = goldens.model();
    let serve = ["serve", "--model", model.to_str().unwrap_or_default(), "--device", "cpu"];
    let refused = Node::refused(&[&serve[..], &with_key].concat())?;
    assert!(refused.contains("--page-key-file") && refused.contains("cannot read"), "{refused}");
    std::fs::write(&key, "a-secret\n")?;
    let kept = swarm.spawn_server(&with_key)?;
    let page = address(&kept.event("page")?["url"])?;
    for path in ["GET /api/v1/state", "GET /metrics"] {
        assert_eq!(http(page, &[path], "")?.status, 401);
        assert_eq!(http(page, &[path, "Authorization: Bearer another"], "")?.status, 401);
        assert_eq!(http(page, &[path, "Authorization: Bearer a-secret"], "")?.status, 200);
    }
    // Health is for whoever restarts it, and the page asks for the key itself.
    assert_eq!((get(page, "/healthz")?.status, get(page, "/")?.status), (200, 200));

    let taken = page.to_string();
    let refused = Node::refused(&[&serve[..], &["--blocks", "0..4", "--page", &taken]].concat())?;
    assert!(refused.contains("--page") && refused.contains(&taken), "{refused}");
    let refused = Node::refused(&[&serve[..], &["--blocks", "0..4", "--page", "nowhere"]].concat())?;
    assert!(refused.contains("--page") && refused.contains("nowhere"), "{refused}");
    Ok(())
}

#[test]
fn a_client_shows_the_swarm_and_its_own_route() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..2", "2..4"])?;
    let monitor = swarm.tune("monitor")?.args(&["--listen", "127.0.0.1:0", "--probe", "100ms"]);
    let (child, monitoring) = monitor.start("monitoring")?;
    let page = address(&monitoring["url"])?;
    let seen = wait(page, "the routes are shown", |state| {
        let two = |route: &Value| route["hops"].as_array().is_some_and(|hops| hops.len() == 2);
        state["routes"].as_array().is_some_and(|routes| routes.len() == 2 && routes.iter().all(two))
    })?;
    let sent = &seen["routes"][1];
    assert!(sent["measured"] == true && sent["hops"][1]["compute_s"].as_f64() > Some(0.0), "{sent}");
    let route = &seen["routes"][0];
    assert_eq!((&route["measured"], &seen["role"]), (&json!(false), &json!("client")));
    assert!(
        route["hops"][0]["compute_s"].as_f64() > Some(0.0) && route["hops"][1]["blocks"] == json!([2, 4]),
        "{route}"
    );
    assert_eq!((get(page, "/readyz")?.status, get(page, "/")?.status), (200, 200));
    assert!(figure(page, "petals_monitor_peers")? >= 1.0);
    send_signal(child.id(), "INT")?;
    assert!(child.wait_with_output()?.status.success(), "Ctrl-C is how one stops to watch");

    let refused = Tune::bare(&["monitor", "--listen", "nowhere"])?.output()?;
    assert_eq!(refused.status.code(), Some(2));

    // A server for OpenAI clients has it beside the chat, with the times of its own texts.
    let api = ApiServer::start(swarm.tune("serve")?)?;
    let model = api.serving["models"][0].as_str().context("no model")?.to_owned();
    api.ask("/v1/completions", &json!({"model": model, "prompt": "the", "max_tokens": 4, "temperature": 0}))?;
    assert!(api.get("/swarm")?.body.contains("Petals swarm"));
    let seen = api.get("/api/v1/state")?.json()?;
    let route = &seen["routes"][0];
    assert_eq!((&route["measured"], route["hops"].as_array().map(Vec::len)), (&json!(true), Some(2)), "{seen}");
    assert!(route["seconds"].as_f64() > Some(0.0), "{route}");
    api.stop()
}
