//! `petals-tune fingerprint`.

use std::collections::BTreeSet;

use anyhow::{Context, Error};
use petals_client::{KnownWeights, ServedWeights};

use super::session;
use crate::args::FingerprintArgs;
use crate::error::CliError;
use crate::output::{BlockWeights, Fingerprint, Output};

pub(crate) async fn run(args: FingerprintArgs, output: Output) -> Result<(), CliError> {
    if args.served {
        return served(args, output).await;
    }
    let (model, name) = (args.swarm.model.clone(), args.swarm.model_name.clone());
    let cache = petals_settings::cache_dir().map(|directory| directory.join("weights"));
    let hash = move || KnownWeights::of_files(&model, name.as_deref(), cache);
    let known = tokio::task::spawn_blocking(hash).await.context("reading the weights was interrupted")?;
    let known = known.map_err(CliError::input)?;
    output.emit(&Fingerprint::of(known.model()))?;
    for (block, hash) in known.blocks() {
        output.emit(&BlockWeights { block, hash: Some(hash.to_string()), used: true, peers: None, dtypes: None })?;
    }
    Ok(())
}

async fn served(args: FingerprintArgs, output: Output) -> Result<(), CliError> {
    let files = session::open(&args.swarm)?;
    let (sequence, swarm) = session::connect(&files, &args.swarm, output).await?;
    let served = sequence.served_weights().await.map_err(Error::from)?;
    output.emit(&Fingerprint::of(&files.adapted.id))?;
    for ServedWeights { block, hash, used, servers } in served {
        let hash = hash.map(|hash| hash.to_string());
        let peers = Some(servers.iter().map(|(peer, _)| peer.to_string()).collect());
        let dtypes: BTreeSet<String> = servers.into_iter().map(|(_, dtype)| dtype).collect();
        output.emit(&BlockWeights { block, hash, used, peers, dtypes: Some(dtypes) })?;
    }
    swarm.shutdown().await;
    Ok(())
}
