//! How busy two servers are while batches fill the pipeline.

use petals_e2e::{Node, Tune};

use crate::{Model, number, result};

/// Examples of a batch: at 128 tokens four micro-batches of the default size.
const BATCH: &str = "32";

pub(crate) fn run(options: &[&str]) -> anyhow::Result<()> {
    let batch = options.first().copied().unwrap_or(BATCH);
    let model = Model::named("medium")?;
    let directory = model.directory().to_str().unwrap_or_default();
    let bootstrap = Node::start(&["bootstrap"])?;
    let mut servers = Vec::new();
    for (core, span) in model.spans(2)?.iter().enumerate() {
        let place = ["serve", "--model", directory, "--device", "cpu", "--blocks", span, "--peers", &bootstrap.address];
        let server = Node::start_on_core(core, &place)?;
        server.event("ready")?;
        servers.push(server);
    }
    println!("## two servers with half of the model `medium` each, on a core each; seq-cls, {batch} x 128 tokens\n");
    println!("| in flight | step ms | server | busy ms | waiting passes ms | idle |\n|---|---|---|---|---|---|");
    for in_flight in ["1", "4", "8"] {
        let tune = Tune::bare(&["bench", "train", "--task", "seq-cls", "--batch", batch, "--in-flight", in_flight])?;
        let tune = tune.args(&[
            "--peers",
            &bootstrap.address,
            "--repeat",
            "3",
            "--warmup",
            "1",
            "--micro-batch-tokens",
            "512",
        ]);
        let event = result(tune.path("--model", model.directory()))?;
        let step = number(&event, "median_ms")?;
        for (at, server) in event["servers"].as_array().into_iter().flatten().enumerate() {
            let (busy, queued) = (number(server, "computed_ms")?, number(server, "queued_ms")?);
            let idle = 100.0 * (1.0 - busy / step);
            println!("| {in_flight} | {step:.0} | {at} | {busy:.0} | {queued:.0} | {idle:.0} % |");
        }
        println!("| {in_flight} | | both | | | {:.1} % |", 100.0 * number(&event, "idle")?);
    }
    Ok(())
}
