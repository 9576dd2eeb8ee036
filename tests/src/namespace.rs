//! Network namespaces of Linux: machines of their own as far as the network is concerned.

use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, ensure};

/// In front of the names of all namespaces made here, followed by the id of the process that made them.
const PREFIX: &str = "petals-e2e-";

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A network namespace, removed with all processes in it when dropped. Nothing outside of it is touched.
#[derive(Debug)]
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes one in which only loopback is up.
    pub(crate) fn new(purpose: &str) -> anyhow::Result<Self> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}-{purpose}", std::process::id());
        run(ip(&["netns", "add", &name]))?;
        let namespace = Self { name };
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A program that will run inside. It replaces `ip`, so that signals to the child reach it.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = ip(&["netns", "exec", &self.name]);
        command.arg(program);
        command
    }

    /// `ip` about this namespace.
    pub(crate) fn ip(&self, arguments: &[&str]) -> anyhow::Result<()> {
        run(ip(&[&["-n", &self.name], arguments].concat())).map(drop)
    }

    /// Carries out nftables commands inside.
    pub(crate) fn nft(&self, commands: &str) -> anyhow::Result<()> {
        let mut command = self.command(Path::new("nft"));
        command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("nft")?;
        child.stdin.take().context("no stdin")?.write_all(commands.as_bytes())?;
        successful(child.wait_with_output()?).with_context(|| format!("nft: {commands}")).map(drop)
    }

    /// Writes a file of `/proc/sys/net`, which every namespace has its own of.
    pub(crate) fn set(&self, path: &str, value: &str) -> anyhow::Result<()> {
        let mut command = self.command(Path::new("sh"));
        run({
            command.args(["-c", &format!("echo {value} > /proc/sys/net/{path}")]);
            command
        })
        .map(drop)
    }

    /// What a file says inside.
    pub(crate) fn read(&self, path: &str) -> anyhow::Result<String> {
        let mut command = self.command(Path::new("cat"));
        command.arg(path);
        Ok(String::from_utf8(run(command)?.stdout)?)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Why namespaces cannot be made here, if so. Also removes those of tests that were killed.
pub(crate) fn unavailable() -> Option<String> {
    for program in ["ip", "nft"] {
        if Command::new(program).arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
            return Some(format!("the program `{program}` is missing"));
        }
    }
    sweep();
    let attempt = || {
        let namespace = Namespace::new("try")?;
        namespace.nft("add table inet probe\nadd chain inet probe forward { type filter hook forward priority 0; }")?;
        namespace.nft("add rule inet probe forward numgen random mod 100 < 30 drop")?;
        namespace.nft("add table ip nat\nadd chain ip nat leaving { type nat hook postrouting priority srcnat; }")?;
        namespace.nft("add rule ip nat leaving masquerade")?;
        namespace.set("ipv4/ip_forward", "1")
    };
    attempt().err().map(|error| format!("{error:#}"))
}

/// Removes the namespaces of processes that are gone.
fn sweep() {
    let Ok(listed) = ip(&["netns", "list"]).output() else { return };
    for line in String::from_utf8_lossy(&listed.stdout).lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        let maker = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if maker.is_some_and(|maker| !Path::new(&format!("/proc/{maker}")).exists()) {
            remove(name);
        }
    }
}

fn remove(name: &str) {
    // Processes would keep the namespace alive. All that are inside were started by its maker.
    if let Ok(inside) = ip(&["netns", "pids", name]).output() {
        for process in String::from_utf8_lossy(&inside.stdout).split_whitespace() {
            let _ = Command::new("kill").args(["-KILL", process]).stderr(Stdio::null()).status();
        }
    }
    let _ = ip(&["netns", "del", name]).stderr(Stdio::null()).status();
}

fn ip(arguments: &[&str]) -> Command {
    let mut command = Command::new("ip");
    command.args(arguments);
    command
}

fn run(mut command: Command) -> anyhow::Result<Output> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|error| io::Error::new(error.kind(), format!("{command:?}: {error}")))?;
    successful(output).with_context(|| format!("{command:?}"))
}

fn successful(output: Output) -> anyhow::Result<Output> {
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(output)
}
