//! What a node prints on stdout: lines for people, or one JSON object per line.

use std::io::Write;

use petals_hub::Progress;
use petals_settings::{FileInForce, SettingInForce};
use serde::Serialize;

mod bench;
mod check;
mod devices;
mod join;
mod needs;
mod report;

pub use bench::{BenchFigures, BenchSetup};
pub use check::{Check, CheckStatus};
pub use devices::{DeviceProblem, DeviceSeen};
pub use join::Join;
pub(crate) use needs::size;
pub use needs::{BlockBytes, BlockKind, BlocksThatFit, ModelNeeds};
pub use report::Report;

/// Something that happened to the node.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum NodeEvent {
    /// The node can be reached here.
    Listening {
        /// Full address with peer id, ready to be given to `--peers`.
        address: String,
    },
    /// The blocks are loaded and announced.
    Ready {
        /// Model id, `name@fingerprint`.
        model: String,
        /// Blocks, `A..B`.
        blocks: String,
        /// Bytes of weights held.
        weight_bytes: u64,
        /// Device the blocks are on; of several devices each with its blocks.
        device: String,
        /// Dtype of weights and computation; of several devices that of the fewest bits.
        dtype: String,
        /// Seconds from start to here.
        seconds: f64,
        /// Where the swarm is shown to browsers, if it is.
        #[serde(skip_serializing_if = "Option::is_none")]
        page: Option<String>,
    },
    /// The swarm is shown to browsers.
    Page {
        /// Where.
        url: String,
    },
    /// How others join, or use what is served.
    Join(Join),
    /// No member of the swarm answers so far.
    Alone {
        /// Where members were looked for, and what came of it.
        reason: String,
    },
    /// A member of the swarm is there after all.
    Joined,
    /// Other blocks are served worse: the node loads them while it serves its own.
    Moving {
        /// Blocks served, `A..B`.
        blocks: String,
        /// Blocks it will serve.
        to: String,
    },
    /// A move was taken back.
    Staying {
        /// Blocks served, `A..B`.
        blocks: String,
    },
    /// The node serves other blocks than before.
    Moved {
        /// Blocks served, `A..B`.
        blocks: String,
        /// Bytes of their weights.
        weight_bytes: u64,
    },
    /// This machine's clock is so far from those of others that records are refused.
    ClockOff {
        /// Seconds by which it is ahead; negative if it is behind.
        ahead_s: f64,
        /// Members of the swarm that it was compared with.
        witnesses: usize,
    },
    /// A peer dialled an announced address in vain.
    AnnouncedUnreachable {
        /// The address.
        address: String,
    },
    /// What the node did in the last minutes.
    Report(Report),
    /// The list of peers that may use the node was read again.
    AllowListRead {
        /// Peers on it.
        peers: usize,
    },
    /// Requests are finished, nothing new is taken.
    Draining,
    /// The node has left the swarm.
    Stopped,
    /// A key file was written.
    Key {
        /// Peer id of the key.
        peer_id: String,
        /// The file.
        file: String,
    },
    /// The key of a private swarm was written.
    SwarmKey {
        /// What tells it from other keys.
        fingerprint: String,
        /// The file.
        file: String,
    },
    /// A model comes from the hub.
    Download(Progress),
    /// Whose settings follow, and the file that they may come from.
    SettingsFile(FileInForce),
    /// A setting that has a value.
    Setting(SettingInForce),
    /// A line that leads others into the swarm.
    Invitation {
        /// For `--join`.
        line: String,
        /// Members that it leads to.
        addresses: Vec<String>,
        /// The model that is served there.
        model: Option<String>,
        /// Whether the key of a private swarm is in it.
        with_key: bool,
    },
    /// What `doctor` found.
    Check(Check),
    /// `doctor` has written what a bug tracker needs.
    DoctorReport {
        /// The file.
        file: String,
    },
    /// What the model needs that `doctor` was given.
    ModelNeeds(ModelNeeds),
    /// A device of this machine.
    Device(DeviceSeen),
    /// A way to a GPU that leads nowhere on this machine.
    NoDevice {
        /// `CUDA` or `Vulkan`.
        runtime: &'static str,
        /// Why, and what to do.
        #[serde(flatten)]
        problem: DeviceProblem,
    },
    /// What is about to be timed.
    BenchSetup(BenchSetup),
    /// Figures of one kind of work.
    Bench(BenchFigures),
}

impl NodeEvent {
    /// Prints the event. A closed stdout is no reason to stop serving.
    pub fn emit(&self, json: bool) {
        let line = if json {
            serde_json::to_string(self).unwrap_or_else(|error| format!("{{\"event\":\"error\",\"error\":\"{error}\"}}"))
        } else {
            self.text()
        };
        let mut stdout = std::io::stdout().lock();
        let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
    }

    /// The event for people.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Listening { address } => format!("listening on {address}"),
            Self::Ready { model, blocks, weight_bytes, device, dtype, seconds, page } => {
                let mib = *weight_bytes as f64 / f64::from(1 << 20);
                let page = page.as_ref().map_or_else(String::new, |url| format!("; the swarm is shown at {url}"));
                format!(
                    "ready: blocks {blocks} of {model} on {device} in {dtype}, {mib:.1} MiB, after {seconds:.1} s{page}"
                )
            }
            Self::Page { url } => format!("the swarm is shown at {url}"),
            Self::Join(join) => join.to_string(),
            Self::Alone { reason } => format!("alone so far, and trying on: {reason}"),
            Self::Joined => "joined: a member of the swarm is there".into(),
            Self::Moving { blocks, to } => format!("moving from blocks {blocks} to {to}, where more is needed"),
            Self::Staying { blocks } => format!("staying at blocks {blocks}: others went"),
            Self::Moved { blocks, weight_bytes } => {
                format!("moved: blocks {blocks}, {:.1} MiB", *weight_bytes as f64 / f64::from(1 << 20))
            }
            Self::ClockOff { ahead_s, witnesses } => {
                let side = if *ahead_s < 0.0 { "behind" } else { "ahead of" };
                format!(
                    "warning: this machine's clock is {:.0} s {side} the swarm's ({witnesses} asked): records whose time is off by more than \
                     a minute are refused, and others do not find this node; set the clock, best by NTP",
                    ahead_s.abs()
                )
            }
            Self::AnnouncedUnreachable { address } => format!(
                "warning: a peer dialled the announced address {address} in vain: clients will not reach this node there; see that \
                 --announce is right and that the port is open and forwarded"
            ),
            Self::Report(report) => report.to_string(),
            Self::AllowListRead { peers } => format!("{peers} peers may use this node now"),
            Self::Draining => "draining: finishing what runs, a second signal quits at once".into(),
            Self::Stopped => "stopped".into(),
            Self::Key { peer_id, file } => format!("{peer_id} written to {file}"),
            Self::SwarmKey { fingerprint, file } => {
                format!("swarm key with fingerprint {fingerprint} written to {file}")
            }
            Self::Download(progress) => progress.to_string(),
            Self::SettingsFile(file) => file.to_string(),
            Self::Setting(setting) => setting.to_string(),
            Self::Invitation { line, .. } => line.clone(),
            Self::Check(check) => check.to_string(),
            Self::DoctorReport { file } => {
                format!("report written to {file}, without addresses, keys and paths: read it before you pass it on")
            }
            Self::ModelNeeds(needs) => needs.to_string(),
            Self::Device(device) => device.to_string(),
            Self::NoDevice { runtime, problem } => format!("no {runtime}: {problem}"),
            Self::BenchSetup(setup) => setup.to_string(),
            Self::Bench(figures) => figures.to_string(),
        }
    }
}
