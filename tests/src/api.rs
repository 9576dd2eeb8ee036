//! `petals-tune serve`, as a process.

use std::net::SocketAddr;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::Value;

use crate::http::{HttpAnswer, http};
use crate::programs::{Tune, send_signal};

/// Longest wait for something that takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server for OpenAI clients, killed when dropped.
#[derive(Debug)]
pub struct ApiServer {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its `serving` event.
    pub serving: Value,
}

impl ApiServer {
    /// Starts a `serve` command on a free port of loopback.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start(command: Tune) -> anyhow::Result<Self> {
        let (child, serving) = command.args(&["--listen", "127.0.0.1:0"]).start("serving")?;
        let url = serving["url"].as_str().context("no url")?;
        let address = url.strip_prefix("http://").context("no HTTP")?.parse()?;
        Ok(Self { child, address, serving })
    }

    /// Gets a path.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn get(&self, path: &str) -> anyhow::Result<HttpAnswer> {
        http(self.address, &[&format!("GET {path}")], "")
    }

    /// Posts JSON to a path.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn post(&self, path: &str, body: &Value) -> anyhow::Result<HttpAnswer> {
        http(self.address, &[&format!("POST {path}"), "Content-Type: application/json"], &body.to_string())
    }

    /// Posts JSON to a path that must answer with status 200 and JSON.
    ///
    /// # Errors
    /// If it does not.
    pub fn ask(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let answer = self.post(path, body)?;
        anyhow::ensure!(answer.status == 200, "status {}: {}", answer.status, answer.body);
        answer.json()
    }

    /// The sum of a figure of `/metrics` over all of its labels that contain `label`.
    ///
    /// # Errors
    /// If the figures cannot be had.
    pub fn figure(&self, name: &str, label: &str) -> anyhow::Result<f64> {
        let text = self.get("/metrics")?.body;
        let of = |line: &str| {
            let (key, value) = line.rsplit_once(' ')?;
            let (found, labels) = key.split_once('{').unwrap_or((key, ""));
            (found == name && labels.contains(label)).then(|| value.parse::<f64>().ok())?
        };
        Ok(text.lines().filter_map(of).sum())
    }

    /// Waits until a figure of `/metrics` has a value.
    ///
    /// # Errors
    /// If it does not get it in time.
    pub fn wait_for(&self, name: &str, label: &str, value: f64) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.figure(name, label)?;
            if (found - value).abs() < 1e-9 {
                return Ok(());
            }
            anyhow::ensure!(
                Instant::now() < deadline,
                "{name} is {found}, not {value}:\n{}",
                self.get("/metrics")?.body
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends SIGINT and waits for a good end.
    ///
    /// # Errors
    /// If it does not end, or not well.
    pub fn stop(mut self) -> anyhow::Result<()> {
        send_signal(self.child.id(), "INT")?;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                anyhow::ensure!(status.success(), "{status}");
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        anyhow::bail!("the server does not end")
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
