use std::time::Duration;

use petals_model::InputGrads;
use petals_protocol::Injection;
use petals_swarm::{Party, PeerId};

use super::*;
use crate::executor::Tables;
use crate::fixture;

const STREAM: u64 = 1;
const ID: StashId = StashId(1);

/// Values of about a hidden state's size that repeat late.
fn values(seed: usize, count: usize) -> Vec<f32> {
    (0..count).map(|n| ((n + 31 * seed) as f32 * 0.7).sin()).collect()
}

fn layout(injection: Injection, prefix_len: u32, read_rows: Option<Vec<u32>>) -> PassLayout {
    let span = fixture::stack().span();
    PassLayout { span, lengths: vec![5, 2, 4], prefix_len, injection, weights: Default::default(), read_rows }
}

struct Server {
    compute: Compute<'static>,
    stashes: Mutex<StashStore<Stash>>,
}

impl Server {
    fn new(stash_bytes: u64, pass_bytes: u64, policy: StashPolicy) -> Self {
        let mut store = StashStore::new(stash_bytes, Duration::from_secs(60), Stash::reduce);
        store.open_stream(STREAM, Party::unplaced(PeerId::random()));
        let (blocks, rooms) = (Arc::new(fixture::stack()), Rooms::default());
        let compute = Compute { blocks, rooms, pass_bytes, policy, pause: &|| (), ahead: usize::MAX };
        Self { compute, stashes: Mutex::new(store) }
    }

    fn run(&self, layout: &PassLayout, work: Work) -> Result<(Output, BlockPasses), Refusal> {
        let (party, now) = (Party::unplaced(PeerId::random()), Instant::now());
        let pass =
            Pass { party, stream: STREAM, layout: layout.clone(), work, rounded: false, arrived: now, deadline: now };
        self.compute.run(pass, &self.stashes)
    }

    fn inputs(&self, layout: &PassLayout) -> Inputs {
        let d = self.compute.blocks.config().hidden_size;
        let prefix = layout.prefix_rows() * d;
        let of_block = layout.block_values(self.compute.blocks.config().block_widths());
        let tables = layout.has_tables().then(|| values(3, layout.span.len() * of_block));
        Inputs {
            text: values(1, layout.tokens() * d),
            prefix: layout.carries_prefix().then(|| values(2, prefix)),
            tables: tables.map(Tables::new),
        }
    }

    fn grads(&self, layout: &PassLayout) -> OutputGrads {
        let d = self.compute.blocks.config().hidden_size;
        OutputGrads {
            text: values(4, layout.output_rows() * d),
            prefix: layout.returns_prefix().then(|| values(5, layout.prefix_rows() * d)),
        }
    }

    fn forward(&self, layout: &PassLayout) -> (StashLevel, BlockPasses) {
        let work = Work::Forward { inputs: self.inputs(layout), stash: Some(ID) };
        match self.run(layout, work).unwrap() {
            (Output::Forward { stash, .. }, passes) => (stash, passes),
            (output, _) => panic!("{output:?}"),
        }
    }

    fn backward(
        &self,
        layout: &PassLayout,
        replay: bool,
        text_grad: bool,
    ) -> Result<(InputGrads, BlockPasses), Refusal> {
        let inputs = replay.then(|| self.inputs(layout));
        let stash = (!replay).then_some(ID);
        let work = Work::Backward { inputs, stash, grads: self.grads(layout), text_grad };
        match self.run(layout, work)? {
            (Output::Backward(grads), passes) => Ok((grads, passes)),
            (output, _) => panic!("{output:?}"),
        }
    }
}

fn passes(forward: u32, backward: u32) -> BlockPasses {
    BlockPasses { forward, backward }
}

#[test]
fn every_level_gives_the_same_gradients_and_costs_its_number_of_block_passes() {
    let prefixes = [(0, Injection::None), (3, Injection::None), (3, Injection::Add), (3, Injection::Replace)];
    let [full, inputs, none] = [StashPolicy::Full, StashPolicy::Inputs, StashPolicy::None]
        .map(|policy| Server::new(u64::MAX, u64::MAX, policy));
    for (prefix_len, injection) in prefixes {
        for (read_rows, text_grad) in [(None, true), (None, false), (Some(vec![0, 4, 6]), true)] {
            let layout = layout(injection, prefix_len, read_rows);
            assert_eq!(full.forward(&layout), (StashLevel::Full, passes(4, 0)));
            assert_eq!(inputs.forward(&layout), (StashLevel::Inputs, passes(4, 0)));
            assert_eq!(none.forward(&layout), (StashLevel::None, passes(4, 0)));
            assert_eq!(none.backward(&layout, false, text_grad).unwrap_err(), Refusal::StashGone);
            // Without a prefix and a text below, there is nothing to compute.
            let blocks = if prefix_len > 0 || text_grad { 4 } else { 0 };
            let (expected, counted) = full.backward(&layout, false, text_grad).unwrap();
            assert_eq!(counted, passes(0, blocks));
            let got = inputs.backward(&layout, false, text_grad).unwrap();
            assert_eq!(got, (expected.clone(), passes(blocks, blocks)));
            assert_eq!(none.backward(&layout, true, text_grad).unwrap(), (expected, passes(4, blocks)));
        }
    }
    for server in [full, inputs, none] {
        assert_eq!(lock(&server.stashes).bytes(), 0);
    }
}

#[test]
fn a_replay_in_little_memory_keeps_inputs_only_and_one_without_room_for_them_is_refused() {
    let layout = layout(Injection::Add, 3, None);
    let blocks = fixture::stack();
    let activations = blocks.activation_bytes_estimate(&layout);
    let least = activations + blocks.input_bytes_estimate(&layout) + blocks.block_stash_bytes_estimate(&layout);
    let whole = activations + blocks.stash_bytes_estimate(&layout);
    assert!(least < whole);
    let run = |pass_bytes| Server::new(0, pass_bytes, StashPolicy::Auto).backward(&layout, true, true);
    let (expected, counted) = run(whole).unwrap();
    assert_eq!(counted, passes(4, 4));
    assert_eq!(run(whole - 1).unwrap(), (expected, passes(8, 4)));
    assert!(run(least).is_ok());
    assert!(matches!(run(least - 1), Err(Refusal::TooLarge { got, limit, .. }) if got == least && limit == least - 1));
}

#[test]
fn the_level_follows_the_room_and_memory_is_accounted_exactly() {
    let layout = layout(Injection::Replace, 3, None);
    let blocks = fixture::stack();
    let (whole, inputs) = (blocks.stash_bytes_estimate(&layout), blocks.input_bytes_estimate(&layout));
    for (room, level, held) in [
        (whole, StashLevel::Full, whole),
        (whole - 1, StashLevel::Inputs, inputs),
        (inputs, StashLevel::Inputs, inputs),
        (inputs - 1, StashLevel::None, 0),
    ] {
        let server = Server::new(room, u64::MAX, StashPolicy::Auto);
        assert_eq!(server.forward(&layout).0, level, "{room} bytes");
        assert_eq!(lock(&server.stashes).bytes(), held);
    }
    // A backward that repeats the forward needs more than a pass without: no level for a server that is short of that.
    let activations = blocks.activation_bytes_estimate(&layout);
    let server = Server::new(whole - 1, activations, StashPolicy::Auto);
    assert_eq!(server.forward(&layout).0, StashLevel::None);
}
