use futures::FutureExt;
use petals_protocol::WireDtype;
use petals_swarm::{Origin, PeerId};

use super::*;
use crate::machine::budget::Budget;

fn token(n: u8) -> RelayToken {
    RelayToken([n; 16])
}

fn at(number: u8) -> Party {
    Party { peer: PeerId::random(), origin: Origin::Ip4([10, 0, 0, number].into()) }
}

struct Sender {
    rendezvous: Arc<Rendezvous>,
    budget: Budget,
    peer: Party,
}

impl Sender {
    fn new() -> Self {
        Self::with_parking_time(PARKING_TIME)
    }

    fn with_parking_time(parking_time: Duration) -> Self {
        let rendezvous = Arc::new(Rendezvous { parking_time, ..Rendezvous::default() });
        Self { rendezvous, budget: Budget::new(1 << 20), peer: at(1) }
    }

    fn deliver(&self, n: u8) -> impl Future<Output = Result<(), Refusal>> {
        self.deliver_from(self.peer, n)
    }

    fn deliver_from(&self, peer: Party, n: u8) -> impl Future<Output = Result<(), Refusal>> {
        let memory = self.budget.of(peer).try_reserve(1024, 0).unwrap();
        let rows = Tensor::from_f32(WireDtype::F32, &[1], &[f32::from(n)]);
        self.rendezvous.deliver(peer, token(n), vec![rows], memory, || ())
    }

    fn is_empty(&self) -> bool {
        let state = self.rendezvous.lock();
        state.waiting.is_empty() && state.parked.is_empty()
    }
}

#[tokio::test]
async fn rows_and_request_meet_whichever_comes_first() {
    let sender = Sender::new();
    let mut early = sender.rendezvous.expect(token(1)).unwrap();
    let (sent, ()) = tokio::join!(sender.deliver(1), async {
        drop(early.delivery().await.unwrap().accept());
    });
    assert_eq!(sent, Ok(()));
    let late = async {
        tokio::task::yield_now().await;
        let mut late = sender.rendezvous.expect(token(2)).unwrap();
        drop(late.delivery().await.unwrap().accept());
    };
    let (sent, ()) = tokio::join!(sender.deliver(2), late);
    assert_eq!(sent, Ok(()));
    drop(early);
    assert!(sender.is_empty());
}

#[tokio::test]
async fn a_token_is_good_for_one_delivery_and_one_request() {
    let sender = Sender::new();
    let first = sender.rendezvous.expect(token(1)).unwrap();
    assert!(matches!(sender.rendezvous.expect(token(1)), Err(Refusal::BadRequest { .. })));
    drop(first);
    let mut parked = Box::pin(sender.deliver(1));
    assert!(parked.as_mut().now_or_never().is_none());
    assert!(matches!(sender.deliver(1).await, Err(Refusal::BadRequest { .. })));
    let mut request = sender.rendezvous.expect(token(1)).unwrap();
    let refusal = Refusal::BadRelay { what: "test".into() };
    request.delivery().await.unwrap().refuse(refusal.clone());
    assert_eq!(parked.await, Err(refusal));
    drop(request);
    assert!(sender.is_empty());
}

#[tokio::test]
async fn what_nobody_comes_for_is_given_up_with_its_memory() {
    let sender = Sender::with_parking_time(Duration::from_millis(10));
    assert_eq!(sender.deliver(1).await, Err(Refusal::UnknownRelay));
    assert!(sender.is_empty());
    let abandoned = sender.rendezvous.expect(token(2)).unwrap();
    drop(abandoned);
    assert_eq!(sender.deliver(2).await, Err(Refusal::UnknownRelay));
    let all = sender.budget.most();
    assert!(sender.budget.of(sender.peer).try_reserve(all, 0).is_ok(), "all of the memory is free again");
}

#[tokio::test]
async fn a_flood_of_rows_that_nobody_waits_for_is_bounded() {
    let sender = Sender::new();
    let mut parked = Vec::new();
    for n in 0..=u8::MAX {
        let mut one = Box::pin(sender.deliver(n));
        match one.as_mut().now_or_never() {
            None => parked.push(one),
            Some(answer) => {
                assert!(matches!(answer, Err(Refusal::Busy { .. })), "{answer:?}");
                break;
            }
        }
    }
    assert!((8..100).contains(&parked.len()), "{}", parked.len());
    let mut other = Box::pin(sender.deliver_from(at(2), 255));
    assert!(other.as_mut().now_or_never().is_none(), "another address has room");
    drop((parked, other));
    assert!(sender.is_empty(), "a stream that ends takes its deliveries along");
    assert!(sender.rendezvous.lock().places.is_empty());
}

#[tokio::test]
async fn who_has_to_wait_is_told_so_and_who_has_not_is_not() {
    let sender = Sender::with_parking_time(Duration::from_millis(10));
    let deliver = async |n: u8| {
        let (memory, mut parked) = (sender.budget.of(sender.peer).try_reserve(1024, 0).unwrap(), false);
        let answer = sender.rendezvous.deliver(sender.peer, token(n), vec![], memory, || parked = true).await;
        (answer, parked)
    };
    assert_eq!(deliver(1).await, (Err(Refusal::UnknownRelay), true));
    let mut expected = sender.rendezvous.expect(token(2)).unwrap();
    let (answer, ()) = tokio::join!(deliver(2), async { drop(expected.delivery().await.unwrap().accept()) });
    assert_eq!(answer, (Ok(()), false));
}
