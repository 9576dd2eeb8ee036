//! `petals-node bootstrap`.

use super::events::NodeEvent;
use super::network;
use super::signals::StopSignals;
use super::state::Keeper;
use super::watch;
use crate::args::BootstrapArgs;
use crate::error::NodeError;
use crate::machine::kept::keep_giving_back;

pub(crate) async fn run(args: BootstrapArgs) -> Result<(), NodeError> {
    let mut signals = StopSignals::install()?;
    let mut config = network::config(&args.network, &args.peers)?;
    config.members = network::members(&args.network, &config);
    let keeper = Keeper::new(&args.network, &config);
    let identity = network::identity(args.network.identity.as_deref())?;
    // Block streams are not accepted here; dropping the receiver refuses them.
    let start = network::start(identity, config, args.network.json);
    if let Some(started) = signals.unless_stopped(start).await {
        let (handle, _) = started?;
        let running = async {
            tokio::select! {
                _ = watch::watch(&handle, None, args.network.json, watch::Periods::default()) => {}
                never = keeper.run(&handle, || None) => match never {},
                never = keep_giving_back() => match never {},
            }
        };
        let _ = signals.unless_stopped(running).await;
        handle.shutdown().await;
    }
    NodeEvent::Stopped.emit(args.network.json);
    Ok(())
}
