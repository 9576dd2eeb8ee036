use petals_protocol::{Injection, PassLayout, Refusal, SessionId, SessionOpen};
use petals_swarm::{Party, PeerId};
use tokio::sync::oneshot;

use crate::executor::pass::{Done, Inputs, Pass, Work};
use crate::executor::{Executor, ExecutorConfig, ExecutorHandle};
use crate::fixture;
use crate::machine::measure::Rates;
use crate::machine::speed::Speed;

use super::*;

type Answer = oneshot::Receiver<Result<Done, Refusal>>;

struct Client {
    handle: ExecutorHandle,
    party: Party,
    hidden: usize,
}

impl Client {
    fn submit(&self, lengths: Vec<u32>, work: impl FnOnce(Inputs) -> Work) -> Answer {
        let rows: u32 = lengths.iter().sum();
        let layout = PassLayout {
            span: Span::new(0, 4).unwrap(),
            lengths,
            prefix_len: 0,
            injection: Injection::None,
            weights: Default::default(),
            read_rows: Some(vec![rows - 1]),
        };
        let text = vec![0.1; rows as usize * self.hidden];
        let work = work(Inputs { text, prefix: None, tables: None });
        let (arrived, deadline) = (Instant::now(), Instant::now() + Duration::from_secs(60));
        self.handle
            .submit(Pass { party: self.party, stream: 1, layout, work, rounded: false, arrived, deadline })
            .unwrap()
    }

    fn step(&self, start: u32) -> Answer {
        let open = (start == 0).then_some(SessionOpen { max_sequences: 1, max_positions: 200 });
        let session = SessionId(1);
        self.submit(vec![1], |inputs| Work::Step { inputs, session, starts: vec![start], order: None, open })
    }
}

#[test]
fn tokens_go_between_the_blocks_of_a_long_pass() {
    let blocks = fixture::stack();
    let hidden = blocks.config().hidden_size;
    let speed = std::sync::Arc::new(Speed::new(Rates { forward: 1.0, decode: 1.0 }));
    let executor = Executor::start(blocks, ExecutorConfig::default(), speed).unwrap();
    let client = || Client { handle: executor.handle(), party: Party::unplaced(PeerId::random()), hidden };
    let (chatting, training) = (client(), client());
    chatting.handle.open_stream(1, chatting.party);
    chatting.step(0).blocking_recv().unwrap().unwrap();
    // Long enough that every block of it takes longer than the least time between two pauses.
    let long = || training.submit(vec![100; 1000], |inputs| Work::Forward { inputs, stash: None });
    let alone = long().blocking_recv().unwrap().unwrap();
    assert!(alone.computed > 5 * QUANTUM, "the pass is too short to say anything: {:?}", alone.computed);
    let mut pass = long();
    while executor.handle().depth() == 0 || chatting.handle.0.state.lock().unwrap().running.is_none() {
        std::thread::yield_now();
    }
    let token = chatting.step(1).blocking_recv().unwrap().unwrap();
    assert!(pass.try_recv().is_err(), "the token came first");
    assert!(token.queued < alone.computed, "{:?} of {:?}", token.queued, alone.computed);
    let beside = pass.blocking_recv().unwrap().unwrap();
    let (crate::executor::Output::Forward { text: a, .. }, crate::executor::Output::Forward { text: b, .. }) =
        (alone.output, beside.output)
    else {
        panic!("forwards have forwards' outputs")
    };
    assert_eq!(a, b, "the pass does not notice");
}
