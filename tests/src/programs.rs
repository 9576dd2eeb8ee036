//! The real programs, started as a user would.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::internet::Host;

mod tune;

pub use tune::Tune;

/// Where nodes listen that have no host of their own.
const LOOPBACK: &str = "/ip4/127.0.0.1/tcp/0";
/// The port of nodes on hosts of their own.
const PORT: u16 = 31330;
/// Longest wait for a node to do something that takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// A program of this project, away from what the user has set and kept.
fn start(name: &str) -> anyhow::Result<Command> {
    let mut command = Command::new(program(name)?);
    apart(&mut command);
    Ok(command)
}

fn apart(command: &mut Command) {
    command.env_remove("PETALS_PEERS").env("XDG_CONFIG_HOME", std::env::temp_dir().join("petals-e2e"));
    // Whom one test met is of no use to another one; a directory below a file cannot be made.
    command.env("XDG_CACHE_HOME", "/dev/null");
}

fn program(name: &str) -> anyhow::Result<PathBuf> {
    let test = std::env::current_exe()?;
    let directory = test.parent().and_then(Path::parent).context("the test has no target directory")?;
    let path = directory.join(name);
    anyhow::ensure!(path.exists(), "{} is missing: cargo build --release -p {name}", path.display());
    Ok(path)
}

/// Sends a signal by its name, such as `TERM`, to a process that a test started.
///
/// # Errors
/// If it cannot be sent.
pub fn send_signal(process: u32, name: &str) -> anyhow::Result<()> {
    let status = Command::new("kill").arg(format!("-{name}")).arg(process.to_string()).status()?;
    anyhow::ensure!(status.success(), "kill -{name} failed");
    Ok(())
}

/// Lines of a child's stdout, read on a thread so that waiting can time out.
fn lines(stdout: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = sync_channel(10_000);
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// The events of a program that ended.
fn events(output: Output) -> anyhow::Result<Vec<Value>> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{}: {stderr}", output.status);
    let stdout = String::from_utf8(output.stdout)?;
    stdout.lines().map(|line| serde_json::from_str(line).with_context(|| format!("stdout had {line:?}"))).collect()
}

fn next_event(lines: &Receiver<String>, name: &str, patience: Duration) -> anyhow::Result<Value> {
    next_events(lines, name, patience)?.pop().context("no event")
}

/// All events up to the next of that name, which is the last of them.
fn next_events(lines: &Receiver<String>, name: &str, patience: Duration) -> anyhow::Result<Vec<Value>> {
    let (deadline, mut events) = (Instant::now() + patience, Vec::new());
    loop {
        let line = match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => bail!("no `{name}` event within {patience:?}"),
            Err(RecvTimeoutError::Disconnected) => bail!("the program ended before its `{name}` event"),
        };
        let event: Value = serde_json::from_str(&line).with_context(|| format!("stdout had {line:?}"))?;
        let is_last = event["event"] == name;
        events.push(event);
        if is_last {
            return Ok(events);
        }
    }
}

/// A `petals-node` process, killed when dropped.
#[derive(Debug)]
pub struct Node {
    child: Child,
    lines: Receiver<String>,
    /// Where it listens, ready for `--peers`.
    pub address: String,
    /// The `ready` event of a server that was waited for.
    pub ready: Value,
}

impl Node {
    /// Starts a node on loopback and waits until it listens.
    ///
    /// # Errors
    /// If it does not.
    pub fn start(arguments: &[&str]) -> anyhow::Result<Self> {
        Self::start_by(start("petals-node")?, LOOPBACK, arguments)
    }

    /// As [`Self::start`], with more environment variables.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_in(environment: &[(&str, &str)], arguments: &[&str]) -> anyhow::Result<Self> {
        let mut command = start("petals-node")?;
        command.envs(environment.iter().copied());
        Self::start_by(command, LOOPBACK, arguments)
    }

    /// Starts a node on a host of an [`crate::Internet`], at its address and port 31330.
    ///
    /// # Errors
    /// If it does not listen.
    pub fn start_on(host: &Host, arguments: &[&str]) -> anyhow::Result<Self> {
        let listen = format!("/ip4/{}/tcp/{PORT}", host.address());
        let mut command = host.command(&program("petals-node")?);
        // Tests lose its packets and cut it off on purpose; what it says about that would hide everything else.
        command.env("RUST_LOG", "error");
        Self::start_by(command, &listen, arguments)
    }

    /// As [`Self::start`], on one processor core alone.
    ///
    /// # Errors
    /// As [`Self::start`], and without the program `taskset`.
    pub fn start_on_core(core: usize, arguments: &[&str]) -> anyhow::Result<Self> {
        let mut command = Command::new("taskset");
        command.args(["--cpu-list", &core.to_string()]).arg(program("petals-node")?);
        Self::start_by(command, LOOPBACK, arguments)
    }

    /// As [`Self::start`], on a machine whose clock is off, such as by `+3m`.
    ///
    /// # Errors
    /// As [`Self::start`], and without the program `faketime`.
    pub fn start_at(offset: &str, arguments: &[&str]) -> anyhow::Result<Self> {
        let mut command = Command::new("faketime");
        command.args(["-f", offset]).arg(program("petals-node")?);
        Self::start_by(command, LOOPBACK, arguments)
    }

    fn start_by(mut command: Command, listen: &str, arguments: &[&str]) -> anyhow::Result<Self> {
        apart(&mut command);
        command.args(arguments).args(["--json", "--listen", listen]);
        // What a loaded machine measures must not be what the user's own nodes announce.
        command.env("XDG_CACHE_HOME", std::env::temp_dir().join("petals-e2e"));
        // A group of its own, because `faketime` starts the node as its child, which would outlive it.
        let mut child = command.process_group(0).stdout(Stdio::piped()).spawn()?;
        let lines = lines(child.stdout.take().context("no stdout")?);
        let mut node = Self { child, lines, address: String::new(), ready: Value::Null };
        let event = node.event("listening")?;
        node.address = event["address"].as_str().context("no address")?.to_owned();
        Ok(node)
    }

    /// Resident memory, in bytes.
    ///
    /// # Errors
    /// If the process is gone, or the system does not tell.
    pub fn resident_bytes(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib * 1024)
    }

    /// Open file descriptors.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn descriptors(&self) -> anyhow::Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", self.id()))?.count())
    }

    /// Bytes of the weights of a server that was waited for.
    ///
    /// # Errors
    /// If its `ready` event was not seen.
    pub fn weight_bytes(&self) -> anyhow::Result<u64> {
        self.ready["weight_bytes"].as_u64().context("no weight_bytes")
    }

    /// Waits for an event.
    ///
    /// # Errors
    /// If it does not come in time.
    pub fn event(&self, name: &str) -> anyhow::Result<Value> {
        self.event_within(name, PATIENCE)
    }

    /// As [`Self::event`], of something that may take so long.
    ///
    /// # Errors
    /// As there.
    pub fn event_within(&self, name: &str, time: Duration) -> anyhow::Result<Value> {
        next_event(&self.lines, name, time)
    }

    /// As [`Self::event`], with all that came before it.
    ///
    /// # Errors
    /// As there.
    pub fn events(&self, name: &str) -> anyhow::Result<Vec<Value>> {
        next_events(&self.lines, name, PATIENCE)
    }

    /// Runs `petals-node` with `--json` to a successful end and returns its events.
    ///
    /// # Errors
    /// If it fails, with what it wrote to stderr.
    pub fn run(arguments: &[&str]) -> anyhow::Result<Vec<Value>> {
        let output = start("petals-node")?.args(arguments).arg("--json").output()?;
        events(output)
    }

    /// Runs `petals-node` for people to an end of whatever kind.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn output(arguments: &[&str]) -> anyhow::Result<Output> {
        Self::output_in(&[], arguments)
    }

    /// As [`Self::output`], with more environment variables.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn output_in(environment: &[(&str, &str)], arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command = start("petals-node")?;
        Ok(command.envs(environment.iter().copied()).args(arguments).output()?)
    }

    /// Runs `petals-node` to an end that is not successful, and returns what it wrote.
    ///
    /// # Errors
    /// If it succeeds.
    pub fn refused(arguments: &[&str]) -> anyhow::Result<String> {
        let output = Self::output(arguments)?;
        let written = [output.stdout, output.stderr].concat();
        let written = String::from_utf8_lossy(&written).into_owned();
        anyhow::ensure!(!output.status.success(), "it succeeded: {written}");
        Ok(written)
    }

    /// Where it listens, as a socket.
    ///
    /// # Errors
    /// If its address is not `/ip4/…/tcp/…`.
    pub fn socket(&self) -> anyhow::Result<SocketAddr> {
        let parts: Vec<&str> = self.address.split('/').collect();
        let ["", "ip4", ip, "tcp", port, ..] = parts.as_slice() else { bail!("{} is not TCP over IPv4", self.address) };
        Ok(SocketAddr::new(ip.parse()?, port.parse()?))
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// If the process is gone already.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        anyhow::ensure!(self.child.try_wait()?.is_none(), "the node has ended");
        self.kill_group()?;
        self.child.wait()?;
        Ok(())
    }

    fn kill_group(&self) -> anyhow::Result<()> {
        let group = format!("-{}", self.child.id());
        let status = Command::new("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status()?;
        anyhow::ensure!(status.success(), "kill -KILL failed");
        Ok(())
    }

    /// Sends a signal by its name, such as `TERM`.
    ///
    /// # Errors
    /// If it cannot be sent.
    pub fn signal(&self, name: &str) -> anyhow::Result<()> {
        send_signal(self.child.id(), name)
    }

    /// Waits for the end of the process and returns its exit status.
    ///
    /// # Errors
    /// If it does not end in time.
    pub fn wait(&mut self) -> anyhow::Result<i32> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return status.code().context("ended by a signal");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!("the node does not end")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let _ = self.kill_group();
        }
        let _ = self.child.wait();
    }
}

/// A bootstrap node and servers, each a process of its own.
#[derive(Debug)]
pub struct ProcessSwarm {
    /// Knows everybody, hosts nothing.
    pub bootstrap: Node,
    /// In the order of the spans asked for.
    pub servers: Vec<Node>,
    model: PathBuf,
    device: String,
}

impl ProcessSwarm {
    /// Starts a swarm that serves `model` by one server for each of `spans`.
    ///
    /// # Errors
    /// If a node does not come up.
    pub fn start(model: &Path, spans: &[&str]) -> anyhow::Result<Self> {
        Self::start_with_device(model, "cpu", spans)
    }

    /// The same with another device than the CPU.
    ///
    /// # Errors
    /// If a node does not come up.
    pub fn start_with_device(model: &Path, device: &str, spans: &[&str]) -> anyhow::Result<Self> {
        let bootstrap = Node::start(&["bootstrap"])?;
        let mut swarm = Self { bootstrap, servers: Vec::new(), model: model.to_owned(), device: device.to_owned() };
        for span in spans {
            let node = swarm.spawn_server(&["--blocks", span])?;
            swarm.servers.push(node);
        }
        for server in &mut swarm.servers {
            server.ready = server.event("ready")?;
        }
        Ok(swarm)
    }

    /// Starts another server with more arguments, without waiting until it is ready.
    ///
    /// # Errors
    /// If it does not listen.
    pub fn spawn_server(&self, arguments: &[&str]) -> anyhow::Result<Node> {
        let model = self.model.to_str().context("a path that is not UTF-8")?;
        let mut all = vec!["serve", "--model", model, "--device", &self.device, "--peers", &self.bootstrap.address];
        all.extend(arguments);
        Node::start(&all)
    }

    /// A `petals-tune` command against this swarm.
    ///
    /// # Errors
    /// If the program is missing.
    pub fn tune(&self, subcommand: &str) -> anyhow::Result<Tune> {
        let mut command = start("petals-tune")?;
        // With `=`, because what follows `--peers` may be another peer.
        command.arg(subcommand).arg("--model").arg(&self.model).arg(format!("--peers={}", self.bootstrap.address));
        Ok(Tune { command })
    }
}
