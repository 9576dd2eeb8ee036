//! What a client shows on the page of a swarm: the ways of its passes, and which servers failed it.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use petals_page::{Counts, Failure, Shown, ShownRoute};
use serde_json::Value;

use super::session::SwarmLog;

/// Failures that are kept.
const MOST: usize = 64;

/// A client's part of the page.
#[derive(Debug)]
pub(super) struct ClientPage<C> {
    client: C,
    log: SwarmLog,
    failures: Mutex<VecDeque<Failure>>,
}

/// What one kind of client knows.
pub(super) trait Client: Debug + Send + Sync + 'static {
    /// The ways of its passes.
    fn routes(&self) -> Vec<ShownRoute>;

    /// Figures for Prometheus.
    fn metrics(&self) -> String;

    /// Tokens that it had generated since its start, if it generates any.
    fn tokens(&self) -> Option<u64> {
        None
    }
}

impl<C: Client> ClientPage<C> {
    /// `log`: where failures of servers are noted.
    pub(super) fn new(client: C, log: SwarmLog) -> Self {
        Self { client, log, failures: Mutex::default() }
    }

    /// Takes what was noted since the last time.
    fn drain(&self) {
        let noted = self.log.take();
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.extend(noted.iter().filter_map(failure));
        let excess = failures.len().saturating_sub(MOST);
        failures.drain(..excess);
    }
}

impl<C: Client> Shown for ClientPage<C> {
    fn role(&self) -> &'static str {
        "client"
    }

    fn ready(&self) -> Result<(), String> {
        Ok(())
    }

    fn counts(&self) -> Counts {
        // It is asked for every few seconds, so that what was noted has about the right time.
        self.drain();
        Counts { tokens: self.client.tokens(), ..Counts::default() }
    }

    fn routes(&self) -> Vec<ShownRoute> {
        self.client.routes()
    }

    fn failures(&self) -> Vec<Failure> {
        self.drain();
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).iter().rev().cloned().collect()
    }

    fn metrics(&self) -> String {
        self.client.metrics()
    }
}

/// An event about a server, in words; nothing if it is about none.
fn failure(event: &Value) -> Option<Failure> {
    let text = |key: &str| event.get(key).and_then(Value::as_str);
    let reason = text("reason").unwrap_or_default();
    let what = match text("event")? {
        "hop_failed" => format!("failed a pass: {reason}"),
        "relay_failed" => format!("did not pass rows on: {reason}"),
        "outpaced" => "was much later than usual, and another one answered".to_owned(),
        "untrue_result" => format!("gave a wrong result: {reason}"),
        "disagreement" => format!("disagrees with another one: {reason}"),
        _ => return None,
    };
    let time_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    let (peer, blocks) = (text("peer")?.to_owned(), text("blocks").map(str::to_owned));
    Some(Failure { time_ms, peer, blocks, what, times: 1 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_servers_failed_at_is_told_and_waits_are_not() {
        let event = json!({"event": "hop_failed", "peer": "p", "blocks": "0..2", "reason": "it is gone"});
        let told = failure(&event).unwrap();
        assert_eq!((told.what.as_str(), told.blocks.as_deref()), ("failed a pass: it is gone", Some("0..2")));
        assert_eq!(failure(&json!({"event": "waiting", "reason": "nobody serves 0..2"})), None);
    }
}
