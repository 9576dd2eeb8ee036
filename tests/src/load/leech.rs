//! Those who take what they can get of a server and give nothing, while others load it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use petals_protocol::{
    ForwardRequest, Injection, PassLayout, RelayToken, Request, RowSource, RowTarget, SessionId, SessionOpen,
    StepRequest, TableSource, Tensor, WireDtype,
};
use petals_swarm::{Multiaddr, PeerId};
use tokio::task::JoinSet;

use super::Target;
use crate::attacker::Attacker;

/// Where they are: one address, however many ids. Honest clients are at 127.0.0.1.
const ADDRESS: &str = "127.0.0.2";
/// Streams of each.
const STREAMS: usize = 4;

/// Starts so many; they go on until `stop`.
pub(super) fn start(
    target: &Target,
    server: (PeerId, Vec<Multiaddr>),
    count: usize,
    stop: &Arc<AtomicBool>,
) -> JoinSet<()> {
    let mut leeches = JoinSet::new();
    for number in 0..count {
        let (target, server, stop) = (target.clone(), server.clone(), stop.clone());
        leeches.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                // Whatever a server ends begins anew.
                let _ = suck(number, &target, &server, &stop).await;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        });
    }
    leeches
}

/// One of four ways to take something.
async fn suck(
    number: usize,
    target: &Target,
    server: &(PeerId, Vec<Multiaddr>),
    stop: &AtomicBool,
) -> anyhow::Result<()> {
    let leech = Attacker::after(ADDRESS, server.clone(), &target.model).await?;
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        streams.push(leech.greeted().await?);
    }
    let limits = streams[0].limits;
    let most = (limits.max_body / (4 * target.hidden as u64)).min(limits.max_rows.into()) as u32;
    for (n, stream) in streams.iter_mut().enumerate() {
        match number % 4 {
            // Claims the largest request, and sends hardly anything of it.
            0 => {
                stream
                    .claim(&Request::Forward(forward(target, most, RowSource::Inline)), rows(target, most), 200)
                    .await?
            }
            // Waits for rows that never come.
            1 => {
                for k in 0..limits.max_in_flight as u8 {
                    let mut token = [k; 16];
                    token[..8].copy_from_slice(&(number * STREAMS + n).to_le_bytes());
                    let waiting = forward(target, most, RowSource::Relay(RelayToken(token)));
                    stream.send(k.into(), &Request::Forward(waiting), &[]).await?;
                }
            }
            // Reserves sessions, and goes on with none.
            2 => {
                for k in 0..8 {
                    let open = Some(SessionOpen { max_sequences: 4, max_positions: 2048 });
                    let forward = forward(target, 1, RowSource::Inline);
                    let step = StepRequest { session: SessionId(k), forward, starts: vec![0], order: None, open };
                    stream.send(k, &Request::Step(Box::new(step)), &[rows(target, 1)]).await?;
                }
            }
            // Hands over rows for nobody.
            _ => {
                for k in 0..limits.max_in_flight as u8 {
                    let mut token = [k; 16];
                    token[8..].copy_from_slice(&(number * STREAMS + n).to_le_bytes());
                    stream.send(k.into(), &Request::Relay { token: RelayToken(token) }, &[rows(target, 64)]).await?;
                }
            }
        }
    }
    for _ in 0..20 {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        if number.is_multiple_of(4) {
            for stream in &mut streams {
                stream.send_raw(&[0]).await?;
            }
        }
    }
    Ok(())
}

fn forward(target: &Target, rows: u32, input: RowSource) -> ForwardRequest {
    let layout = PassLayout {
        span: target.span,
        lengths: vec![rows],
        prefix_len: 0,
        injection: Injection::None,
        weights: Default::default(),
        read_rows: None,
    };
    let (tables, output) = (TableSource::Inline, RowTarget::Reply);
    ForwardRequest { layout, tables, stash: None, input, output, reply_dtype: WireDtype::F32, deadline_ms: 600_000 }
}

fn rows(target: &Target, count: u32) -> Tensor {
    let shape = [count as usize, target.hidden];
    Tensor::from_f32(WireDtype::F32, &shape, &vec![0.1; shape[0] * shape[1]])
}
