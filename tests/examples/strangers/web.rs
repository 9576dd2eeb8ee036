//! `petals-tune serve`, and somebody who asks it for texts.

use std::process::Child;
use std::time::Duration;

use anyhow::{Context, ensure};
use petals_e2e::{Goldens, Host, Target, Tune};
use serde_json::{Value, json};

use crate::chains::{Chain, Held, Taken};

const PORT: u16 = 8080;
/// Texts that are asked for, one after the other, and their tokens.
const TEXTS: usize = 20;
const TOKENS: usize = 32;
/// Longest wait for one of them, in seconds.
const PATIENCE: &str = "60";

/// An HTTP server, ended when dropped.
pub(crate) struct Web {
    child: Child,
    address: String,
    model: Value,
}

impl Web {
    pub(crate) fn start(host: &Host, chain: &Chain, goldens: &Goldens) -> anyhow::Result<Self> {
        let address = format!("{}:{PORT}", host.address());
        let tune = Tune::on(host, &["serve", "--peers", chain.member(), "--listen", &address])?;
        let (child, _) = tune.path("--model", &goldens.model()).start("serving")?;
        let mut web = Self { child, address, model: Value::Null };
        web.model = web.asks(host, "/v1/models", None)?.0["data"][0]["id"].clone();
        Ok(web)
    }

    /// What attackers are after.
    pub(crate) fn target(&self, chain: &Chain) -> anyhow::Result<Target> {
        let target = chain.targets()?.into_iter().next().context("no server")?;
        Ok(Target { address: self.address.clone(), ..target })
    }

    /// An answer, and how long it took.
    fn asks(&self, host: &Host, path: &str, body: Option<&Value>) -> anyhow::Result<(Value, f64)> {
        let mut curl = host.command("curl".as_ref());
        curl.args(["--silent", "--show-error", "--max-time", PATIENCE, "--write-out", "\n%{time_total}"]);
        if let Some(body) = body {
            curl.args(["--header", "Content-Type: application/json", "--data", &body.to_string()]);
        }
        let output = curl.arg(format!("http://{}{path}", self.address)).output()?;
        ensure!(output.status.success(), "no answer: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout)?;
        let (answer, seconds) = text.rsplit_once('\n').context("no time")?;
        Ok((serde_json::from_str(answer).with_context(|| answer.to_owned())?, seconds.parse()?))
    }

    /// Texts for somebody on `host`; all are the same.
    pub(crate) fn asked_by(&self, host: &Host) -> anyhow::Result<Taken> {
        let body = json!({"model": self.model, "prompt": "the", "max_tokens": TOKENS, "temperature": 0});
        let (mut texts, mut seconds) = (Vec::new(), 0.0);
        for _ in 0..TEXTS {
            let (answer, took) = self.asks(host, "/v1/completions", Some(&body))?;
            let text = answer["choices"][0]["text"].clone();
            ensure!(text.is_string(), "no text: {answer}");
            texts.push(text);
            seconds += took;
        }
        let (losses, training) = (Vec::new(), Duration::ZERO);
        Ok(Taken { losses, tokens: Value::Array(texts), training, text: Duration::from_secs_f64(seconds) })
    }

    pub(crate) fn holds(&self) -> anyhow::Result<Held> {
        let process = format!("/proc/{}", self.child.id());
        let status = std::fs::read_to_string(format!("{process}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(Held { bytes: kib << 10, descriptors: std::fs::read_dir(format!("{process}/fd"))?.count() })
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
