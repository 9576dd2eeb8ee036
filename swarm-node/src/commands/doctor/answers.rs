//! What the doctor says, as it says it, and once more for a report.

use crate::commands::events::{Check, CheckStatus, NodeEvent};

/// Answers so far.
pub(super) struct Answers {
    json: bool,
    failed: usize,
    /// Each as people read it.
    said: Vec<String>,
}

impl Answers {
    pub(super) fn new(json: bool) -> Self {
        Self { json, failed: 0, said: Vec::new() }
    }

    /// Tells a check.
    pub(super) fn check(&mut self, check: Check) {
        self.failed += usize::from(check.status == CheckStatus::Fail);
        self.event(NodeEvent::Check(check));
    }

    /// Tells something else.
    pub(super) fn event(&mut self, event: NodeEvent) {
        event.emit(self.json);
        self.said.push(event.text());
    }

    /// Checks that came out badly.
    pub(super) fn failed(&self) -> usize {
        self.failed
    }

    pub(super) fn json(&self) -> bool {
        self.json
    }

    /// All answers.
    pub(super) fn said(&self) -> &[String] {
        &self.said
    }
}
