//! `petals-tune route`.

use anyhow::Error;

use super::session;
use crate::args::RouteArgs;
use crate::error::CliError;
use crate::output::{Output, Route, RouteHop, Server};

/// Rows of the pass that is planned: one usual micro-batch.
const ROWS: usize = 1024;

pub(crate) async fn run(args: RouteArgs, output: Output) -> Result<(), CliError> {
    let files = session::open(&args.swarm)?;
    let (sequence, swarm) = session::connect(&files, &args.swarm, output).await?;
    let planned = sequence.route(ROWS).await;
    for (peer, info) in sequence.servers() {
        output.emit(&Server {
            peer: peer.to_string(),
            blocks: info.span.to_string(),
            state: info.state,
            forward_tokens_per_s: info.forward_tokens_per_s,
            queue_depth: info.queue_depth,
            relayed: info.relayed,
            dtype: info.dtype,
            version: info.version,
            public_name: info.public_name,
        })?;
    }
    let route = planned.map_err(Error::from)?;
    let hop = |hop: &petals_client::Hop| RouteHop { peer: hop.peer.to_string(), blocks: hop.span.to_string() };
    let hops = route.hops.iter().map(hop).collect();
    output.emit(&Route { model: files.adapted.id.to_string(), hops, seconds: route.seconds, rows: ROWS })?;
    swarm.shutdown().await;
    Ok(())
}
