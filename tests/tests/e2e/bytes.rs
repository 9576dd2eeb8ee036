//! What a training step puts on the wire, byte by byte, against the frames that the protocol says it needs.

use std::sync::Arc;

use petals_client::{AdamW, Example, PromptTuner, RelayMode, SequenceConfig, Target, TunerConfig, WireDtype};
use petals_e2e::{Goldens, LocalSwarm};
use petals_node::ExecutorConfig;
use petals_protocol::{
    BackwardReply, BackwardRequest, BlockPasses, ForwardReply, ForwardRequest, Handover, Injection, PREAMBLE_LEN,
    PassLayout, Request, Response, RowSource, RowTarget, Span, StashId, StashLevel, TableSource, TablesId, Tensor,
    TensorMeta, encode,
};

use crate::gradients::{examples, tables};

const SPANS: [(u32, u32); 2] = [(0, 2), (2, 4)];

/// A micro-batch of a step: examples of so many tokens, rows that are read.
struct Micro {
    lengths: Vec<u32>,
    read: Vec<u32>,
}

struct Step {
    injection: Injection,
    prefix: usize,
    hidden: usize,
    dtype: WireDtype,
}

fn metas(tensors: &[Tensor]) -> Vec<&TensorMeta> {
    tensors.iter().map(Tensor::meta).collect()
}

fn request(message: &Request, tensors: &[Tensor]) -> u64 {
    frame(&encode(&(metas(tensors), message)), tensors)
}

fn response(message: &Response, tensors: &[Tensor]) -> u64 {
    frame(&encode(&(metas(tensors), message)), tensors)
}

fn frame(header: &[u8], tensors: &[Tensor]) -> u64 {
    (PREAMBLE_LEN + header.len() + tensors.iter().map(|tensor| tensor.bytes().len()).sum::<usize>()) as u64
}

impl Step {
    fn rows(&self, dtype: WireDtype, shape: &[usize]) -> Tensor {
        let shape = [shape, &[self.hidden]].concat();
        Tensor::from_f32(dtype, &shape, &vec![0.0; shape.iter().product()])
    }

    /// The tables of a span of two blocks.
    fn tables(&self) -> Tensor {
        let values = self.prefix * self.hidden;
        Tensor::from_f32(WireDtype::F32, &[2, values], &vec![0.0; 2 * values])
    }

    /// Bytes up and down of one micro-batch, whose prompts travel if `first`.
    fn micro(&self, micro: &Micro, first: bool) -> (u64, u64) {
        let tokens = micro.lengths.iter().sum::<u32>() as usize;
        let text = |rows: usize| Some(self.rows(self.dtype, &[rows]));
        let carried = self.injection != Injection::Replace;
        let prefix = |there: bool| there.then(|| self.rows(WireDtype::F32, &[self.prefix]));
        let deep = self.injection != Injection::None;
        let prompts = |there: bool| there.then(|| self.tables());
        let list = |tensors: [Option<Tensor>; 3]| tensors.into_iter().flatten().collect::<Vec<_>>();
        let (mut up, mut down) = (0, 0);
        for (number, (start, end)) in SPANS.into_iter().enumerate() {
            let last = number + 1 == SPANS.len();
            let layout = PassLayout {
                span: Span::new(start, end).expect("not empty"),
                lengths: micro.lengths.clone(),
                prefix_len: self.prefix as u32,
                injection: self.injection,
                weights: Default::default(),
                read_rows: last.then(|| micro.read.clone()),
            };
            let output = if last { micro.read.len() } else { tokens };
            let (stash, reply_dtype, deadline_ms) = (Some(StashId(0)), self.dtype, 0);
            let (layout_again, source) =
                (layout.clone(), if deep { TableSource::Keep(TablesId(0)) } else { TableSource::Inline });
            let (input, target) = (RowSource::Inline, RowTarget::Reply);
            let forward =
                ForwardRequest { layout, tables: source, stash, input, output: target, reply_dtype, deadline_ms };
            let tensors = list([text(tokens), prefix(carried), prompts(deep && first)]);
            up += request(&Request::Forward(forward), &tensors);
            let (passes, queue_us, compute_us, handover) = (BlockPasses::default(), 0, 0, Handover::default());
            let reply =
                Response::Forward(ForwardReply { stash: StashLevel::Full, passes, queue_us, compute_us, handover });
            down += response(&reply, &list([text(output), prefix(carried && !last), None]));
            let (prompts_source, text_grad) = (TableSource::Inline, number > 0);
            let backward = BackwardRequest {
                layout: layout_again,
                tables: prompts_source,
                stash,
                text_grad,
                grads: RowSource::Inline,
                output: RowTarget::Reply,
                reply_dtype,
                deadline_ms,
            };
            let tensors = list([text(output), prefix(carried && !last), None]);
            up += request(&Request::Backward(backward), &tensors);
            let reply = Response::Backward(BackwardReply { passes, queue_us, compute_us, handover });
            let text = if text_grad { text(tokens) } else { None };
            down += response(&reply, &list([text, prefix(carried), prompts(deep)]));
        }
        (up, down)
    }
}

/// Cut as the tuner cuts them: runs of `together` examples.
fn micro_batches(examples: &[Example], together: usize) -> Vec<Micro> {
    let one = |examples: &[Example]| {
        let mut micro = Micro { lengths: Vec::new(), read: Vec::new() };
        for example in examples {
            let (tokens, start) = (example.tokens.len() as u32, micro.lengths.iter().sum::<u32>());
            let class = matches!(example.target, Target::Class(_));
            // The last token of a text predicts nothing and is not sent; a class is read there and nowhere else.
            let sent = if class { tokens } else { tokens - 1 };
            micro.read.extend(if class { start + sent - 1..start + sent } else { start..start + sent });
            micro.lengths.push(sent);
        }
        micro
    };
    examples.chunks(together).map(one).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_sends_what_the_protocol_needs_and_nothing_else() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = LocalSwarm::start(&goldens.model(), &["0..2", "2..4"], ExecutorConfig::default()).await?;
    for dtype in [WireDtype::F32, WireDtype::F16, WireDtype::Int8] {
        // Every request brings its rows and takes its results along; what chains save has a test of its own.
        let config = SequenceConfig { wire_dtype: dtype, relay: RelayMode::Star, ..SequenceConfig::default() };
        let sequence = Arc::new(swarm.sequence(config));
        for (mode, task) in
            ["ptune", "replace", "add"].iter().flat_map(|mode| ["causal-lm", "seq-cls"].map(|t| (mode, t)))
        {
            let examples = examples(&goldens, task)?;
            for together in [1, 3] {
                let micro_batch_tokens = if together == 1 { 1 } else { 1024 };
                let tables = tables(&goldens, &swarm, mode, task)?;
                let shape = *tables.shape();
                let optimizer = AdamW::new(&shape, 0.0);
                let config = TunerConfig { micro_batch_tokens: Some(micro_batch_tokens), ..TunerConfig::default() };
                let mut tuner = PromptTuner::new(sequence.clone(), swarm.local.clone(), tables, optimizer, config);
                // The first step also opens the streams.
                tuner.step(&examples, 1e-3).await?;
                let traffic = tuner.step(&examples, 1e-3).await?.traffic;
                let (injection, prefix, hidden) = (shape.injection, shape.prefix_len, swarm.hidden);
                let step = Step { injection, prefix, hidden, dtype };
                let micro = micro_batches(&examples, together);
                let bytes = micro.iter().enumerate().map(|(number, micro)| step.micro(micro, number == 0));
                let (up, down) = bytes.fold((0, 0), |sum, bytes| (sum.0 + bytes.0, sum.1 + bytes.1));
                let what = format!("{mode}, {task}, {together} at a time, {dtype}");
                assert_eq!((traffic.sent, traffic.received), (up, down), "{what}");
                assert_eq!(traffic.requests as usize, 2 * SPANS.len() * micro.len(), "{what}");
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn prompts_that_a_server_cannot_keep_travel_with_every_request() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = LocalSwarm::start_with(&goldens.model(), &["0..4"], |config| {
        // Room for the requests of one example, and for less than the prompts beside them.
        petals_node::ServerConfig { request_bytes: 32 << 10, ..config }
    })
    .await?;
    let sequence = Arc::new(swarm.sequence(SequenceConfig::default()));
    let (mode, task) = ("replace", "causal-lm");
    let (examples, tables) = (examples(&goldens, task)?, tables(&goldens, &swarm, mode, task)?);
    let optimizer = AdamW::new(tables.shape(), 0.0);
    let config = TunerConfig { micro_batch_tokens: Some(1), in_flight: Some(1), ..TunerConfig::default() };
    let tuner = PromptTuner::new(sequence.clone(), swarm.local.clone(), tables, optimizer, config);
    let (_, score) = tuner.gradients(&examples).await?;
    let expected = goldens.value("loss.replace.causal-lm").as_f64().unwrap_or(f64::NAN);
    let loss = score.loss().unwrap_or(f64::NAN);
    assert!((loss - expected).abs() <= 1e-5 * expected, "{loss} for {expected}");
    // Three forwards, three backwards, the greeting, and one forward that named prompts in vain.
    assert_eq!(sequence.traffic().requests, 8);
    Ok(())
}
