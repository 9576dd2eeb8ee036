//! What comes over block streams: frames, messages, tensors.

use futures::executor::block_on;
use futures::io::Cursor;
use petals_protocol::{
    BackwardReply, BackwardRequest, BlockPasses, ContentAnswer, ContentHash, ContentRequest, ForwardReply,
    ForwardRequest, Frame, FrameKind, FrameLimits, FrameReader, FrameWriter, Handover, Injection, Limits,
    MAX_CONTENT_RANGE, Module, Modules, NextServer, PassLayout, Refusal, RelayToken, Request, Response, RowSource,
    RowTarget, ServerInfo, ServerState, StashId, StashLevel, TableSource, TablesId, Tensor, TensorMeta, WeightChange,
    Welcome, WireDtype, decode, encode, read_content_message, write_content_message,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::fuzz;

const MILLION: u64 = 1_000_000;
/// A frame: a header of 1 MiB at most while it is decoded, and bytes in steps of 1 MiB as they come.
const FRAME_MEMORY: usize = 5 << 20;
const DTYPES: [WireDtype; 4] = [WireDtype::F32, WireDtype::F16, WireDtype::Bf16, WireDtype::Int8];

fn frame<M: Serialize>(kind: FrameKind, message: &M, tensors: &[Tensor]) -> Vec<u8> {
    let mut bytes = Vec::new();
    block_on(FrameWriter::new(&mut bytes, kind).write(77, message, tensors)).expect("memory can be written to");
    bytes
}

/// Whether the bytes are a frame. What is one is used, and is the same after it was written and read again.
fn read<M>(kind: FrameKind, bytes: &[u8], check: impl Fn(&M)) -> bool
where
    M: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let limits = FrameLimits { max_body: 1 << 20 };
    let Ok(first) = block_on(FrameReader::new(Cursor::new(bytes), kind, limits).read::<M>()) else { return false };
    check(&first.message);
    first.tensors.iter().for_each(values);
    let again = frame(kind, &first.message, &first.tensors);
    let second: Frame<M> = block_on(FrameReader::new(Cursor::new(again), kind, limits).read()).expect("it was written");
    assert!(second.message == first.message && second.tensors == first.tensors, "{first:?}");
    true
}

fn values(tensor: &Tensor) {
    let shape: Vec<usize> = tensor.meta().shape.iter().map(|&extent| extent as usize).collect();
    if let Ok(values) = tensor.to_f32("a tensor", &shape) {
        assert_eq!(values.len(), shape.iter().product::<usize>());
        assert!(values.iter().all(|value| value.is_finite()), "{:?}", tensor.meta());
    }
}

fn layouts() -> Vec<PassLayout> {
    let span = "3..9".parse().expect("a span");
    let plain = PassLayout {
        span,
        lengths: vec![2, 1],
        prefix_len: 0,
        injection: Injection::None,
        weights: Default::default(),
        read_rows: None,
    };
    let prefixed = PassLayout { prefix_len: 2, injection: Injection::Add, ..plain.clone() };
    let last = PassLayout { injection: Injection::Replace, read_rows: Some(vec![0, 2]), ..prefixed.clone() };
    let low_rank = WeightChange::LowRank { rank: 8, modules: Module::ALL.into_iter().collect() };
    let adapted = PassLayout { injection: Injection::KeysValues, weights: low_rank, ..prefixed.clone() };
    let scaled = PassLayout { weights: WeightChange::Scales { modules: Modules::SCALED }, ..plain.clone() };
    vec![plain, prefixed, last, adapted, scaled]
}

fn tensors() -> Vec<Tensor> {
    let values: Vec<f32> = (0..12).map(|n| n as f32 / 3.0 - 2.0).collect();
    DTYPES.map(|dtype| Tensor::from_f32(dtype, &[3, 4], &values)).into()
}

fn requests() -> Vec<(Request, Vec<Tensor>)> {
    let token = RelayToken([5; 16]);
    let next = NextServer { peer: vec![18; 38], token };
    let mut requests = vec![
        (Request::Hello { model: "org/model@0123456789abcdef".parse().expect("a model id") }, Vec::new()),
        (Request::Forget { stash: StashId(3) }, Vec::new()),
        (Request::Relay { token }, tensors()),
        (Request::Cancel { request: 9 }, Vec::new()),
    ];
    for (layout, tensor) in layouts().into_iter().zip(tensors()) {
        let forward = ForwardRequest {
            layout: layout.clone(),
            tables: TableSource::Keep(TablesId(4)),
            stash: Some(StashId(8)),
            input: RowSource::Inline,
            output: RowTarget::Relay(next.clone()),
            reply_dtype: WireDtype::Int8,
            deadline_ms: 1000,
        };
        let backward = BackwardRequest {
            layout,
            tables: TableSource::Kept(TablesId(4)),
            stash: None,
            text_grad: true,
            grads: RowSource::Relay(token),
            output: RowTarget::Reply,
            reply_dtype: WireDtype::F16,
            deadline_ms: 1000,
        };
        requests.push((Request::KeysValues(forward.clone()), vec![tensor.clone()]));
        requests.push((Request::Forward(forward), vec![tensor.clone()]));
        requests.push((Request::Backward(backward), vec![tensor.clone(), tensor]));
    }
    requests
}

pub(crate) fn info() -> ServerInfo {
    let model = "org/model@0123456789abcdef".parse().expect("a model id");
    ServerInfo {
        written_ms: 1_700_000_000_000,
        forward_tokens_per_s: Some(1234.5),
        decode_tokens_per_s: Some(20.0),
        network_bytes_per_s: Some(1e6),
        cache_tokens_left: Some(4096),
        next_pings: [("12D3KooWSahP5pFRCEfaziPEba7urXGeif6T1y8jmodzdFUvzBHj".to_owned(), 12.5)].into(),
        shares_weights: true,
        queue_depth: 2,
        dtype: "f32".into(),
        version: "0.1.0".into(),
        public_name: Some("a name".into()),
        ..ServerInfo::new(model, "3..9".parse().expect("a span"), ServerState::Online)
    }
}

fn responses() -> Vec<(Response, Vec<Tensor>)> {
    let limits = Limits { max_rows: 8192, max_body: 1 << 28, max_in_flight: 32, max_adapter: 1 << 28 };
    let passes = BlockPasses { forward: 6, backward: 6 };
    let (queue_us, compute_us, handover) = (10, 20, Handover { us: 30, bytes: 40 });
    let mut responses = vec![
        (Response::Welcome(Box::new(Welcome { info: info().to_json(), limits })), Vec::new()),
        (
            Response::Forward(ForwardReply { stash: StashLevel::Full, passes, queue_us, compute_us, handover }),
            tensors(),
        ),
        (Response::Backward(BackwardReply { passes, queue_us, compute_us, handover }), tensors()),
        (Response::Relayed, Vec::new()),
    ];
    let what = || "something".to_owned();
    let refusals = [
        Refusal::Busy { retry_after_ms: 50 },
        Refusal::Draining,
        Refusal::WrongModel { served: "m@0123456789abcdef".parse().expect("a model id") },
        Refusal::WrongSpan { asked: "0..2".parse().expect("a span"), served: "2..4".parse().expect("a span") },
        Refusal::StashGone,
        Refusal::TooLarge { what: what(), got: 2, limit: 1 },
        Refusal::BadShape { what: what() },
        Refusal::TablesGone,
        Refusal::NextUnreachable { what: what() },
        Refusal::UnknownRelay,
    ];
    responses.extend(refusals.map(|refusal| (Response::Refused(refusal), Vec::new())));
    responses
}

#[test]
fn frames_of_requests() {
    let valid: Vec<Vec<u8>> =
        requests().iter().map(|(request, tensors)| frame(FrameKind::Request, request, tensors)).collect();
    fuzz("frames of requests", &valid, MILLION, FRAME_MEMORY, |bytes| {
        read(FrameKind::Request, bytes, |request: &Request| {
            let (Request::Forward(ForwardRequest { layout, .. }) | Request::Backward(BackwardRequest { layout, .. })) =
                request
            else {
                return;
            };
            if layout.validate().is_ok() {
                assert!(layout.output_rows() <= layout.tokens() && layout.tokens() <= u32::MAX as usize);
            }
        })
    });
}

#[test]
fn frames_of_responses() {
    let valid: Vec<Vec<u8>> =
        responses().iter().map(|(response, tensors)| frame(FrameKind::Response, response, tensors)).collect();
    fuzz("frames of responses", &valid, MILLION, FRAME_MEMORY, |bytes| {
        read(FrameKind::Response, bytes, |response: &Response| match response {
            Response::Refused(refusal) => {
                let _ = (refusal.remedy(), refusal.to_string());
            }
            Response::Welcome(welcome) => {
                let _ = welcome.server_info();
            }
            _ => {}
        })
    });
}

/// Headers without the frame around them, whose lengths would otherwise refuse most damage.
#[test]
fn headers() {
    let valid: Vec<Vec<u8>> = requests()
        .iter()
        .map(|(request, tensors)| encode(&(tensors.iter().map(Tensor::meta).collect::<Vec<_>>(), request)))
        .collect();
    fuzz("headers", &valid, MILLION, FRAME_MEMORY, |bytes| {
        let Ok((metas, request)) = decode::<(Vec<TensorMeta>, Request)>(bytes) else { return false };
        assert_eq!(encode(&(&metas, &request)), bytes, "an encoding has one form");
        assert!(metas.iter().all(|meta| meta.byte_len() != Some(usize::MAX)));
        true
    });
}

/// What is said on streams for files, with bytes behind it that are none of it.
#[test]
fn messages_about_files() {
    fn written<M: Serialize>(message: &M) -> Vec<u8> {
        let mut bytes = Vec::new();
        block_on(write_content_message(&mut bytes, message)).expect("memory can be written to");
        bytes
    }
    let request = |offset, length| written(&ContentRequest { hash: ContentHash([9; 32]), offset, length });
    let valid = [request(0, 1 << 20), request(1 << 40, 1), request(77, u64::MAX)];
    fuzz("requests for files", &valid, MILLION, 4 << 10, |bytes| {
        let read = block_on(read_content_message::<ContentRequest>(&mut Cursor::new(bytes)));
        let Ok(request) = read else { return false };
        assert!(bytes.starts_with(&written(&request)), "an encoding has one form");
        for size in [0, 1, 1000, u64::MAX] {
            if let Some(range) = request.range(size) {
                assert!(range.start < range.end && range.end <= size && range.end - range.start <= MAX_CONTENT_RANGE);
            }
        }
        true
    });
    let answers = [
        ContentAnswer::Bytes { size: 1 << 30, length: 1 << 20 },
        ContentAnswer::NotShared,
        ContentAnswer::Busy,
        ContentAnswer::Later,
        ContentAnswer::BadRange { size: 12 },
    ];
    let valid = answers.map(|answer| written(&answer));
    fuzz("answers about files", &valid, MILLION, 4 << 10, |bytes| {
        let read = block_on(read_content_message::<ContentAnswer>(&mut Cursor::new(bytes)));
        let Ok(answer) = read else { return false };
        assert!(bytes.starts_with(&written(&answer)), "an encoding has one form");
        true
    });
}

/// Tensors of each dtype whose bytes fit their shapes.
#[test]
fn tensors_of_each_dtype() {
    for dtype in DTYPES {
        let values: Vec<f32> = (0..260).map(|n| (n as f32 - 100.0) * 0.37).collect();
        let shapes: [&[usize]; 3] = [&[260], &[2, 130], &[4, 5, 13]];
        let valid: Vec<Vec<u8>> = shapes.map(|shape| Tensor::from_f32(dtype, shape, &values).bytes().to_vec()).into();
        fuzz(&format!("tensors in {dtype:?}"), &valid, MILLION, 64 << 10, |bytes| {
            // The largest number of values that these bytes can be.
            let count = (0..=bytes.len()).rev().find(|&n| dtype.byte_len(n) == Some(bytes.len()));
            let Some(count) = count else { return false };
            let meta = TensorMeta { dtype, shape: vec![count as u32] };
            let Ok(tensor) = Tensor::new(meta, bytes.to_vec()) else { return false };
            let Ok(decoded) = tensor.to_f32("a tensor", &[count]) else { return false };
            assert!(decoded.len() == count && decoded.iter().all(|value| value.is_finite()));
            true
        });
    }
}
