//! Servers that are told to stop while they are in use.

use petals_e2e::{Goldens, ProcessSwarm, assert_curves_close};

use crate::curves::training;

#[test]
fn a_server_that_leaves_in_order_changes_no_loss_and_is_used_again_when_it_is_back() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let directory = tempfile::tempdir()?;
    let key = directory.path().join("server.key");
    let mut swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    let come = |swarm: &ProcessSwarm| {
        let server = swarm.spawn_server(&["--blocks", "0..4", "--identity", key.to_str().unwrap_or_default()])?;
        server.event("ready")?;
        anyhow::Ok(server)
    };
    let mut leaving = come(&swarm)?;
    let out = directory.path().join("out");
    let run = training(&swarm, &goldens, "replace", "seq-cls", &out)?.args(&["--give-up-after", "60s"]);
    let mut left = Vec::new();
    let (losses, finished) = run.watch(|event| {
        match event["step"].as_u64().filter(|_| event["event"] == "step") {
            Some(4) => {
                left.push(leaving.signal("TERM").and_then(|()| leaving.wait()).unwrap_or(-1));
                leaving = come(&swarm).expect("it starts again");
            }
            // From here on the one that came back is alone.
            Some(10) => {
                let other = &mut swarm.servers[0];
                left.push(other.signal("TERM").and_then(|()| other.wait()).unwrap_or(-1));
            }
            _ => {}
        }
        true
    })?;
    assert!(finished);
    assert_eq!(left, [0, 0]);
    assert_curves_close("after both left once", &losses, &goldens.numbers("curve.replace.seq-cls"), 1e-3);
    Ok(())
}
