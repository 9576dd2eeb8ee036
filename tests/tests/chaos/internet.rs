//! The simulated internet does what the other scenarios here rely on.

use std::process::Output;

use petals_e2e::{Access, Goldens, Host, Internet, Node, Tune};

/// Asks the node at `peers` who serves the model, from `host`.
fn route(host: &Host, peers: &str, goldens: &Goldens) -> anyhow::Result<Output> {
    Tune::on(host, &["route", "--json", "--peers", peers])?.path("--model", &goldens.model()).output()
}

fn serve(host: &Host, goldens: &Goldens, more: &[&str]) -> anyhow::Result<Node> {
    let model = goldens.model();
    let model = model.to_str().unwrap_or_default();
    let arguments = ["serve", "--model", model, "--device", "cpu", "--blocks", "0..4"];
    let node = Node::start_on(host, &[&arguments, more].concat())?;
    node.event("ready")?;
    Ok(node)
}

#[test]
fn hosts_reach_each_other_unless_they_are_cut_off() -> anyhow::Result<()> {
    let Some(internet) = Internet::new(&[Access::Public; 3])? else { return Ok(()) };
    let goldens = Goldens::load("llama-gqa")?;
    let server = serve(internet.host(0), &goldens, &[])?;
    let asked_from = |client: usize| route(internet.host(client), &server.address, &goldens);

    let before = internet.bytes(1)?;
    let output = asked_from(1)?;
    assert!(output.status.success(), "{output:?}");
    assert!(internet.bytes(1)? > before + 1000, "its bytes are counted");
    internet.cut_off(&[0, 1])?;
    assert!(asked_from(1)?.status.success(), "both are in the same part");
    assert!(!asked_from(2)?.status.success(), "nothing crosses a cut");
    internet.heal(&[0, 1])?;
    assert!(asked_from(2)?.status.success(), "nothing is left of a cut");
    internet.lose(0, 100)?;
    assert!(!asked_from(2)?.status.success(), "every packet is lost");
    internet.lose(0, 20)?;
    assert!(asked_from(2)?.status.success(), "TCP repeats what is lost");
    Ok(())
}

#[test]
fn nats_let_in_what_they_are_meant_to() -> anyhow::Result<()> {
    let accesses = [Access::Public, Access::Nat, Access::SymmetricNat, Access::FullCone];
    let Some(internet) = Internet::new(&accesses)? else { return Ok(()) };
    let goldens = Goldens::load("llama-gqa")?;
    let server = serve(internet.host(0), &goldens, &[])?;
    for (client, access) in accesses.iter().enumerate().skip(1) {
        let output = route(internet.host(client), &server.address, &goldens)?;
        assert!(output.status.success(), "everybody gets out: {access:?}, {output:?}");
    }
    for (number, reachable) in [(1, false), (2, false), (3, true)] {
        let host = internet.host(number);
        let address = format!("/ip4/{}/tcp/31330", host.public_address());
        let inside = serve(host, &goldens, &["--announce", &address])?;
        let peer = inside.address.rsplit('/').next().unwrap_or_default();
        let output = route(internet.host(0), &format!("{address}/p2p/{peer}"), &goldens)?;
        assert_eq!(output.status.success(), reachable, "{:?}: {output:?}", accesses[number]);
    }
    Ok(())
}
