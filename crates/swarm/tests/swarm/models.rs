//! Which models a swarm serves, as one learns it who knows none of them.

use petals_protocol::{ModelId, ServerInfo, ServerState};

use super::support::{client, eventually, info, model, server, span, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_tell_which_models_they_have_records_of() {
    let (bootstrap, _streams) = server(&[]).await;
    let peers = bootstrap.listen_addresses();
    let other: ModelId = "org/other@0000000000000002".parse().unwrap();
    let (first, _streams_first) = server(&peers).await;
    let (second, _streams_second) = server(&peers).await;
    first.announce(info(span(0, 4))).await.unwrap();
    let whole = ServerInfo { model_blocks: Some(8), ..ServerInfo::new(other.clone(), span(2, 6), ServerState::Online) };
    second.announce(whole).await.unwrap();
    let node = client(&peers).await;
    let both = [(model(), 4), (other, 8)];
    eventually("both models", async || (node.models().await == both).then_some(())).await;
    // One that leaves takes its model along.
    second.withdraw().await;
    within("leaving", second.shutdown()).await;
    eventually("one model", async || (node.models().await == both[..1]).then_some(())).await;
}
