//! Nodes that find their swarm again when whoever brought them together is gone.

use petals_swarm::{ConnectError, MemberFile, SwarmConfig};

use crate::support::{CAP, client, client_config, eventually, info, lookup_until, server, server_config, span, start};

#[tokio::test(flavor = "multi_thread")]
async fn members_met_before_lead_back_into_a_swarm_without_its_bootstrap_node() {
    let folder = tempfile::tempdir().unwrap();
    let file = || Some(MemberFile::new(folder.path().join("members"), None));
    let (bootstrap, _incoming) = server(&[]).await;
    let peers = bootstrap.listen_addresses();
    let (other, _incoming) = server(&peers).await;
    other.announce(info(span(0, 2))).await.unwrap();
    let (first, _incoming) = start(SwarmConfig { members: file(), ..server_config(&peers) }).await;
    eventually("a connection to the other one", async || first.is_connected(&other.local_peer()).then_some(())).await;
    first.wait_company(CAP).await.unwrap();
    eventually("both in the file", async || {
        let kept = MemberFile::new(folder.path().join("members"), None).addresses();
        let has = |peer: &str| kept.iter().any(|address| address.to_string().ends_with(peer));
        (has(&other.local_peer().to_string()) && has(&bootstrap.local_peer().to_string())).then_some(())
    })
    .await;
    first.shutdown().await;
    bootstrap.shutdown().await;
    // A server and a client, neither of which is told an address.
    for config in [server_config(&[]), client_config(&[])] {
        let (again, _incoming) = start(SwarmConfig { members: file(), ..config }).await;
        assert_eq!(again.remembered(), 2);
        again.wait_company(CAP).await.unwrap();
        assert_eq!(lookup_until(&again, span(0, 2), |found| !found.is_empty()).await[0].peer, other.local_peer());
        again.shutdown().await;
    }
    // One that is told an address where nobody is any more.
    let (again, _incoming) = start(SwarmConfig { members: file(), ..client_config(&peers) }).await;
    again.wait_company(CAP).await.unwrap();
    assert!(again.is_connected(&other.local_peer()));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_finds_nobody_is_told_where_it_looked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("members");
    let (bootstrap, _incoming) = server(&[]).await;
    let peers = bootstrap.listen_addresses();
    let file = || Some(MemberFile::new(&path, None));
    let (met, _incoming) = start(SwarmConfig { members: file(), ..client_config(&peers) }).await;
    met.wait_company(CAP).await.unwrap();
    // Once it finds what the other has announced, each has told the other what it is.
    bootstrap.announce(info(span(0, 2))).await.unwrap();
    lookup_until(&met, span(0, 2), |found| !found.is_empty()).await;
    let has_none = client(&peers).await;
    has_none.shutdown().await;
    // What was met is written at the latest when a node ends.
    met.shutdown().await;
    bootstrap.shutdown().await;
    let short = std::time::Duration::from_millis(300);
    let (alone, _incoming) = start(SwarmConfig { members: file(), ..client_config(&[]) }).await;
    let Err(ConnectError::Alone { looked, .. }) = alone.wait_company(short).await else { panic!("it found somebody") };
    assert!(looked.iter().any(|text| text.contains("the one member met before")), "{looked:?}");
    let (alone, _incoming) = start(SwarmConfig { members: file(), ..client_config(&peers) }).await;
    let Err(ConnectError::Unreachable { failures, .. }) = alone.wait_company(short).await else {
        panic!("it found one")
    };
    assert!(failures[0].contains("127.0.0.1"), "{failures:?}");
    let (first, _incoming) = server(&[]).await;
    assert!(!first.has_company() && first.wait_company(short).await.is_err());
    first.wait_connected(short).await.unwrap();
}
