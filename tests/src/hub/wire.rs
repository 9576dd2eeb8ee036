//! HTTP as far as a hub needs it: one request a connection.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::Fault;

/// A request without a body.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) method: String,
    /// Path, decoded, without what is behind its question mark.
    pub(super) path: String,
    pub(super) query: String,
    headers: Vec<(String, String)>,
}

/// An answer to it.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Vec<u8>,
    /// Whether a part of it may be asked for.
    pub(super) ranges: bool,
}

impl Request {
    pub(super) fn read(connection: &TcpStream) -> anyhow::Result<Option<Self>> {
        let mut reader = BufReader::new(connection.take(64 << 10));
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split_whitespace();
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut request =
            Self { method: method.to_owned(), path: decoded(path), query: query.to_owned(), headers: Vec::new() };
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
                return Ok(Some(request));
            }
            if let Some((name, value)) = line.split_once(':') {
                request.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
            }
        }
    }

    pub(super) fn header(&self, name: &str) -> Option<String> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.clone())
    }

    /// First and last byte of a part that is asked for.
    fn range(&self, length: usize) -> Option<(usize, usize)> {
        let (start, end) =
            self.header("range")?.strip_prefix("bytes=")?.split_once('-').map(|(a, b)| (a.to_owned(), b.to_owned()))?;
        let last = length.saturating_sub(1);
        Some((start.parse().ok()?, end.parse().map_or(last, |end: usize| end.min(last))))
    }
}

fn decoded(path: &str) -> String {
    let mut bytes = path.bytes();
    let mut out = Vec::new();
    while let Some(byte) = bytes.next() {
        let hex = |bytes: &mut std::str::Bytes<'_>| {
            let digits = [bytes.next()?, bytes.next()?];
            u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()
        };
        out.push(if byte == b'%' { hex(&mut bytes).unwrap_or(b'%') } else { byte });
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Sends an answer, or whatever a fault makes of it.
pub(super) fn send(
    mut connection: &TcpStream,
    request: &Request,
    mut reply: Reply,
    fault: Option<Fault>,
) -> anyhow::Result<()> {
    match &fault {
        Some(Fault::Status(status, headers, text)) => {
            reply = Reply { status: *status, headers: headers.clone(), body: text.as_bytes().to_vec(), ranges: false };
        }
        Some(Fault::Body(text)) => {
            reply = Reply { status: 200, headers: Vec::new(), body: text.as_bytes().to_vec(), ranges: false };
        }
        Some(Fault::Redirect(to)) => {
            reply = Reply { status: 302, headers: vec![("location", to.clone())], body: Vec::new(), ranges: false };
        }
        Some(Fault::Silence) => {
            std::thread::sleep(Duration::from_secs(5));
            return Ok(());
        }
        Some(Fault::NoRanges) => reply.ranges = false,
        Some(Fault::Flip(at)) => {
            if let Some(byte) = reply.body.get_mut(*at) {
                *byte ^= 0xff;
            }
        }
        _ => {}
    }
    let whole = reply.body.len();
    let mut body = reply.body.as_slice();
    if reply.status == 200 && reply.ranges {
        reply.headers.push(("accept-ranges", "bytes".to_owned()));
        match request.range(whole) {
            Some((start, _)) if start >= whole => {
                (reply.status, body) = (416, &[]);
                reply.headers.push(("content-range", format!("bytes */{whole}")));
            }
            Some((start, last)) => {
                (reply.status, body) = (206, &body[start..=last]);
                reply.headers.push(("content-range", format!("bytes {start}-{last}/{whole}")));
            }
            None => {}
        }
    }
    let mut head = format!("HTTP/1.1 {} Word\r\nconnection: close\r\ncontent-length: {}\r\n", reply.status, body.len());
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    connection.write_all(format!("{head}\r\n").as_bytes())?;
    if request.method == "HEAD" {
        return Ok(());
    }
    match fault {
        Some(Fault::Cut(bytes)) => connection.write_all(&body[..bytes.min(body.len())])?,
        Some(Fault::Stall(bytes, time)) => {
            connection.write_all(&body[..bytes.min(body.len())])?;
            connection.flush()?;
            std::thread::sleep(time);
        }
        _ => connection.write_all(body)?,
    }
    Ok(connection.flush()?)
}
