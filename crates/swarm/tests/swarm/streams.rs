//! Streams between two nodes.

use std::time::{Duration, Instant};

use futures::{AsyncReadExt, AsyncWriteExt};
use petals_swarm::{Multiaddr, OpenError, PeerId, PeerStream, SwarmConfig, SwarmHandle};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::support::{CAP, client, client_config, echo, echo_server, eventually, server, server_config, start, within};

async fn open(from: &SwarmHandle, to: &SwarmHandle) -> PeerStream {
    from.open_stream(to.local_peer(), &to.listen_addresses(), CAP).await.unwrap()
}

fn port_of(server: &SwarmHandle) -> u16 {
    server.listen_addresses()[0].to_string().split('/').nth(4).unwrap().parse().unwrap()
}

/// How the first read of a stream ends; panics if it delivers something.
async fn end_of(stream: &mut PeerStream) -> Duration {
    let start = Instant::now();
    let read = within("noticing the end of a stream", stream.read(&mut [0; 16])).await;
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    start.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_carries_many_messages() {
    let server = echo_server(server_config(&[])).await;
    let client = client(&server.listen_addresses()).await;
    let mut stream = open(&client, &server).await;
    for _ in 0..200 {
        within("an echo", echo(&mut stream, 8 * 1024)).await.unwrap();
    }
    assert_eq!(client.traffic().bytes_out, 200 * 8 * 1024);
    assert_eq!(client.traffic().bytes_in, client.traffic().bytes_out);
    let round_trip = eventually("a ping", async || client.ping(&server.local_peer())).await;
    assert!(round_trip < CAP && client.is_connected(&server.local_peer()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_streams_opened_at_once_all_work() {
    let server = echo_server(server_config(&[])).await;
    let (peer, addresses) = (server.local_peer(), server.listen_addresses());
    let mut clients = Vec::new();
    for _ in 0..4 {
        // Not connected yet: the first streams of each client share one dial.
        clients.push(start(client_config(&[])).await.0);
    }
    for _ in 0..5 {
        let opens = clients.iter().flat_map(|client| std::iter::repeat_n(client, 5)).map(|client| {
            let (client, addresses) = (client.clone(), addresses.clone());
            tokio::spawn(async move {
                let mut stream = client.open_stream(peer, &addresses, CAP).await.unwrap();
                echo(&mut stream, 4096).await.unwrap();
            })
        });
        for result in within("twenty echoes", futures::future::join_all(opens)).await {
            result.unwrap();
        }
    }
    assert_eq!((server.traffic().streams_accepted, server.traffic().streams_refused), (100, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_with_too_many_streams_is_refused_until_it_closes_some() {
    let server = echo_server(SwarmConfig { max_streams_per_peer: 2, ..server_config(&[]) }).await;
    let client = client(&server.listen_addresses()).await;
    let mut held = [open(&client, &server).await, open(&client, &server).await];
    for stream in &mut held {
        echo(stream, 16).await.unwrap();
    }
    end_of(&mut open(&client, &server).await).await;
    assert_eq!(server.traffic().streams_refused, 1);
    drop(held);
    eventually("room for a stream", async || echo(&mut open(&client, &server).await, 16).await.ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_cannot_be_reached_is_an_error_in_time() {
    let server = echo_server(server_config(&[])).await;
    let client = client(&server.listen_addresses()).await;
    let stranger = PeerId::random();
    let wait = Duration::from_millis(300);
    let unknown = client.open_stream(stranger, &[], CAP).await.unwrap_err();
    assert!(matches!(&unknown, OpenError::Unreachable { peer, .. } if *peer == stranger), "{unknown}");

    // Accepts connections and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: Multiaddr = format!("/ip4/127.0.0.1/tcp/{}", silent.local_addr().unwrap().port()).parse().unwrap();
    let error = client.open_stream(stranger, &[address], wait).await.unwrap_err();
    assert!(matches!(error, OpenError::Timeout { .. }), "{error}");

    let impostor = client.open_stream(PeerId::random(), &server.listen_addresses(), CAP).await.unwrap_err();
    assert!(impostor.to_string().contains(&server.local_peer().to_string()) || impostor.is_retryable(), "{impostor}");

    client.shutdown().await;
    let closed = client.open_stream(server.local_peer(), &server.listen_addresses(), CAP).await.unwrap_err();
    assert!(matches!(closed, OpenError::Closed), "{closed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_takes_no_streams_says_so() {
    let (bootstrap, streams) = server(&[]).await;
    drop(streams);
    let client = client(&bootstrap.listen_addresses()).await;
    let error = client.open_stream(bootstrap.local_peer(), &[], CAP).await.unwrap_err();
    assert!(matches!(error, OpenError::Unsupported(_)) && !error.is_retryable(), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noise_on_the_port_does_no_harm() {
    let server = echo_server(server_config(&[])).await;
    for junk in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], b"\x13/multistream/1.0.0\n\x07/noise\n\0\0"] {
        let mut socket = TcpStream::connect(("127.0.0.1", port_of(&server))).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut socket, junk).await.unwrap();
    }
    let client = client(&server.listen_addresses()).await;
    within("an echo", echo(&mut open(&client, &server).await, 16)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_does_not_accept_streams() {
    let (server, _streams) = server(&[]).await;
    let listen = vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()];
    let (client, mut incoming) = start(SwarmConfig { listen, ..client_config(&[]) }).await;
    let error = server.open_stream(client.local_peer(), &client.listen_addresses(), CAP).await.unwrap_err();
    assert!(matches!(error, OpenError::Unsupported(peer) if peer == client.local_peer()), "{error}");
    assert!(incoming.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_work_over_quic() {
    let listen = vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()];
    let server = echo_server(SwarmConfig { listen, ..server_config(&[]) }).await;
    let client = client(&server.listen_addresses()).await;
    within("an echo", echo(&mut open(&client, &server).await, 1 << 20)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_shuts_down_ends_its_streams_at_once() {
    let server = echo_server(server_config(&[])).await;
    let client = client(&server.listen_addresses()).await;
    let mut stream = open(&client, &server).await;
    echo(&mut stream, 16).await.unwrap();
    within("shutting down", server.shutdown()).await;
    assert!(end_of(&mut stream).await < Duration::from_secs(2));
    eventually("the disconnection", async || (!client.is_connected(&server.local_peer())).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_shuts_down_ends_its_own_streams() {
    let server = echo_server(server_config(&[])).await;
    let client = client(&server.listen_addresses()).await;
    let mut stream = open(&client, &server).await;
    echo(&mut stream, 16).await.unwrap();
    let reader = tokio::spawn(async move { end_of(&mut stream).await });
    within("shutting down", client.shutdown()).await;
    within("the reader", reader).await.unwrap();
}

/// Forwards connections to `target` until frozen; then takes and delivers nothing, as a cut cable does.
async fn freezing_proxy(target: std::net::SocketAddr, frozen: CancellationToken) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            let frozen = frozen.clone();
            tokio::spawn(async move {
                let mut to = TcpStream::connect(target).await.unwrap();
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut from, &mut to) => {}
                    () = frozen.cancelled() => std::future::pending().await,
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_falls_silent_is_noticed_even_while_sending() {
    let server = echo_server(server_config(&[])).await;
    let frozen = CancellationToken::new();
    let proxy = freezing_proxy(([127, 0, 0, 1], port_of(&server)).into(), frozen.clone()).await;
    let address = format!("/ip4/127.0.0.1/tcp/{}/p2p/{}", proxy.port(), server.local_peer()).parse().unwrap();
    let (client, _) = start(SwarmConfig {
        ping_interval: Duration::from_millis(200),
        ping_timeout: Duration::from_millis(500),
        ..client_config(&[address])
    })
    .await;
    client.wait_connected(CAP).await.unwrap();
    let mut reading = open(&client, &server).await;
    let mut writing = open(&client, &server).await;
    echo(&mut reading, 16).await.unwrap();
    echo(&mut writing, 16).await.unwrap();

    frozen.cancel();
    let writer = tokio::spawn(async move {
        let chunk = vec![0; 1 << 20];
        // More than all the buffers in between hold.
        for _ in 0..64 {
            writing.write_all(&chunk).await?;
        }
        writing.flush().await
    });
    end_of(&mut reading).await;
    assert!(within("the writer", writer).await.unwrap().is_err());
    // Another path works. (The hash table may have taken it already, so nothing is said of `is_connected` here.)
    let mut stream = client.open_stream(server.local_peer(), &server.listen_addresses(), CAP).await.unwrap();
    within("an echo", echo(&mut stream, 16)).await.unwrap();
}

/// A socket whose connections go on to `target` from `ip`: nodes do not choose where they come from.
async fn way_from(ip: std::net::Ipv4Addr, target: std::net::SocketAddr) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            tokio::spawn(async move {
                let socket = tokio::net::TcpSocket::new_v4()?;
                socket.bind((ip, 0).into())?;
                let mut to = socket.connect(target).await?;
                tokio::io::copy_bidirectional(&mut from, &mut to).await
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_address_with_many_ids_leaves_streams_to_others() {
    let server = echo_server(SwarmConfig { max_streams: 32, ..server_config(&[]) }).await;
    let target: std::net::SocketAddr = ([127, 0, 0, 1], port_of(&server)).into();
    let from = async |ip: [u8; 4]| {
        let way = way_from(ip.into(), target).await;
        let address: Multiaddr = format!("/ip4/127.0.0.1/tcp/{}", way.port()).parse().unwrap();
        (start(client_config(&[])).await.0, address)
    };
    let open_by = async |(node, address): &(SwarmHandle, Multiaddr)| {
        node.open_stream(server.local_peer(), std::slice::from_ref(address), CAP).await.unwrap()
    };
    let (mut attackers, mut held) = (Vec::new(), Vec::new());
    for _ in 0..8 {
        let attacker = from([127, 0, 0, 2]).await;
        for _ in 0..8 {
            held.push(open_by(&attacker).await);
        }
        attackers.push(attacker);
    }
    let traffic = eventually("all of them", async || {
        let traffic = server.traffic();
        (traffic.streams_accepted + traffic.streams_refused == 64).then_some(traffic)
    })
    .await;
    assert!((16..=24).contains(&traffic.streams_accepted), "{traffic:?}");
    let honest = from([127, 0, 0, 3]).await;
    for _ in 0..4 {
        let mut stream = open_by(&honest).await;
        within("an echo", echo(&mut stream, 16)).await.unwrap();
        held.push(stream);
    }
}
