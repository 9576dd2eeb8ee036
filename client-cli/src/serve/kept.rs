//! Answers of `/v1/responses` that clients may ask for again, and go on from. They are in memory alone, the latest ones.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;

/// Most answers that are kept.
const MOST: usize = 512;
/// Most bytes that they have together, as JSON.
const BYTES: usize = 64 << 20;

/// The latest answers.
#[derive(Debug, Default)]
pub(crate) struct Kept(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    entries: VecDeque<Entry>,
    bytes: usize,
}

/// An answer that is kept.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    /// Its identifier.
    pub(super) id: String,
    /// The answer as it was given.
    pub(super) response: Value,
    /// The items of the conversation up to here, those of the answer included.
    pub(super) items: Vec<Value>,
}

impl Entry {
    fn bytes(&self) -> usize {
        self.items.iter().chain([&self.response]).map(|value| value.to_string().len()).sum()
    }
}

impl Kept {
    /// Keeps an answer. The oldest ones go if there are too many; one that is larger than all may be together is not kept.
    pub(super) fn put(&self, entry: Entry) {
        let bytes = entry.bytes();
        if bytes > BYTES {
            return;
        }
        let mut inner = self.lock();
        inner.bytes += bytes;
        inner.entries.push_back(entry);
        while inner.entries.len() > MOST || inner.bytes > BYTES {
            let Some(oldest) = inner.entries.pop_front() else { break };
            inner.bytes = inner.bytes.saturating_sub(oldest.bytes());
        }
    }

    /// The answer of an identifier.
    pub(super) fn find(&self, id: &str) -> Option<Entry> {
        self.lock().entries.iter().find(|entry| entry.id == id).cloned()
    }

    /// An item of any conversation, by its own identifier.
    pub(super) fn item(&self, id: &str) -> Option<Value> {
        let inner = self.lock();
        let named = |item: &&Value| item.get("id").and_then(Value::as_str) == Some(id);
        inner.entries.iter().rev().find_map(|entry| entry.items.iter().find(named)).cloned()
    }

    /// Forgets an answer; whether there was one.
    pub(super) fn remove(&self, id: &str) -> bool {
        let mut inner = self.lock();
        let Some(at) = inner.entries.iter().position(|entry| entry.id == id) else { return false };
        let removed = inner.entries.remove(at).map_or(0, |entry| entry.bytes());
        inner.bytes = inner.bytes.saturating_sub(removed);
        true
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it is locked; and if, the list is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entry(id: &str, text: &str) -> Entry {
        let items = vec![json!({"id": format!("msg_{id}"), "content": text})];
        Entry { id: id.to_owned(), response: json!({"id": id}), items }
    }

    #[test]
    fn answers_are_found_until_they_are_removed() {
        let kept = Kept::default();
        kept.put(entry("a", "x"));
        kept.put(entry("b", "y"));
        assert_eq!(kept.find("a"), Some(entry("a", "x")));
        assert_eq!(kept.item("msg_b"), entry("b", "y").items.pop());
        assert_eq!((kept.find("c"), kept.item("msg_c")), (None, None));
        assert!(kept.remove("a") && !kept.remove("a"));
        assert_eq!((kept.find("a"), kept.item("msg_a")), (None, None));
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many_or_they_are_too_large() {
        let kept = Kept::default();
        (0..=MOST).for_each(|number| kept.put(entry(&number.to_string(), "x")));
        assert_eq!((kept.find("0"), kept.find("1").is_some()), (None, true));
        let large = "x".repeat(BYTES / 2);
        kept.put(entry("large", &large));
        kept.put(entry("larger", &large));
        assert_eq!((kept.find("1"), kept.find("large"), kept.find("larger").is_some()), (None, None, true));
        kept.put(entry("too large", &"x".repeat(BYTES)));
        assert_eq!((kept.find("too large"), kept.find("larger").is_some()), (None, true));
        assert!(kept.remove("larger"));
        let inner = kept.lock();
        assert_eq!((inner.bytes, inner.entries.len()), (0, 0));
    }
}
