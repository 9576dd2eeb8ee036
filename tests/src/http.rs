//! As much HTTP as tests of `petals-tune serve` need: one request on one connection.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;

/// Longest silence of a server.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server's answer.
#[derive(Debug, Clone)]
pub struct HttpAnswer {
    /// The status.
    pub status: u16,
    /// Names, in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// The body, as text.
    pub body: String,
}

impl HttpAnswer {
    /// The body as JSON.
    ///
    /// # Errors
    /// If it is none.
    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_str(&self.body).with_context(|| format!("status {}: {:?}", self.status, self.body))
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The data of the server-sent events of which the body consists; the last one is `[DONE]` and left out.
    ///
    /// # Errors
    /// If it does not consist of them.
    pub fn events(&self) -> anyhow::Result<Vec<Value>> {
        let mut events: Vec<&str> =
            self.body.split_terminator("\n\n").filter(|event| !event.starts_with(':')).collect();
        anyhow::ensure!(events.pop() == Some("data: [DONE]"), "no [DONE] at the end of {:?}", self.body);
        let data = |event: &&str| {
            let json = event.strip_prefix("data: ").with_context(|| format!("{event:?} is no event"))?;
            Ok(serde_json::from_str(json)?)
        };
        events.iter().map(data).collect()
    }
}

/// Sends a request, and leaves the answer unread on the connection.
///
/// # Errors
/// If the server cannot be reached.
pub fn http_send(server: SocketAddr, head: &[&str], body: &str) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(server)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let (first, headers) = head.split_first().context("no request line")?;
    let mut text = format!("{first} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    if !headers.iter().any(|header| header.starts_with("Host:")) {
        text += &format!("Host: {server}\r\n");
    }
    for header in headers {
        text += &format!("{header}\r\n");
    }
    stream.write_all(format!("{text}\r\n{body}").as_bytes())?;
    Ok(stream)
}

/// Sends a request, `["GET /path", "Header: value", …]`, and reads the answer.
///
/// # Errors
/// If there is none, or it is no HTTP.
pub fn http(server: SocketAddr, head: &[&str], body: &str) -> anyhow::Result<HttpAnswer> {
    let mut bytes = Vec::new();
    http_send(server, head, body)?.read_to_end(&mut bytes)?;
    let end =
        bytes.windows(4).position(|window| window == b"\r\n\r\n").context("an answer without an end of its head")?;
    let (head, body) = (std::str::from_utf8(&bytes[..end])?, &bytes[end + 4..]);
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).context("no status")?.parse()?;
    let header = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned()));
    let headers: Vec<(String, String)> = lines.filter_map(header).collect();
    let chunked = headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
    let body = if chunked { joined(body)? } else { body.to_vec() };
    Ok(HttpAnswer { status, headers, body: String::from_utf8(body)? })
}

fn joined(mut chunks: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = chunks.windows(2).position(|window| window == b"\r\n").context("the answer was cut off")?;
        let size = usize::from_str_radix(std::str::from_utf8(&chunks[..end])?, 16)?;
        if size == 0 {
            return Ok(body);
        }
        let Some(chunk) = chunks.get(end + 2..end + 2 + size) else { bail!("a chunk was cut off") };
        body.extend_from_slice(chunk);
        chunks = chunks.get(end + 4 + size..).unwrap_or_default();
    }
}
