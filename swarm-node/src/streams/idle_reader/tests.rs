use futures::channel::mpsc;
use futures::{AsyncReadExt, FutureExt, TryStreamExt};

use super::*;

const LONG: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(20);

/// A pipe: what is sent is read.
fn pipe() -> (mpsc::Sender<io::Result<Vec<u8>>>, impl AsyncRead + Unpin) {
    let (sender, receiver) = mpsc::channel(8);
    (sender, receiver.into_async_read())
}

#[tokio::test]
async fn a_peer_that_stops_inside_of_a_frame_is_given_up() {
    let (mut sender, read) = pipe();
    let (mut reader, _) = IdleReader::new(read, LONG, SHORT);
    sender.try_send(Ok(vec![1])).unwrap();
    let error = tokio::time::timeout(LONG, reader.read_exact(&mut [0; 2])).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}

#[tokio::test]
async fn between_frames_there_is_more_time() {
    let (mut sender, read) = pipe();
    let (mut reader, gauge) = IdleReader::new(read, LONG, SHORT);
    for byte in [1, 2] {
        let late = tokio::time::timeout(10 * SHORT, reader.read_exact(&mut [0; 1])).await;
        assert!(late.is_err(), "the reader itself must still be waiting");
        sender.try_send(Ok(vec![byte])).unwrap();
        reader.read_exact(&mut [0; 1]).await.unwrap();
        gauge.frame_ended();
    }
}

#[tokio::test]
async fn a_slow_frame_arrives_as_long_as_its_bytes_keep_coming() {
    let (mut sender, read) = pipe();
    let patience = Duration::from_millis(500);
    let (mut reader, _) = IdleReader::new(read, LONG, patience);
    let writing = async {
        for byte in 0..8 {
            tokio::time::sleep(patience / 4).await;
            sender.try_send(Ok(vec![byte])).unwrap();
        }
    };
    let mut frame = [0; 8];
    let (read, ()) = futures::join!(reader.read_exact(&mut frame), writing);
    read.unwrap();
    assert_eq!(frame, [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[tokio::test]
async fn no_more_is_read_of_a_frame_than_is_allowed_and_that_wait_is_not_the_peers() {
    let (mut sender, read) = pipe();
    let (mut reader, gauge) = IdleReader::new(read, LONG, SHORT);
    sender.try_send(Ok(vec![1, 2, 3])).unwrap();
    gauge.count_from_here();
    gauge.allow(2);
    let mut frame = [0; 3];
    let mut whole = Box::pin(reader.read_exact(&mut frame));
    assert!(whole.as_mut().now_or_never().is_none());
    assert_eq!(gauge.arrived(), 2);
    assert!(tokio::time::timeout(5 * SHORT, whole.as_mut()).await.is_err(), "it waits, and does not fail");
    gauge.allow(3);
    whole.await.unwrap();
    assert_eq!((frame, gauge.arrived()), ([1, 2, 3], 3));
}
