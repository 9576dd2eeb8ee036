//! What a request's JSON takes in memory, and who waits for some.
//!
//! A few bytes of JSON become hundreds: an object of one empty field is seven on the wire. So what it will take is estimated before anything is read, and all
//! requests that are being read or answered share a bounded memory.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;

/// Semaphores count in units of this many bytes.
const UNIT: usize = 1024;
/// What an object, a list and an entry of either take at most, as `serde_json` keeps them: a node of a tree has room for eleven entries.
const OBJECT: usize = 640;
const LIST: usize = 64;
const ENTRY: usize = 64;
/// A request may become so many times as large as its bytes may be.
const MOST_TIMES: usize = 16;
/// So many of the largest requests are read at a time.
const SIDE_BY_SIDE: usize = 4;
/// Longest wait for memory.
const PATIENCE: Duration = Duration::from_secs(30);

/// The memory of all requests.
#[derive(Debug)]
pub(super) struct Weights {
    memory: Arc<Semaphore>,
    most: usize,
}

/// What one request takes, until it is dropped.
#[derive(Debug)]
pub(super) struct Weight {
    _permit: OwnedSemaphorePermit,
}

impl Weights {
    /// For requests of up to `request_bytes`.
    pub(super) fn new(request_bytes: usize) -> Self {
        let most = request_bytes.saturating_mul(MOST_TIMES).clamp(UNIT, u32::MAX as usize);
        let units = most.saturating_mul(SIDE_BY_SIDE).div_ceil(UNIT).min(Semaphore::MAX_PERMITS);
        Self { memory: Arc::new(Semaphore::new(units)), most }
    }

    /// Takes the memory for what is read of a body.
    ///
    /// # Errors
    /// 413 if no request may take so much, 503 if there is none in time.
    pub(super) async fn take(&self, json: &[u8]) -> Result<Weight, ApiError> {
        let bytes = estimate(json);
        if bytes > self.most {
            return Err(ApiError::too_many_parts(bytes, self.most));
        }
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let busy = || ApiError::unavailable("there is no memory for one more request, try again later");
        let permit = tokio::time::timeout(PATIENCE, self.memory.clone().acquire_many_owned(units)).await;
        Ok(Weight { _permit: permit.map_err(|_| busy())?.map_err(|_| busy())? })
    }
}

/// Bytes that JSON takes once it is read, at most. What is no JSON takes less: reading ends where it goes wrong.
fn estimate(json: &[u8]) -> usize {
    let (mut bytes, mut in_text, mut escaped) = (json.len(), false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            _ if in_text => {}
            b'{' => bytes += OBJECT,
            b'[' => bytes += LIST,
            b',' => bytes += ENTRY,
            _ => {}
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structure_weighs_and_text_does_not() {
        assert_eq!(estimate(br#""{[,,,\"{{{""#), 12);
        assert_eq!(estimate(br#"{"a":[1,2]}"#), 11 + OBJECT + LIST + ENTRY);
        let bomb = br#"{"":0},"#.repeat(1000);
        assert_eq!(estimate(&bomb), 1000 * (7 + OBJECT + ENTRY));
        assert_eq!(estimate(br#"{"a":"\\",[[["#), 13 + OBJECT + ENTRY + 3 * LIST);
    }

    #[tokio::test]
    async fn requests_that_become_much_are_refused_and_others_wait_for_memory() {
        let weights = Weights::new(4 << 20);
        let bomb = format!("[{}0]", r#"{"":0},"#.repeat((4 << 20) / 7 - 1));
        assert_eq!(weights.take(bomb.as_bytes()).await.unwrap_err().status().as_u16(), 413);
        // A long list of tokens is nothing unusual.
        let tokens = format!("[{}0]", "12345,".repeat(600_000));
        let mut held = Vec::new();
        for _ in 0..6 {
            held.push(weights.take(tokens.as_bytes()).await.unwrap());
        }
        let waiting = tokio::time::timeout(Duration::from_millis(20), weights.take(tokens.as_bytes()));
        assert!(waiting.await.is_err(), "all of it is taken");
        drop(held);
        assert!(weights.take(tokens.as_bytes()).await.is_ok());
    }
}
