//! Where rows that another server sends meet the request that waits for them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use petals_protocol::{Refusal, RelayToken, Tensor};
use petals_swarm::{Party, Shares};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::machine::budget::Reserved;

/// Rows whose request has not come yet are kept for this long. The client sends a micro-batch's requests to all servers at
/// once, so one that is not here by then got stuck or was given up.
const PARKING_TIME: Duration = Duration::from_secs(2);
/// Deliveries that may be parked, of all senders. Their memory is the sender's share of it in any case.
const MAX_PARKED: u64 = 128;
/// When to ask again if there is no room for one more.
const RETRY_WHEN_FULL_MS: u32 = 500;

/// Pairs deliveries with requests, whichever comes first. A token is used up by the first pair.
#[derive(Debug)]
pub(crate) struct Rendezvous {
    state: Mutex<State>,
    parking_time: Duration,
}

impl Default for Rendezvous {
    fn default() -> Self {
        let (waiting, parked, places) = (HashMap::new(), HashMap::new(), Shares::new(MAX_PARKED));
        Self { state: Mutex::new(State { waiting, parked, places, next: 0 }), parking_time: PARKING_TIME }
    }
}

#[derive(Debug)]
struct State {
    waiting: HashMap<RelayToken, oneshot::Sender<Delivery>>,
    parked: HashMap<RelayToken, Parked>,
    /// Who has parked how many.
    places: Shares,
    next: u64,
}

#[derive(Debug)]
struct Parked {
    party: Party,
    delivery: Delivery,
    number: u64,
}

/// Rows that arrived, not looked at yet.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) tensors: Vec<Tensor>,
    /// What they take of the sender's share.
    pub(crate) memory: Reserved,
    verdict: oneshot::Sender<Result<(), Refusal>>,
}

/// A request that waits for its rows. Dropping it ends the wait.
#[derive(Debug)]
pub(crate) struct Expected {
    rendezvous: Arc<Rendezvous>,
    token: RelayToken,
    delivery: oneshot::Receiver<Delivery>,
}

impl Rendezvous {
    /// Begins to wait for what is or will be delivered under `token`.
    pub(crate) fn expect(self: &Arc<Self>, token: RelayToken) -> Result<Expected, Refusal> {
        let (sender, delivery) = oneshot::channel();
        let mut state = self.lock();
        if state.waiting.contains_key(&token) {
            return Err(Refusal::BadRequest { what: "another request waits for the same rows".into() });
        }
        match state.take_parked(token, None) {
            Some(parked) => drop(sender.send(parked.delivery)),
            None => drop(state.waiting.insert(token, sender)),
        }
        Ok(Expected { rendezvous: self.clone(), token, delivery })
    }

    /// Hands rows of `party` to the request that waits for them, now or within [`PARKING_TIME`]; returns once that has
    /// looked at them. `parked` is called if they have to wait.
    pub(crate) async fn deliver(
        &self,
        party: Party,
        token: RelayToken,
        tensors: Vec<Tensor>,
        memory: Reserved,
        parked: impl FnOnce(),
    ) -> Result<(), Refusal> {
        let (verdict, answer) = oneshot::channel();
        let parking = self.offer(party, token, Delivery { tensors, memory, verdict })?;
        if parking.is_some() {
            parked();
        }
        match timeout(self.parking_time, answer).await {
            Ok(Ok(verdict)) => verdict,
            Ok(Err(_)) | Err(_) => Err(Refusal::UnknownRelay),
        }
    }

    /// Hands the delivery over, or parks it until the guard is dropped.
    fn offer(&self, party: Party, token: RelayToken, delivery: Delivery) -> Result<Option<Parking<'_>>, Refusal> {
        let mut state = self.lock();
        if let Some(waiting) = state.waiting.remove(&token) {
            return waiting.send(delivery).map(|()| None).map_err(|_| Refusal::UnknownRelay);
        }
        if state.parked.contains_key(&token) {
            return Err(Refusal::BadRequest { what: "rows were sent under this token before".into() });
        }
        if !state.places.may_take(party, 1) {
            return Err(Refusal::Busy { retry_after_ms: RETRY_WHEN_FULL_MS });
        }
        let number = state.next;
        state.next += 1;
        state.places.take(party, 1);
        state.parked.insert(token, Parked { party, delivery, number });
        Ok(Some(Parking { rendezvous: self, token, number }))
    }

    /// Every change is a single step, so a panic elsewhere leaves the maps whole and poison is ignored.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// What is parked under a token, if it is the one of this number.
    fn take_parked(&mut self, token: RelayToken, number: Option<u64>) -> Option<Parked> {
        let parked = self.parked.get(&token)?;
        if number.is_some_and(|number| number != parked.number) {
            return None;
        }
        self.places.give(parked.party, 1);
        self.parked.remove(&token)
    }
}

/// The place of a parked delivery.
struct Parking<'a> {
    rendezvous: &'a Rendezvous,
    token: RelayToken,
    number: u64,
}

impl Drop for Parking<'_> {
    fn drop(&mut self) {
        self.rendezvous.lock().take_parked(self.token, Some(self.number));
    }
}

impl Expected {
    /// Waits for the rows. Cancel safe.
    pub(crate) async fn delivery(&mut self) -> Option<Delivery> {
        (&mut self.delivery).await.ok()
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        // Only this request can be in the map: another one with its token would have been refused. After a delivery there
        // may be a new one, whose receiver is open.
        let mut state = self.rendezvous.lock();
        self.delivery.close();
        if state.waiting.get(&self.token).is_some_and(oneshot::Sender::is_closed) {
            state.waiting.remove(&self.token);
        }
    }
}

impl Delivery {
    /// Tells the sender that the rows are of use. What they take of its share is kept as long as the result.
    pub(crate) fn accept(self) -> Reserved {
        let _ = self.verdict.send(Ok(()));
        self.memory
    }

    /// Tells the sender what is wrong with them.
    pub(crate) fn refuse(self, refusal: Refusal) {
        let _ = self.verdict.send(Err(refusal));
    }
}

#[cfg(test)]
mod tests;
