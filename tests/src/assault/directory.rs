//! Attackers that fill the directory with names.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use petals_protocol::{ServerInfo, ServerState, Span};

use super::{Orders, whereabouts};
use crate::forger::Forger;

/// Ids of each process: six hosts of them have more than a block's list takes.
const IDS: usize = 48;
/// Blocks that every other id claims: lists that nobody asks for, until the store has no room for more of this host.
const BLOCKS: u32 = 200;
/// Names written at a time by one id.
const AT_ONCE: usize = 8;
/// Pause before all is written again, as servers do.
const PAUSE: Duration = Duration::from_secs(30);

/// Writes names and records until the process ends.
pub(super) async fn fill(number: usize, orders: &Orders, done: &AtomicU64) -> anyhow::Result<()> {
    let mut members = Vec::new();
    for target in &orders.targets {
        let (peer, addresses) = whereabouts(target)?;
        members.extend(addresses.into_iter().map(|address| (peer, address)));
    }
    let target = &orders.targets[0];
    let ids = (0..IDS).map(|id| {
        // Nobody listens there.
        let address = format!("/ip4/{}/tcp/{}", orders.own, 1000 + IDS * number + id);
        let (members, model) = (members.clone(), target.model.clone());
        let end = if id.is_multiple_of(2) { target.span.end() } else { BLOCKS };
        async move {
            let mut forger = Forger::new(&members)?;
            let info = ServerInfo {
                forward_tokens_per_s: Some(1e8),
                dtype: "f32".to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                ..ServerInfo::new(model, Span::new(0, end)?, ServerState::Online)
            };
            loop {
                // What is refused is tried again.
                let _ = forger.announce(&info, &address).await;
                for blocks in info.span.blocks().collect::<Vec<_>>().chunks(AT_ONCE) {
                    if forger.provide(&info.model, blocks).await.is_ok() {
                        done.fetch_add(blocks.len() as u64, Ordering::Relaxed);
                    }
                }
                forger.live(PAUSE).await;
            }
        }
    });
    futures::future::try_join_all(ids).await.map(|_: Vec<()>| ())
}
