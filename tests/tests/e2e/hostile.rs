//! Strangers that do not keep to the protocol.

use std::time::Duration;

use futures::AsyncWriteExt;
use petals_client::{PassInput, SequenceConfig};
use petals_e2e::{Goldens, LocalSwarm};
use petals_node::ExecutorConfig;
use petals_protocol::{
    BackwardRequest, ForwardRequest, Frame, FrameKind, FrameLimits, FrameReader, FrameWriter, Injection, PassLayout,
    Refusal, Request, Response, RowSource, RowTarget, Span, StashId, TableSource, Tensor, WireDtype,
};
use petals_swarm::PeerStream;

pub(crate) struct Stranger {
    stream: PeerStream,
    limits: FrameLimits,
}

impl Stranger {
    async fn connect(swarm: &LocalSwarm) -> anyhow::Result<Self> {
        let entries = swarm.client.lookup(&swarm.model, swarm.blocks).await?;
        let server = entries.first().ok_or_else(|| anyhow::anyhow!("no server"))?;
        let patience = Duration::from_secs(5);
        let stream = swarm.client.open_stream(server.peer, &server.addresses, patience).await?;
        Ok(Self { stream, limits: FrameLimits::default() })
    }

    /// A stream whose greeting is over.
    pub(crate) async fn greeted(swarm: &LocalSwarm) -> anyhow::Result<Self> {
        let mut stranger = Self::connect(swarm).await?;
        let answer = stranger.ask(&Request::Hello { model: swarm.model.clone() }, &[]).await?;
        anyhow::ensure!(matches!(answer, Response::Welcome(_)), "{answer:?}");
        Ok(stranger)
    }

    /// Sends a request without waiting for the answer.
    pub(crate) async fn send(&mut self, id: u64, request: &Request, tensors: &[Tensor]) -> anyhow::Result<()> {
        Ok(FrameWriter::new(&mut self.stream, FrameKind::Request).write(id, request, tensors).await?)
    }

    /// The next answer and the id of its request.
    pub(crate) async fn receive(&mut self) -> anyhow::Result<(u64, Response)> {
        let answer = self.frame().await?;
        Ok((answer.id, answer.message))
    }

    async fn frame(&mut self) -> anyhow::Result<Frame<Response>> {
        let mut reader = FrameReader::new(&mut self.stream, FrameKind::Response, self.limits);
        Ok(tokio::time::timeout(Duration::from_secs(15), reader.read()).await??)
    }

    /// As [`Self::ask`], with the answer's tensors.
    pub(crate) async fn answer(&mut self, request: &Request, tensors: &[Tensor]) -> anyhow::Result<Frame<Response>> {
        self.send(7, request, tensors).await?;
        self.frame().await
    }

    pub(crate) async fn ask(&mut self, request: &Request, tensors: &[Tensor]) -> anyhow::Result<Response> {
        self.send(7, request, tensors).await?;
        Ok(self.receive().await?.1)
    }

    pub(crate) async fn refusal(&mut self, request: &Request, tensors: &[Tensor]) -> anyhow::Result<Refusal> {
        match self.ask(request, tensors).await? {
            Response::Refused(refusal) => Ok(refusal),
            other => anyhow::bail!("not refused: {other:?}"),
        }
    }
}

pub(crate) fn layout((start, end): (u32, u32), lengths: &[u32]) -> PassLayout {
    let span = Span::new(start, end).expect("not empty");
    PassLayout {
        span,
        lengths: lengths.to_vec(),
        prefix_len: 0,
        injection: Injection::None,
        weights: Default::default(),
        read_rows: None,
    }
}

pub(crate) fn forward(layout: PassLayout) -> Request {
    Request::Forward(forward_request(layout))
}

pub(crate) fn forward_request(layout: PassLayout) -> ForwardRequest {
    let (input, output, reply_dtype, deadline_ms) = (RowSource::Inline, RowTarget::Reply, WireDtype::F32, 10_000);
    let tables = TableSource::Inline;
    ForwardRequest { layout, tables, stash: None, input, output, reply_dtype, deadline_ms }
}

pub(crate) fn rows(count: usize, hidden: usize, value: f32) -> Tensor {
    Tensor::from_f32(WireDtype::F32, &[count, hidden], &vec![value; count * hidden])
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_wrong_request_is_refused_by_type_and_the_stream_goes_on() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = LocalSwarm::start(&goldens.model(), &["1..3"], ExecutorConfig::default()).await?;
    let mut stranger = Stranger::connect(&swarm).await?;
    let hello = Request::Hello { model: swarm.model.clone() };
    assert!(matches!(stranger.ask(&hello, &[]).await?, Response::Welcome(_)));
    let d = swarm.hidden;

    let wrong_span = stranger.refusal(&forward(layout((0, 2), &[1])), &[rows(1, d, 0.1)]).await?;
    assert!(matches!(wrong_span, Refusal::WrongSpan { .. }), "{wrong_span}");
    let too_large = stranger.refusal(&forward(layout((1, 2), &[1_000_000])), &[rows(1, d, 0.1)]).await?;
    assert!(matches!(too_large, Refusal::TooLarge { limit: 4096, .. }), "{too_large}");
    let shape = stranger.refusal(&forward(layout((1, 2), &[2])), &[rows(1, d, 0.1)]).await?;
    assert!(matches!(shape, Refusal::BadShape { .. }), "{shape}");
    let missing = stranger.refusal(&forward(layout((1, 2), &[2])), &[]).await?;
    assert!(matches!(missing, Refusal::BadShape { .. }), "{missing}");
    let too_many = stranger.refusal(&forward(layout((1, 2), &[1])), &[rows(1, d, 0.1), rows(1, d, 0.1)]).await?;
    assert!(matches!(too_many, Refusal::BadShape { .. }), "{too_many}");
    let nan = stranger.refusal(&forward(layout((1, 2), &[1])), &[rows(1, d, f32::NAN)]).await?;
    assert!(matches!(nan, Refusal::NotFinite { .. }), "{nan}");
    let empty = stranger.refusal(&forward(layout((1, 2), &[])), &[rows(0, d, 0.0)]).await?;
    assert!(matches!(empty, Refusal::BadRequest { .. }), "{empty}");
    let no_prefix = PassLayout { injection: Injection::Add, ..layout((1, 2), &[1]) };
    let no_prefix = stranger.refusal(&forward(no_prefix), &[rows(1, d, 0.1)]).await?;
    assert!(matches!(no_prefix, Refusal::BadRequest { .. }), "{no_prefix}");
    let overflow = PassLayout { lengths: vec![u32::MAX, u32::MAX], ..layout((1, 2), &[1]) };
    let overflow = stranger.refusal(&forward(overflow), &[rows(1, d, 0.1)]).await?;
    assert!(matches!(overflow, Refusal::BadRequest { .. }), "{overflow}");
    let gone = Request::Backward(BackwardRequest {
        layout: layout((1, 3), &[1]),
        tables: TableSource::Inline,
        stash: Some(StashId(99)),
        text_grad: true,
        grads: RowSource::Inline,
        output: RowTarget::Reply,
        reply_dtype: WireDtype::F32,
        deadline_ms: 1000,
    });
    let gone = stranger.refusal(&gone, &[rows(1, d, 0.1)]).await?;
    assert_eq!(gone, Refusal::StashGone);
    let hello_again = stranger.refusal(&hello, &[]).await?;
    assert!(matches!(hello_again, Refusal::BadRequest { .. }), "{hello_again}");

    let good = stranger.ask(&forward(layout((1, 2), &[1])), &[rows(1, d, 0.1)]).await?;
    assert!(matches!(good, Response::Forward(_)), "{good:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_ends_its_own_stream_only() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = LocalSwarm::start(&goldens.model(), &["0..4"], ExecutorConfig::default()).await?;
    let sequence = swarm.sequence(SequenceConfig::default());
    let pass = || PassInput { lengths: vec![2], text: vec![0.1; 2 * swarm.hidden], read_rows: None, tables: None };
    let (expected, _) = sequence.forward(pass(), false).await?;
    for seed in 0u32..50 {
        let mut stranger = Stranger::connect(&swarm).await?;
        if seed % 2 == 0 {
            stranger.ask(&Request::Hello { model: swarm.model.clone() }, &[]).await?;
        }
        // Half of the garbage starts like a frame.
        let mut bytes: Vec<u8> = (0..200u32).map(|n| (n.wrapping_mul(seed + 3) >> 3) as u8).collect();
        if seed % 4 < 2 {
            bytes[..8].copy_from_slice(b"PTLS\x02\x00\x00\x00");
            bytes[18..20].fill(0);
        }
        let _ = stranger.stream.write_all(&bytes).await;
        let _ = stranger.stream.flush().await;
    }
    let (after, _) = sequence.forward(pass(), false).await?;
    assert_eq!(after, expected);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_another_model_is_told_what_is_served() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = LocalSwarm::start(&goldens.model(), &["0..4"], ExecutorConfig::default()).await?;
    let mut stranger = Stranger::connect(&swarm).await?;
    let other = "other@0000000000000000".parse()?;
    let refusal = stranger.refusal(&Request::Hello { model: other }, &[]).await?;
    assert_eq!(refusal, Refusal::WrongModel { served: swarm.model.clone() });
    Ok(())
}
