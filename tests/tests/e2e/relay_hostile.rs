//! Strangers that abuse relays.

use std::time::{Duration, Instant};

use petals_e2e::{Goldens, LocalSwarm};
use petals_node::ExecutorConfig;
use petals_protocol::{
    ForwardRequest, NextServer, Refusal, RelayToken, Request, Response, RowSource, RowTarget, Tensor,
};
use petals_swarm::Identity;

use crate::hostile::{Stranger, forward, forward_request, layout, rows};

async fn swarm() -> anyhow::Result<LocalSwarm> {
    let goldens = Goldens::load("llama-gqa")?;
    LocalSwarm::start(&goldens.model(), &["1..3"], ExecutorConfig::default()).await
}

fn token(n: u8) -> RelayToken {
    RelayToken([n; 16])
}

/// A forward of one row of block 1 that waits for it under a token.
fn waiting(n: u8, deadline_ms: u32) -> Request {
    let request = forward_request(layout((1, 2), &[1]));
    Request::Forward(ForwardRequest { input: RowSource::Relay(token(n)), deadline_ms, ..request })
}

fn relay(n: u8) -> Request {
    Request::Relay { token: token(n) }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_fit_are_computed_once_and_others_are_refused_to_both_sides() -> anyhow::Result<()> {
    let swarm = swarm().await?;
    let d = swarm.hidden;
    let (mut client, mut sender) = (Stranger::greeted(&swarm).await?, Stranger::greeted(&swarm).await?);
    let direct = client.ask(&forward(layout((1, 2), &[1])), &[rows(1, d, 0.1)]).await?;
    assert!(matches!(direct, Response::Forward(_)), "{direct:?}");

    client.send(1, &waiting(1, 10_000), &[]).await?;
    assert_eq!(sender.ask(&relay(1), &[rows(1, d, 0.1)]).await?, Response::Relayed);
    assert!(matches!(client.receive().await?, (1, Response::Forward(_))));

    let wrong: [(u8, Vec<Tensor>); 4] = [
        (2, vec![rows(2, d, 0.1)]),
        (3, vec![]),
        (4, vec![rows(1, d, 0.1), rows(1, d, 0.1)]),
        (5, vec![rows(1, d, f32::NAN)]),
    ];
    for (n, tensors) in wrong {
        client.send(u64::from(n), &waiting(n, 10_000), &[]).await?;
        let to_sender = sender.refusal(&relay(n), &tensors).await?;
        let expected = if n == 5 { "not finite" } else { "bad shape" };
        assert!(to_sender.to_string().contains(expected), "{n}: {to_sender}");
        let (id, to_client) = client.receive().await?;
        assert!(matches!(to_client, Response::Refused(Refusal::BadRelay { .. })), "{n}: {to_client:?}");
        assert_eq!(id, u64::from(n));
    }
    // Both streams go on.
    assert!(matches!(client.ask(&forward(layout((1, 2), &[1])), &[rows(1, d, 0.1)]).await?, Response::Forward(_)));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_good_for_one_request_and_one_delivery() -> anyhow::Result<()> {
    let swarm = swarm().await?;
    let d = swarm.hidden;
    let (mut client, mut sender) = (Stranger::greeted(&swarm).await?, Stranger::greeted(&swarm).await?);
    client.send(1, &waiting(1, 10_000), &[]).await?;
    client.send(2, &waiting(1, 10_000), &[]).await?;
    let (id, second) = client.receive().await?;
    assert!(id == 2 && matches!(second, Response::Refused(Refusal::BadRequest { .. })), "{second:?}");
    assert_eq!(sender.ask(&relay(1), &[rows(1, d, 0.1)]).await?, Response::Relayed);
    assert!(matches!(client.receive().await?, (1, Response::Forward(_))));

    // Nobody waits any more: one is parked, the other refused at once, and the first in the end.
    let started = Instant::now();
    sender.send(8, &relay(1), &[rows(1, d, 0.1)]).await?;
    sender.send(9, &relay(1), &[rows(1, d, 0.1)]).await?;
    let (first, again) = sender.receive().await?;
    assert!(matches!(again, Response::Refused(Refusal::BadRequest { .. })), "{again:?}");
    assert_eq!(sender.receive().await?, (8 + 9 - first, Response::Refused(Refusal::UnknownRelay)));
    assert!(started.elapsed() >= Duration::from_secs(1), "it was parked for a while");
    assert!(started.elapsed() < Duration::from_secs(10), "and not for long");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_whose_rows_never_come_end_and_leave_nothing() -> anyhow::Result<()> {
    let swarm = swarm().await?;
    let d = swarm.hidden;
    let mut client = Stranger::greeted(&swarm).await?;
    // As many as may be unanswered on one stream: unless they end, the next request is never read.
    for n in 0..32u8 {
        client.send(u64::from(n), &waiting(n, 300), &[]).await?;
    }
    assert!(matches!(client.ask(&forward(layout((1, 2), &[1])), &[rows(1, d, 0.1)]).await?, Response::Forward(_)));

    // Given up by name, and by the end of the stream.
    client.send(40, &waiting(40, 600_000), &[]).await?;
    client.send(41, &Request::Cancel { request: 40 }, &[]).await?;
    assert!(matches!(client.ask(&forward(layout((1, 2), &[1])), &[rows(1, d, 0.1)]).await?, Response::Forward(_)));
    client.send(42, &waiting(42, 600_000), &[]).await?;
    drop(client);
    let mut other = Stranger::greeted(&swarm).await?;
    for n in [40, 42] {
        let free = async {
            while let (_, Response::Refused(_)) = {
                other.send(u64::from(n), &waiting(n, 200), &[]).await?;
                other.send(99, &forward(layout((1, 2), &[1])), &[rows(1, d, 0.1)]).await?;
                other.receive().await?
            } {
                other.receive().await?;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(Duration::from_secs(10), free).await??;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_go_to_servers_of_the_next_block_only() -> anyhow::Result<()> {
    let swarm = swarm().await?;
    let d = swarm.hidden;
    let mut client = Stranger::greeted(&swarm).await?;
    let to = |peer: Vec<u8>| {
        let output = RowTarget::Relay(NextServer { peer, token: token(1) });
        Request::Forward(ForwardRequest { output, ..forward_request(layout((1, 2), &[1])) })
    };
    // A node that exists and is connected, but serves nothing; a server, but this one itself; and nobody.
    let client_node = swarm.client.local_peer().to_bytes();
    let itself = swarm.client.lookup(&swarm.model, swarm.blocks).await?.first().map(|entry| entry.peer.to_bytes());
    for peer in [client_node, itself.unwrap_or_default(), Identity::generate().peer_id().to_bytes()] {
        let refusal = client.refusal(&to(peer), &[rows(1, d, 0.1)]).await?;
        assert!(matches!(refusal, Refusal::NextUnreachable { .. }), "{refusal}");
    }
    let nonsense = client.refusal(&to(vec![1, 2, 3]), &[rows(1, d, 0.1)]).await?;
    assert!(matches!(nonsense, Refusal::BadRequest { .. }), "{nonsense}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_rows_for_nobody_is_bounded_and_disturbs_nobody() -> anyhow::Result<()> {
    let swarm = swarm().await?;
    let d = swarm.hidden;
    let (mut flood, mut more) = (Stranger::greeted(&swarm).await?, Stranger::greeted(&swarm).await?);
    for n in 0..=u8::MAX {
        flood.send(u64::from(n), &relay(n), &[rows(1, d, 0.1)]).await?;
    }
    // Those that were not kept are refused at once, though the stream may have no more than 32 requests under way.
    let (_, full) = flood.receive().await?;
    assert!(matches!(full, Response::Refused(Refusal::Busy { .. })), "{full:?}");
    assert!(matches!(flood.receive().await?, (_, Response::Refused(Refusal::Busy { .. }))));
    assert!(matches!(more.ask(&forward(layout((1, 2), &[1])), &[rows(1, d, 0.1)]).await?, Response::Forward(_)));
    Ok(())
}
