//! The benchmark commands: their figures are measured, not only printed.

use std::time::Duration;

use petals_e2e::{Goldens, LinkConfig, Node, ProcessSwarm, WideAreaSwarm};
use serde_json::Value;

fn figures(events: &[Value]) -> Vec<&Value> {
    events.iter().filter(|event| event["event"] == "bench").collect()
}

#[test]
fn a_swarm_is_timed_and_its_bytes_are_counted() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..2", "2..4"])?;
    let what =
        ["forward", "train", "decode", "hop", "--batch", "2", "--length", "8", "--repeat", "3", "--prefix-len", "4"];
    let events = swarm.tune("bench")?.args(&what).events()?;
    let repetitions = events.iter().filter(|event| event["event"] == "bench_repetition").count();
    let figures = figures(&events);
    assert_eq!((figures.len(), repetitions), (5, 15), "{figures:?}");
    let number = |figure: &Value, key: &str| figure[key].as_f64().unwrap_or(f64::NAN);
    for figure in &figures {
        assert!(
            number(figure, "best_ms") > 0.0 && number(figure, "median_ms") >= number(figure, "best_ms"),
            "{figure}"
        );
        assert_eq!(figure["servers"].as_array().map(Vec::len), Some(2), "{figure}");
    }
    let hidden_states = (2 * 8 * 4 * 32) as f64;
    let [forward, train] = [figures[0], figures[1]];
    assert_eq!((number(forward, "requests"), number(train, "requests")), (2.0, 4.0));
    // Four blocks, and the forward's work is not repeated in the backward.
    assert_eq!((number(train, "block_forwards"), number(train, "block_backwards")), (4.0, 4.0));
    let star = swarm.tune("bench")?.args(&["forward", "--batch", "2", "--length", "8", "--repeat", "3"]);
    let star = star.args(&["--relay", "star"]).events()?;
    // In a chain the hidden states come once, in a star once for each server.
    for (figure, times) in [(forward, 1.0), (self::figures(&star)[0], 2.0)] {
        for key in ["sent_bytes", "received_bytes"] {
            let bytes = number(figure, key);
            assert!(bytes >= times * hidden_states && bytes < times * hidden_states + 2000.0, "{figure}");
        }
    }
    Ok(())
}

#[test]
fn blocks_are_timed_without_a_swarm() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let model = goldens.model();
    let model = model.to_str().unwrap_or_default();
    let command = ["bench", "forward", "train", "decode", "--model", model, "--blocks", "1..3", "--length", "8"];
    let events = Node::run(&[&command[..], &["--prefix-len", "4", "--repeat", "2", "--device", "cpu"]].concat())?;
    assert_eq!(events[0]["blocks"], "1..3");
    let figures = figures(&events);
    let what: Vec<&str> = figures.iter().filter_map(|figure| figure["what"].as_str()).collect();
    assert_eq!(what, ["forward", "forward and stash", "backward", "train", "decode"]);
    assert!(figures.iter().all(|figure| figure["best_ms"].as_f64() > Some(0.0)), "{figures:?}");
    assert!(figures[3]["stash_bytes"].as_u64() > Some(0), "{}", figures[3]);
    Ok(())
}

#[test]
fn no_request_is_faster_than_its_link() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let round_trip = Duration::from_millis(40);
    let access = LinkConfig::between_hosts(round_trip, 20e6);
    let swarm = WideAreaSwarm::start(&goldens.model(), &["0..2", "2..4"], access, &[])?;
    let before = (swarm.client.up.bytes(), swarm.client.down.bytes());
    let tune = swarm
        .tune("bench", &goldens.model())?
        .args(&["hop", "train", "--repeat", "3", "--warmup", "0", "--relay", "star"]);
    let events = tune.events()?;
    let figures = figures(&events);
    let number = |figure: &Value, key: &str| figure[key].as_f64().unwrap_or(f64::NAN);
    for hop in &figures[..2] {
        assert!(number(hop, "best_ms") >= round_trip.as_secs_f64() * 1e3, "{hop}");
    }
    // Two hops forward and two back, one after the other.
    assert!(number(figures[2], "best_ms") >= 4.0 * round_trip.as_secs_f64() * 1e3, "{}", figures[2]);
    let sent: f64 = figures.iter().map(|figure| 3.0 * number(figure, "sent_bytes")).sum();
    let received: f64 = figures.iter().map(|figure| 3.0 * number(figure, "received_bytes")).sum();
    assert!((swarm.client.up.bytes() - before.0) as f64 >= sent, "all of it passes the client's link");
    assert!((swarm.client.down.bytes() - before.1) as f64 >= received, "all of it passes the client's link");
    Ok(())
}
