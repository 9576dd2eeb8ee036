use std::time::Instant;

use petals_model::Device;
use petals_protocol::{Injection, PassLayout, Refusal, SessionId, SessionOpen};
use petals_swarm::PeerId;
use tokio::sync::oneshot::{self, error::TryRecvError};

use crate::executor::pass::{Done, Inputs, Output};
use crate::executor::queue::FairQueue;
use crate::executor::{Executor, ExecutorConfig, ExecutorHandle};
use crate::fixture;
use crate::lock::lock;
use crate::machine::measure::Rates;
use crate::machine::speed::Speed;

use super::*;

type Answer = oneshot::Receiver<Result<Done, Refusal>>;

struct Client {
    handle: ExecutorHandle,
    party: Party,
    /// Its number, too.
    stream: u64,
    hidden: usize,
}

impl Client {
    fn of(executor: &Executor, stream: u64) -> Self {
        let (handle, party) = (executor.handle(), Party::unplaced(PeerId::random()));
        handle.open_stream(stream, party);
        let hidden = handle.blocks().unwrap().config().hidden_size;
        Self { handle, party, stream, hidden }
    }

    fn submit(&self, lengths: Vec<u32>, work: impl FnOnce(Inputs) -> Work) -> Answer {
        let layout = layout(lengths);
        let rows = layout.tokens();
        let text = vec![0.1; rows * self.hidden];
        let work = work(Inputs { text, prefix: None, tables: None });
        let (arrived, deadline) = (Instant::now(), Instant::now() + Duration::from_secs(60));
        let Self { party, stream, .. } = *self;
        self.handle.submit(Pass { party, stream, layout, work, rounded: false, arrived, deadline }).unwrap()
    }

    fn step(&self, start: u32, rows: u32) -> Answer {
        let open = (start == 0).then_some(SessionOpen { max_sequences: 1, max_positions: 400 });
        let session = SessionId(1);
        self.submit(vec![rows], |inputs| Work::Step { inputs, session, starts: vec![start], order: None, open })
    }

    /// Of so many texts of 100 tokens.
    fn forward(&self, texts: usize) -> Answer {
        self.submit(vec![100; texts], |inputs| Work::Forward { inputs, stash: None })
    }

    /// A pass of so many texts, as soon as it is being computed.
    fn begins(&self, texts: usize) -> Answer {
        let pass = self.forward(texts);
        while lock(&self.handle.0.state).queue.len() > 0 {
            std::thread::yield_now();
        }
        pass
    }
}

fn layout(lengths: Vec<u32>) -> PassLayout {
    let read_rows = Some(vec![lengths.iter().sum::<u32>() - 1]);
    let (span, injection) = (Span::new(0, 4).unwrap(), Injection::None);
    PassLayout { span, lengths, prefix_len: 0, injection, weights: Default::default(), read_rows }
}

fn executor(device: &Device) -> Executor {
    // Everything is expected to take long.
    let speed = Arc::new(Speed::new(Rates { forward: 1.0, decode: 1.0 }));
    Executor::start(fixture::stack_on(device), ExecutorConfig::default(), speed).unwrap()
}

fn rows(done: &Done) -> Vec<f32> {
    let Output::Forward { text, .. } = &done.output else { panic!("forwards have forwards' outputs") };
    text.clone()
}

fn answered(answer: Answer) -> Done {
    answer.blocking_recv().unwrap().unwrap()
}

/// What became of it so far.
fn state(answer: &mut Answer) -> Result<Result<(), Refusal>, TryRecvError> {
    answer.try_recv().map(|done| done.map(drop))
}

/// With so many texts in the long one.
fn tokens_and_small_passes_go_beside_a_long_one(device: &Device, texts: usize) {
    let executor = executor(device);
    let [chatting, training, other] = [1, 2, 3].map(|stream| Client::of(&executor, stream));
    answered(chatting.step(0, 1));
    let (small, alone) = (rows(&answered(other.forward(1))), answered(training.begins(texts)));
    let beside = |short: &dyn Fn() -> Answer| {
        let mut long = training.begins(texts);
        let short = answered(short());
        assert_eq!(state(&mut long), Err(TryRecvError::Empty), "it came first");
        let long = answered(long);
        assert!(long.queued >= short.computed, "the long one waited");
        assert_eq!(rows(&long), rows(&alone), "and does not notice");
        short
    };
    let token = beside(&|| chatting.step(1, 1));
    assert!(token.queued < alone.computed, "{:?} of {:?}", token.queued, alone.computed);
    assert_eq!(rows(&beside(&|| other.forward(1))), small);
}

#[test]
fn nobody_waits_for_all_of_a_long_pass_on_processors() {
    tokens_and_small_passes_go_beside_a_long_one(&Device::cpu(), 1000);
}

/// Where what is asked for waits behind what was asked for before.
#[cfg(feature = "vulkan")]
#[test]
fn nobody_waits_for_all_of_a_long_pass_on_a_gpu() {
    tokens_and_small_passes_go_beside_a_long_one(
        &"vulkan".parse().expect("a Vulkan device, which may be software"),
        100,
    );
}

#[test]
fn a_device_has_as_many_blocks_before_it_as_it_computes_in_time() {
    let (blocks, second) = (fixture::stack(), Duration::from_secs(1));
    let within = |rate| {
        let layout = layout(vec![10]);
        let inputs = Inputs { text: Vec::new(), prefix: None, tables: None };
        let (party, arrived) = (Party::unplaced(PeerId::random()), Instant::now());
        let work = Work::Forward { inputs, stash: None };
        let pass = Pass { party, stream: 1, layout, work, rounded: false, arrived, deadline: arrived };
        blocks_within(second, &pass, &blocks, rate)
    };
    assert_eq!([100.0, 35.0, 10.0, 1.0, 0.0, f64::NAN].map(within), [10, 3, 1, 1, 1, 1]);
}

#[test]
fn passes_of_few_rows_take_turns_with_the_long_one() {
    let stack = Arc::new(fixture::stack());
    let (training, other) = (Party::unplaced(PeerId::random()), Party::unplaced(PeerId::random()));
    let (arrived, deadline) = (Instant::now(), Instant::now() + Duration::from_secs(60));
    let pass = |party, rows| {
        let inputs = Inputs { text: Vec::new(), prefix: None, tables: None };
        let work = Work::Forward { inputs, stash: None };
        let pass = Pass { party, stream: 1, layout: layout(vec![rows]), work, rounded: false, arrived, deadline };
        (pass, oneshot::channel().0)
    };
    let taken = |rows, turn| {
        let queue = FairQueue::new(4, 4);
        let stacks = vec![stack.clone()];
        let mut state = State { queue, running: None, long: None, stopping: false, for_nobody: 0, stacks };
        assert!(state.queue.push(training, pass(training, 4096), 4096, false).is_ok());
        let long = Long::new(&state.queue.pop().unwrap().0, &stack);
        assert!(state.queue.push(other, pass(other, rows), 1, false).is_ok());
        let estimates = |blocks| Compute::new(blocks, Box::leak(Box::default()), &|| ());
        pop(&mut state, &long, turn, Some(estimates)).is_some()
    };
    assert_eq!(
        [(31, false), (31, true), (32, false), (1024, false), (3000, true)].map(|(rows, turn)| taken(rows, turn)),
        [false, true, true, true, false]
    );
}

#[test]
fn who_had_as_much_and_what_is_not_small_waits() {
    let executor = executor(&Device::cpu());
    let [training, other] = [1, 2].map(|stream| Client::of(&executor, stream));
    let mut long = training.begins(1000);
    let own = training.forward(1);
    let large = other.forward(500);
    let own = std::thread::spawn(move || (answered(own), Instant::now()));
    let large = std::thread::spawn(move || (answered(large), Instant::now()));
    let (_, first) = (long.try_recv().is_err(), (answered(long), Instant::now()).1);
    assert!(first <= own.join().unwrap().1 && first <= large.join().unwrap().1);
}

#[test]
fn a_session_goes_on_behind_its_own_long_step() {
    let executor = executor(&Device::cpu());
    let client = Client::of(&executor, 1);
    let (text, token) = (client.step(0, 200), client.step(200, 1));
    answered(text);
    answered(token);
}

#[test]
fn a_node_that_stops_lets_the_long_pass_finish() {
    let executor = executor(&Device::cpu());
    let client = Client::of(&executor, 1);
    let (long, behind) = (client.begins(1000), client.forward(1));
    drop(executor);
    assert!(matches!(behind.blocking_recv().unwrap(), Err(Refusal::Draining)));
    answered(long);
}
