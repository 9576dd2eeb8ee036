//! The slow links of the test kit: nothing is faster than physics, and hardly anything slower.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener as Listener, TcpStream as Stream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use petals_e2e::{Link, LinkConfig, Net, Relay};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;

/// How much longer than physics demands something may take: the machine that runs the tests has other work.
const SLACK: Duration = Duration::from_secs(2);

fn link(delay_ms: u64, mbit_per_s: f64) -> Arc<Link> {
    Link::new(LinkConfig { delay: Duration::from_millis(delay_ms), bits_per_s: mbit_per_s * 1e6 })
}

/// A host that sends everything back, behind a relay.
fn echo(net: &Net, link: Arc<Link>) -> io::Result<Relay> {
    let relay = net.relay(link)?;
    let listener = Listener::bind("127.0.0.1:0")?;
    relay.lead_to(listener.local_addr()?);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || io::copy(&mut stream.try_clone()?, &mut &stream));
        }
    });
    Ok(relay)
}

fn connect_to(relay: &Relay) -> io::Result<Stream> {
    let stream = Stream::connect(relay.address())?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.set_nodelay(true)?;
    // The first answer comes once the connection is up; afterwards times are those of the lanes alone.
    round_trip(&stream)?;
    Ok(stream)
}

fn round_trip(mut stream: &Stream) -> io::Result<Duration> {
    let started = Instant::now();
    stream.write_all(&[1])?;
    stream.read_exact(&mut [0])?;
    Ok(started.elapsed())
}

/// Sends `bytes` to an echoing host, ends the stream, and checks what comes back.
fn there_and_back(stream: Stream, bytes: usize) -> JoinHandle<io::Result<()>> {
    let data: Vec<u8> = (0..bytes).map(|n| (n * 31 % 251) as u8).collect();
    std::thread::spawn(move || {
        let mut reader = stream.try_clone()?;
        let expected = data.clone();
        let reads = std::thread::spawn(move || {
            let mut got = Vec::new();
            reader.read_to_end(&mut got)?;
            assert!(got == expected, "other bytes came back");
            io::Result::Ok(())
        });
        (&stream).write_all(&data)?;
        stream.shutdown(Shutdown::Write)?;
        reads.join().expect("other bytes came back")
    })
}

#[test]
fn a_message_takes_the_delay_and_hardly_more() {
    let net = Net::new(Some(link(20, 1000.0))).unwrap();
    let relay = echo(&net, link(30, 1000.0)).unwrap();
    let stream = connect_to(&relay).unwrap();
    let times: Vec<_> = (0..5).map(|_| round_trip(&stream).unwrap()).collect();
    let best = times.iter().min().copied().unwrap_or_default();
    assert!(best >= Duration::from_millis(100), "{best:?}: earlier than the delay allows");
    assert!(best < Duration::from_millis(100) + SLACK / 10, "{best:?}");
}

#[test]
fn both_directions_have_the_whole_rate() {
    // 4 MB each way at 5 MB/s: 0.8 s if they do not share, 1.6 s if they do.
    let net = Net::new(None).unwrap();
    let link = link(1, 40.0);
    let relay = echo(&net, link.clone()).unwrap();
    let stream = connect_to(&relay).unwrap();
    let before = (link.up.bytes(), link.down.bytes());
    let started = Instant::now();
    there_and_back(stream, 4_000_000).join().unwrap().unwrap();
    let took = started.elapsed();
    assert_eq!((link.up.bytes() - before.0, link.down.bytes() - before.1), (4_000_000, 4_000_000));
    assert!(took >= Duration::from_millis(800), "{took:?}: faster than the rate allows");
    assert!(took < Duration::from_millis(1600), "{took:?}: the directions wait for each other");
}

#[test]
fn all_connections_of_a_client_share_its_link() {
    let client = link(1, 40.0);
    let net = Net::new(Some(client.clone())).unwrap();
    let relays = [(); 2].map(|()| echo(&net, link(1, 1000.0)).unwrap());
    let streams: Vec<_> = relays.iter().map(|relay| connect_to(relay).unwrap()).collect();
    let started = Instant::now();
    let transfers: Vec<_> = streams.into_iter().map(|stream| there_and_back(stream, 1_000_000)).collect();
    transfers.into_iter().for_each(|transfer| transfer.join().unwrap().unwrap());
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(400), "{took:?}: two transfers of 0.2 s each share one link");
    assert!(took < Duration::from_millis(400) + SLACK, "{took:?}");
    assert!(client.up.bytes() >= 2_000_000 && client.down.bytes() >= 2_000_000);
}

#[test]
fn hosts_that_dial_each_other_use_their_own_links() {
    let (client, dialler) = (link(1, 1000.0), link(1, 1000.0));
    let net = Net::new(Some(client.clone())).unwrap();
    let relay = echo(&net, link(1, 1000.0)).unwrap();
    // A node dials from the port it listens on.
    let own = net.relay(dialler.clone()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        own.lead_to(socket.local_addr().unwrap());
        let mut stream = socket.connect(relay.address()).await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        stream.read_exact(&mut [0; 5]).await.unwrap();
    });
    assert_eq!((dialler.up.bytes(), dialler.down.bytes()), (5, 5));
    assert_eq!((client.up.bytes(), client.down.bytes()), (0, 0));
}

#[test]
fn a_full_link_stops_the_sender() {
    let net = Net::new(None).unwrap();
    let link = link(10, 8.0);
    let relay = net.relay(link.clone()).unwrap();
    let listener = Listener::bind("127.0.0.1:0").unwrap();
    relay.lead_to(listener.local_addr().unwrap());
    let stream = Stream::connect(relay.address()).unwrap();
    let (_never_read, _) = listener.accept().unwrap();
    stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut accepted = 0;
    while let Ok(written) = (&stream).write(&[0; 64 << 10]) {
        accepted += written;
        assert!(accepted < 64 << 20, "the relay takes everything");
    }
    // The sockets of both ends hold some megabytes at most; the rest was not read.
    assert!(accepted < 16 << 20, "{accepted} bytes");
    assert!(link.down.bytes() <= accepted as u64);
}

#[test]
fn a_cut_link_is_silent_until_it_is_restored() {
    let net = Net::new(None).unwrap();
    let link = link(1, 1000.0);
    let relay = echo(&net, link.clone()).unwrap();
    let mut stream = connect_to(&relay).unwrap();
    link.cut();
    stream.write_all(&[7]).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(stream.read(&mut [0]).is_err(), "something arrived");
    link.restore();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut byte = [0];
    stream.read_exact(&mut byte).unwrap();
    assert_eq!(byte, [7], "what was sent meanwhile arrives");
}

#[test]
fn broken_connections_end_and_new_ones_are_accepted() {
    let net = Net::new(None).unwrap();
    let relay = echo(&net, link(1, 1000.0)).unwrap();
    let mut stream = connect_to(&relay).unwrap();
    relay.break_connections();
    assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)), "the connection is still open");
    connect_to(&relay).unwrap();
}
