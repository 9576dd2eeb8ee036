//! `petals-tune`.

use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::RecvTimeoutError;

use anyhow::{Context, bail};
use serde_json::Value;

use super::{PATIENCE, apart, events, lines, next_event, program};
use crate::internet::Host;

/// A `petals-tune` command to be run.
#[derive(Debug)]
pub struct Tune {
    pub(super) command: Command,
}

impl Tune {
    /// A command without a swarm.
    ///
    /// # Errors
    /// If the program is missing.
    pub fn bare(arguments: &[&str]) -> anyhow::Result<Self> {
        let mut command = super::start("petals-tune")?;
        command.args(arguments);
        Ok(Self { command })
    }

    /// A command on a host of an [`crate::Internet`].
    ///
    /// # Errors
    /// If the program is missing.
    pub fn on(host: &Host, arguments: &[&str]) -> anyhow::Result<Self> {
        let mut command = host.command(&program("petals-tune")?);
        apart(&mut command);
        command.args(arguments);
        Ok(Self { command })
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, arguments: &[&str]) -> Self {
        self.command.args(arguments);
        self
    }

    /// Adds a flag with a path.
    #[must_use]
    pub fn path(mut self, flag: &str, path: &Path) -> Self {
        self.command.arg(flag).arg(path);
        self
    }

    /// Adds an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Starts with `--json`, and waits for an event. What else it prints is read and dropped.
    ///
    /// # Errors
    /// If it cannot be started, or the event does not come in time; the process is killed then.
    pub fn start(self, event: &str) -> anyhow::Result<(Child, Value)> {
        let mut command = self.args(&["--json"]).command;
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let lines = lines(child.stdout.take().context("no stdout")?);
        match next_event(&lines, event, PATIENCE) {
            Ok(event) => {
                std::thread::spawn(move || lines.iter().for_each(drop));
                Ok((child, event))
            }
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    /// Runs with `input` as stdin, whatever the end is.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn output_with(mut self, input: &str) -> anyhow::Result<Output> {
        let pipes = self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = pipes.spawn()?;
        let mut stdin = child.stdin.take().context("no stdin")?;
        let input = input.to_owned();
        let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
        let output = child.wait_with_output()?;
        // A program that ended early does not read the rest.
        let _ = writer.join();
        Ok(output)
    }

    /// Runs to the end, whatever it is.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn output(mut self) -> anyhow::Result<Output> {
        Ok(self.command.output()?)
    }

    /// Runs with `--json` to a successful end and returns the events.
    ///
    /// # Errors
    /// If it fails, with what it wrote to stderr.
    pub fn events(self) -> anyhow::Result<Vec<Value>> {
        events(self.args(&["--json"]).output()?)
    }

    /// Runs with `--json` and returns the losses of its steps.
    ///
    /// # Errors
    /// As [`Self::events`].
    pub fn losses(self) -> anyhow::Result<Vec<f64>> {
        let events = self.events()?;
        let steps = events.iter().filter(|event| event["event"] == "step");
        steps.map(|step| step["loss"].as_f64().context("a step without a loss")).collect()
    }

    /// Starts with `--json`; `each` sees every event and says whether to go on. At `false` the process is killed by
    /// SIGKILL. Returns the losses seen and whether it ended by itself and well.
    ///
    /// # Errors
    /// If it cannot be started or falls silent.
    pub fn watch(self, mut each: impl FnMut(&Value) -> bool) -> anyhow::Result<(Vec<f64>, bool)> {
        self.watch_with_id(|_, event| each(event))
    }

    /// As [`Self::watch`]; `each` also gets the process's id, to send it signals.
    ///
    /// # Errors
    /// As [`Self::watch`].
    pub fn watch_with_id(self, mut each: impl FnMut(u32, &Value) -> bool) -> anyhow::Result<(Vec<f64>, bool)> {
        let mut command = self.args(&["--json"]).command;
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let lines = lines(child.stdout.take().context("no stdout")?);
        let mut losses = Vec::new();
        loop {
            let line = match lines.recv_timeout(PATIENCE * 4) {
                Ok(line) => line,
                Err(RecvTimeoutError::Disconnected) => return Ok((losses, child.wait()?.success())),
                Err(RecvTimeoutError::Timeout) => {
                    child.kill()?;
                    bail!("the program fell silent");
                }
            };
            let event: Value = serde_json::from_str(&line)?;
            losses.extend(event["loss"].as_f64().filter(|_| event["event"] == "step"));
            if !each(child.id(), &event) {
                child.kill()?;
                child.wait()?;
                return Ok((losses, false));
            }
        }
    }
}
