//! `petals-tune route`.

use anyhow::Error;
use petals_client::{ExplainedServer, HopCost, Verdict};

use super::session;
use crate::args::RouteArgs;
use crate::error::CliError;
use crate::output::{Considered, Output, Route, RouteHop, Server, TrainingRoute};

pub(crate) async fn run(args: RouteArgs, output: Output) -> Result<(), CliError> {
    let files = session::open(&args.swarm)?;
    let (sequence, swarm) = session::connect(&files, &args.swarm, output).await?;
    let explained = sequence.explain(args.rows).await.map_err(Error::from)?;
    for (peer, info) in sequence.servers() {
        output.emit(&Server::new(&peer, info))?;
    }
    if args.explain {
        for server in &explained.servers {
            output.emit(&considered(server))?;
        }
    }
    let route = explained.route.map_err(Error::from)?;
    let hop = |(hop, cost): &(petals_client::Hop, HopCost)| RouteHop {
        peer: hop.peer.to_string(),
        blocks: hop.span.to_string(),
        way_s: cost.way,
        queue_s: cost.queue,
        compute_s: cost.compute,
    };
    let (model, hops) = (files.adapted.id.to_string(), route.hops.iter().map(hop).collect());
    output.emit(&Route { model, hops, seconds: route.seconds, rows: args.rows, explain: args.explain })?;
    for weighted in explained.training.iter().filter(|_| args.explain) {
        let hops = weighted.route.hops.iter().map(|hop| (hop.peer.to_string(), hop.span.to_string())).collect();
        output.emit(&TrainingRoute { hops, share: weighted.share, slowest_s: weighted.stage_seconds })?;
    }
    swarm.shutdown().await;
    Ok(())
}

fn considered(server: &ExplainedServer) -> Considered {
    let reason = match &server.verdict {
        Verdict::Chosen(spans) => {
            let spans: Vec<String> = spans.iter().map(ToString::to_string).collect();
            format!("chosen for {}", spans.join(" and "))
        }
        Verdict::Excluded(why) => format!("not used: {why}"),
        Verdict::Banned { left, failures } => format!("banned for {left:.0?} after {failures} failures in a row"),
        Verdict::Unavailable(state) => format!("not used: {}", format!("{state:?}").to_lowercase()),
        Verdict::Slower { seconds: Some(seconds) } => {
            format!("not chosen: with it the pass would take {:.1} ms", seconds * 1e3)
        }
        _ => "not chosen".to_owned(),
    };
    Considered {
        peer: server.peer.to_string(),
        blocks: server.span.to_string(),
        cost: server.cost,
        chosen: matches!(server.verdict, Verdict::Chosen(_)),
        reason,
    }
}
