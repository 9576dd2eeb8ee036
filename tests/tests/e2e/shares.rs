//! Peers that take what they can get, with many ids at one address, beside somebody at another address who must not notice.

use std::time::{Duration, Instant};

use petals_client::{PassInput, RelayMode, SequenceConfig};
use petals_e2e::{AttackStream, Attacker, Goldens, LocalSwarm};
use petals_node::{ExecutorConfig, ServerConfig};
use petals_protocol::{
    ForwardRequest, NextServer, Refusal, RelayToken, Request, Response, RowSource, RowTarget, SessionId, SessionOpen,
    StepRequest,
};

use crate::hostile::{forward, forward_request, layout, rows};

/// Where attackers are; everybody else is at 127.0.0.1.
const ELSEWHERE: &str = "127.0.0.2";
/// Longest time that anything honest may take beside them: it takes milliseconds alone.
const SOON: Duration = Duration::from_secs(2);

async fn swarm(spans: &[&str], configure: impl Fn(ServerConfig) -> ServerConfig) -> anyhow::Result<LocalSwarm> {
    let goldens = Goldens::load("llama-gqa")?;
    LocalSwarm::start_with(&goldens.model(), spans, configure).await
}

/// Ids at one address, with a few streams each.
async fn attackers(
    swarm: &LocalSwarm,
    ids: usize,
    streams: usize,
) -> anyhow::Result<Vec<(Attacker, Vec<AttackStream>)>> {
    let mut all = Vec::new();
    for _ in 0..ids {
        let attacker = Attacker::at(ELSEWHERE, swarm.servers[0].swarm(), &swarm.model).await?;
        let mut held = Vec::new();
        for _ in 0..streams {
            held.push(attacker.greeted().await?);
        }
        all.push((attacker, held));
    }
    Ok(all)
}

/// Forwards of somebody honest, each of which must come soon and be what it was.
struct Honest {
    sequence: petals_client::RemoteSequence,
    input: PassInput,
    expected: Vec<f32>,
}

impl Honest {
    async fn new(swarm: &LocalSwarm, relay: RelayMode) -> anyhow::Result<Self> {
        let sequence = swarm.sequence(SequenceConfig { relay, ..SequenceConfig::default() });
        let text = (0..20 * swarm.hidden).map(|n| (n as f32 * 0.7).sin()).collect();
        let input = PassInput { lengths: vec![12, 8], text, read_rows: None, tables: None };
        let (expected, _) = sequence.forward(input.clone(), false).await?;
        Ok(Self { sequence, input, expected })
    }

    async fn asks(&self, times: usize) -> anyhow::Result<()> {
        for _ in 0..times {
            let started = Instant::now();
            let asked = tokio::time::timeout(10 * SOON, self.sequence.forward(self.input.clone(), false)).await;
            let (got, _) = asked.map_err(|_| anyhow::anyhow!("no answer beside attackers"))??;
            assert!(started.elapsed() < SOON, "{:?} beside attackers", started.elapsed());
            assert_eq!(got, self.expected);
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lengths_that_are_claimed_and_not_sent_take_no_memory() -> anyhow::Result<()> {
    let swarm = swarm(&["0..4"], |config| ServerConfig { request_bytes: 8 << 20, ..config }).await?;
    let honest = Honest::new(&swarm, RelayMode::Chain).await?;
    let mut attackers = attackers(&swarm, 6, 4).await?;
    let limits = attackers[0].1[0].limits;
    // The largest request there is, of which a few bytes come now and then.
    let rows_of_it = (limits.max_body / (4 * swarm.hidden as u64)).min(4096) as u32;
    let request = forward(layout((0, 4), &[rows_of_it]));
    for stream in attackers.iter_mut().flat_map(|(_, streams)| streams) {
        stream.claim(&request, rows(rows_of_it as usize, swarm.hidden, 0.1), 400).await?;
    }
    for _ in 0..4 {
        honest.asks(5).await?;
        for stream in attackers.iter_mut().flat_map(|(_, streams)| streams) {
            let _ = stream.send_raw(&[0]).await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    // By now nothing is kept for them, so even one of them who means it finds room.
    let (attacker, _) = &attackers[0];
    let mut earnest = attacker.greeted().await?;
    let answer = earnest.ask(&forward(layout((0, 4), &[100])), &[rows(100, swarm.hidden, 0.1)]).await?;
    assert!(matches!(answer, Response::Forward(_)), "{answer:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_wait_for_rows_take_no_memory_for_their_replies() -> anyhow::Result<()> {
    let swarm = swarm(&["0..4"], |config| ServerConfig { request_bytes: 4 << 20, ..config }).await?;
    let honest = Honest::new(&swarm, RelayMode::Chain).await?;
    let mut attackers = attackers(&swarm, 8, 1).await?;
    for (number, (_, streams)) in attackers.iter_mut().enumerate() {
        for n in 0..20u8 {
            let input = RowSource::Relay(RelayToken([(20 * number) as u8 + n; 16]));
            let waiting = ForwardRequest { input, deadline_ms: 600_000, ..forward_request(layout((0, 4), &[4096])) };
            streams[0].send(u64::from(n), &Request::Forward(waiting), &[]).await?;
        }
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    honest.asks(20).await
}

/// A step that opens a session for so many positions, and one that goes on with it.
fn step(session: u64, start: u32, open: Option<u32>) -> Request {
    let open = open.map(|max_positions| SessionOpen { max_sequences: 1, max_positions });
    let forward = forward_request(layout((0, 4), &[1]));
    Request::Step(Box::new(StepRequest {
        session: SessionId(session),
        forward,
        starts: vec![start],
        order: None,
        open,
    }))
}

#[tokio::test(flavor = "multi_thread")]
async fn two_ids_that_reserve_all_memory_of_sessions_keep_nobody_out() -> anyhow::Result<()> {
    // What an eighth less of this holds is a few sessions.
    let executor = ExecutorConfig { kv_bytes: 1 << 20, ..ExecutorConfig::default() };
    let swarm = swarm(&["0..4"], |config| ServerConfig { executor: executor.clone(), ..config }).await?;
    let d = swarm.hidden;
    let mut attackers = attackers(&swarm, 2, 1).await?;
    let mut opened = Vec::new();
    for (_, streams) in &mut attackers {
        // As much as there is for one peer, in small pieces.
        let mut of_this = 0;
        for session in 0..2000 {
            let answer = streams[0].ask(&step(session, 0, Some(128)), &[rows(1, d, 0.1)]).await?;
            if !matches!(answer, Response::Forward(_)) {
                assert!(matches!(answer, Response::Refused(Refusal::Busy { .. })), "{answer:?}");
                break;
            }
            of_this += 1;
        }
        assert!(of_this > 2, "{of_this}");
        opened.push(of_this);
    }
    let honest = Attacker::at("127.0.0.3", swarm.servers[0].swarm(), &swarm.model).await?;
    let mut stream = honest.greeted().await?;
    for session in 0..opened[0] / 2 {
        let answer = stream.ask(&step(session, 0, Some(128)), &[rows(1, d, 0.1)]).await?;
        assert!(matches!(answer, Response::Forward(_)), "session {session}: {answer:?}");
    }
    // Those that hold it keep what they filled, as long as that is no more than their part.
    for (_, streams) in &mut attackers {
        let answer = streams[0].ask(&step(0, 1, None), &[rows(1, d, 0.1)]).await?;
        assert!(matches!(answer, Response::Forward(_)), "{answer:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_for_nobody_do_not_keep_others_from_passing_theirs_on() -> anyhow::Result<()> {
    let swarm = swarm(&["0..2", "2..4"], |config| config).await?;
    let honest = Honest::new(&swarm, RelayMode::Chain).await?;
    honest.asks(3).await?;
    let before = honest.sequence.traffic();
    honest.asks(10).await?;
    let calm = honest.sequence.traffic().since(&before);
    let peer = swarm.servers[1].swarm().local_peer().to_bytes();
    let mut attackers = attackers(&swarm, 3, 1).await?;
    // Each asks the first server to pass rows on for which nobody ever asks the second one, as many as it may have under way.
    for (number, (_, streams)) in attackers.iter_mut().enumerate() {
        for n in 0..32u8 {
            let token = RelayToken([128 + 32 * number as u8 + n; 16]);
            let output = RowTarget::Relay(NextServer { peer: peer.clone(), token });
            let request = ForwardRequest { output, ..forward_request(layout((0, 2), &[1])) };
            streams[0].send(u64::from(n), &Request::Forward(request), &[rows(1, swarm.hidden, 0.1)]).await?;
        }
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let before = honest.sequence.traffic();
    honest.asks(10).await?;
    let beside = honest.sequence.traffic().since(&before);
    assert!(beside.sent < calm.sent + calm.sent / 2, "rows went through the client: {beside:?} and {calm:?} in calm");
    Ok(())
}
