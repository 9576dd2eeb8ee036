//! Answers that nobody asked for, from the other end of a stream.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::channel::mpsc::{Receiver, Sender, channel};
use futures::io::AsyncWriteExt;
use futures::stream::{IntoAsyncRead, TryStreamExt};
use petals_protocol::{MAGIC, ModelId, PREAMBLE_LEN, WireDtype};

use super::*;

const PATIENCE: Duration = Duration::from_secs(5);

/// One end of a stream within this process.
struct Pipe {
    read: IntoAsyncRead<Receiver<io::Result<Vec<u8>>>>,
    write: Sender<io::Result<Vec<u8>>>,
}

impl AsyncRead for Pipe {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.read).poll_read(cx, buf)
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let sent = self.write.poll_ready(cx).map_ok(|()| self.write.start_send(Ok(buf.to_vec())));
        sent.map(|sent| sent.and_then(|sent| sent).map(|()| buf.len()).map_err(io::Error::other))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write.close_channel();
        Poll::Ready(Ok(()))
    }
}

fn stream() -> (RequestStream, Pipe) {
    let ((a, from_a), (b, from_b)) = (channel(16), channel(16));
    let far = Pipe { read: from_a.into_async_read(), write: b };
    (RequestStream::new(Pipe { read: from_b.into_async_read(), write: a }), far)
}

fn hello() -> Request {
    Request::Hello { model: "m@0000000000000001".parse::<ModelId>().unwrap() }
}

/// The beginning of an answer with a body of so many bytes.
fn preamble(id: u64, body: u64) -> [u8; PREAMBLE_LEN] {
    let mut bytes = [0; PREAMBLE_LEN];
    bytes[0..4].copy_from_slice(&MAGIC);
    bytes[4] = 2;
    bytes[6] = FrameKind::Response as u8;
    bytes[8..16].copy_from_slice(&id.to_le_bytes());
    bytes[16..20].copy_from_slice(&8u32.to_le_bytes());
    bytes[20..28].copy_from_slice(&body.to_le_bytes());
    bytes
}

#[tokio::test]
async fn more_than_was_asked_for_is_not_read() {
    let (stream, mut far) = stream();
    let ask = stream.request(hello(), Vec::new(), 100, PATIENCE);
    // The body never comes: its length alone is too much.
    let answer = async {
        far.write_all(&preamble(0, 101)).await.unwrap();
        far.flush().await.unwrap();
    };
    let (asked, ()) = tokio::join!(ask, answer);
    assert_eq!(asked.unwrap_err(), RequestError::Unasked { got: 101, most: 100 });
    let again = stream.request(hello(), Vec::new(), 100, PATIENCE).await;
    assert_eq!(again.unwrap_err(), RequestError::Lost, "the stream is over");
}

#[tokio::test]
async fn answers_to_nothing_may_have_no_tensors_and_late_ones_what_was_asked() {
    let reply = Response::Relayed;
    let tensor = || Tensor::from_f32(WireDtype::F32, &[4], &[1.0; 4]);
    // A request that is given up, whose answer comes late.
    let (stream, far) = stream();
    let mut writer = FrameWriter::new(far, FrameKind::Response);
    let late = stream.request(hello(), Vec::new(), 16, Duration::from_millis(50)).await;
    assert!(matches!(late, Err(RequestError::Timeout(_))));
    writer.write(0, &reply, &[tensor()]).await.unwrap();
    // Telling the other end that it was given up had an id as well.
    let next = stream.request(hello(), Vec::new(), 16, PATIENCE);
    let answer = [tensor()];
    let (next, written) = tokio::join!(next, writer.write(2, &reply, &answer));
    assert!(written.is_ok() && next.is_ok_and(|(_, tensors)| tensors.len() == 1), "the stream goes on");
    // The same once more was not asked for.
    writer.write(0, &reply, &[tensor()]).await.unwrap();
    let next = stream.request(hello(), Vec::new(), 16, PATIENCE).await;
    assert_eq!(next.unwrap_err(), RequestError::Lost);
}
