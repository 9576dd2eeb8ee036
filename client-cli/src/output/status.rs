//! A swarm on one screen.

use std::fmt::{self, Display};

use serde::Serialize;

use super::{Event, Server, short};

/// Blocks in one line of the picture.
const LINE: usize = 64;

/// What a swarm serves.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Status {
    /// Members that this client is connected to.
    pub(crate) connected: usize,
    /// The models, by name.
    pub(crate) models: Vec<StatusModel>,
}

/// A model of a [`Status`].
#[derive(Debug, Clone, Serialize)]
pub(crate) struct StatusModel {
    /// Model id.
    pub(crate) model: String,
    /// Number of its blocks.
    pub(crate) blocks: u32,
    /// Ranges of blocks that nobody serves, `A..B`.
    pub(crate) missing: Vec<String>,
    /// How many servers hold which blocks.
    pub(crate) holders: Vec<Holders>,
    /// Its servers.
    pub(crate) servers: Vec<Server>,
    /// Seconds since each of them wrote what it says of itself, in the same order.
    pub(crate) ages_s: Vec<u64>,
}

/// Neighbouring blocks with equally many servers.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Holders {
    /// `A..B`.
    pub(crate) blocks: String,
    /// Servers that serve them.
    pub(crate) servers: usize,
    /// Number of blocks.
    #[serde(skip)]
    pub(crate) count: usize,
}

/// The swarm is shown to browsers.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Monitoring {
    /// Where.
    pub(crate) url: String,
    /// Whether those who look need a key.
    pub(crate) key: bool,
}

impl Event for Monitoring {
    const NAME: &'static str = "monitoring";
}

impl Display for Monitoring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = if self.key { ", with a key" } else { "" };
        write!(f, "the swarm is shown at {}{key}", self.url)
    }
}

impl Event for Status {
    const NAME: &'static str = "status";
}

impl Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers: usize = self.models.iter().map(|model| model.servers.len()).sum();
        let counted = |count: usize, one: &str| if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") };
        write!(
            f,
            "{}, {}, connected to {}",
            counted(self.models.len(), "model"),
            counted(servers, "server"),
            counted(self.connected, "member")
        )?;
        self.models.iter().try_for_each(|model| write!(f, "\n\n{model}"))
    }
}

impl Display for StatusModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.missing.is_empty() {
            true => "complete".to_owned(),
            false => format!("nobody serves {}", self.missing.join(", ")),
        };
        write!(f, "{}: {} blocks, {state}", self.model, self.blocks)?;
        // A character for each block: its number of servers.
        let digit = |servers| match servers {
            0 => '.',
            1..=9 => char::from_digit(servers as u32, 10).unwrap_or('+'),
            _ => '+',
        };
        let picture: Vec<char> =
            self.holders.iter().flat_map(|run| std::iter::repeat_n(digit(run.servers), run.count)).collect();
        for (number, line) in picture.chunks(LINE).enumerate() {
            write!(f, "\n  {:>4}  {}", number * LINE, line.iter().collect::<String>())?;
        }
        let name = |server: &Server| server.public_name.clone().unwrap_or_default();
        let width = self.servers.iter().map(|server| name(server).chars().count()).max().unwrap_or(0);
        let place = self.servers.iter().map(|server| server.device.chars().count()).max().unwrap_or(0);
        for (server, age) in self.servers.iter().zip(&self.ages_s) {
            let state = format!("{:?}", server.state).to_lowercase();
            let speed = |rate: Option<f32>| rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.0}"));
            let (peer, name, blocks) = (short(&server.peer), name(server), &server.blocks);
            write!(
                f,
                "\n  {peer}  {name:width$}  {blocks:>9}  {state:8}  {:5}  {:place$}",
                server.dtype, server.device
            )?;
            write!(
                f,
                "  {:>6} tokens/s, {:>5} in a session, queue {}, {age} s ago",
                speed(server.forward_tokens_per_s),
                speed(server.decode_tokens_per_s),
                server.queue_depth
            )?;
            f.write_str(if server.relayed { ", through a relay" } else { "" })?;
            if let Some(to) = &server.moving_to {
                write!(f, ", moving to {to}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use petals_client::{PeerId, ServerInfo, ServerState};

    use super::*;

    #[test]
    fn a_screen_says_what_is_missing_and_shows_each_block() {
        let info = ServerInfo {
            public_name: Some("attic".into()),
            device: "cuda:0,cpu".into(),
            dtype: "bf16".into(),
            forward_tokens_per_s: Some(123.4),
            ..ServerInfo::new("demo@0000000000000001".parse().unwrap(), "0..2".parse().unwrap(), ServerState::Online)
        };
        let run = |blocks: &str, servers, count| Holders { blocks: blocks.to_owned(), servers, count };
        let model = StatusModel {
            model: info.model.to_string(),
            blocks: 70,
            missing: vec!["66..70".to_owned()],
            holders: vec![run("0..2", 1, 2), run("2..66", 12, 64), run("66..70", 0, 4)],
            servers: vec![Server::new(&PeerId::random(), info)],
            ages_s: vec![7],
        };
        let text = Status { connected: 2, models: vec![model] }.to_string();
        assert!(text.starts_with("1 model, 1 server, connected to 2 members"), "{text}");
        assert!(text.contains("70 blocks, nobody serves 66..70\n     0  11++"), "{text}");
        assert!(text.contains("\n    64  ++....\n"), "{text}");
        assert!(text.contains("bf16   cuda:0,cpu  "), "{text}");
        assert!(text.contains("attic") && text.contains("123 tokens/s") && text.contains("7 s ago"), "{text}");
    }
}
