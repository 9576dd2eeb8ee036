use futures::executor::block_on;
use futures::io::Cursor;
use proptest::prelude::*;

use super::*;
use crate::ids::{Span, StashId, TablesId};
use crate::layout::{Injection, PassLayout};
use crate::message::{Request, Response};
use crate::pass::{ForwardRequest, TableSource};
use crate::refusal::Refusal;
use crate::relay::{RelayToken, RowSource, RowTarget};
use crate::tensor::WireDtype;

fn written(id: u64, message: &impl Serialize, tensors: &[Tensor], kind: FrameKind) -> Vec<u8> {
    let mut bytes = Vec::new();
    block_on(FrameWriter::new(&mut bytes, kind).write(id, message, tensors)).unwrap();
    bytes
}

fn read_request(bytes: &[u8]) -> Result<Frame<Request>, FrameError> {
    let limits = FrameLimits { max_body: 1 << 16 };
    block_on(FrameReader::new(Cursor::new(bytes), FrameKind::Request, limits).read())
}

fn forward() -> Request {
    let layout = PassLayout {
        span: Span::new(1, 3).unwrap(),
        lengths: vec![2],
        prefix_len: 1,
        injection: Injection::Replace,
        weights: Default::default(),
        read_rows: Some(vec![1]),
    };
    Request::Forward(ForwardRequest {
        layout,
        tables: TableSource::Kept(TablesId(3)),
        stash: Some(StashId(5)),
        input: RowSource::Relay(RelayToken([9; 16])),
        output: RowTarget::Reply,
        reply_dtype: WireDtype::Bf16,
        deadline_ms: 1000,
    })
}

#[test]
fn the_bytes_of_a_frame_are_as_specified() {
    let tensor = Tensor::from_f32(WireDtype::F32, &[1, 1], &[1.0]);
    let bytes = written(7, &Request::Forget { stash: StashId(9) }, &[tensor], FrameKind::Request);
    let expected: &[&[u8]] = &[
        b"PTLS",
        &[2, 0, 0, 0],
        &[7, 0, 0, 0, 0, 0, 0, 0],
        &[40, 0, 0, 0],
        &[4, 0, 0, 0, 0, 0, 0, 0],
        &[1, 0, 0, 0, 0, 0, 0, 0],                         // one tensor
        &[0, 0, 0, 0],                                     // f32
        &[2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0], // shape [1, 1]
        &[3, 0, 0, 0],                                     // Forget
        &[9, 0, 0, 0, 0, 0, 0, 0],                         // stash id
        &[0, 0, 128, 63],                                  // 1.0
    ];
    assert_eq!(bytes, expected.concat());
}

#[test]
fn frames_follow_each_other_and_the_end_is_orderly() {
    let tensor = Tensor::from_f32(WireDtype::Bf16, &[2, 3], &[1.0; 6]);
    let mut bytes = written(1, &forward(), std::slice::from_ref(&tensor), FrameKind::Request);
    bytes.extend(written(2, &forward(), &[], FrameKind::Request));
    let length = bytes.len() as u64;
    let mut reader = FrameReader::new(Cursor::new(bytes), FrameKind::Request, FrameLimits::default());
    block_on(async {
        let first: Frame<Request> = reader.read().await.unwrap();
        assert_eq!((first.id, first.message, first.tensors), (1, forward(), vec![tensor]));
        assert_eq!(reader.read::<Request>().await.unwrap().id, 2);
        assert!(matches!(reader.read::<Request>().await, Err(FrameError::Closed)));
    });
    assert_eq!(reader.bytes_read(), length);
}

#[test]
fn each_wrong_field_has_its_error() {
    let good = written(1, &forward(), &[], FrameKind::Request);
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        read_request(&bytes).unwrap_err()
    };
    assert!(matches!(with(0, b'X'), FrameError::Magic));
    assert!(matches!(with(4, 9), FrameError::Version(9)));
    assert!(matches!(with(6, 1), FrameError::Kind(1)));
    assert!(matches!(with(19, 1), FrameError::HeaderTooLong(_)));
    assert!(matches!(with(27, 1), FrameError::BodyTooLong { .. }));
    assert!(matches!(with(20, 1), FrameError::BodyMismatch));
    assert!(matches!(read_request(&good[..good.len() - 1]), Err(FrameError::Io(_))));
}

#[test]
fn a_description_without_its_bytes_costs_no_memory() {
    // 60 KiB claimed, nothing sent: the reader must fail by the end of the stream, not by allocation or a hang.
    let metas = vec![TensorMeta { dtype: WireDtype::F32, shape: vec![15, 1024] }];
    let header = encode(&(metas, forward()));
    let preamble =
        Preamble { kind: FrameKind::Request, id: 1, header_len: header.len() as u32, body_len: 60 << 10 }.bytes();
    assert!(matches!(read_request(&[&preamble[..], &header].concat()), Err(FrameError::Io(_))));
}

proptest! {
    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = read_request(&bytes);
    }

    #[test]
    fn garbage_behind_a_good_preamble_never_panics(header in proptest::collection::vec(any::<u8>(), 0..200), body in 0u64..99) {
        let preamble = Preamble { kind: FrameKind::Request, id: 1, header_len: header.len() as u32, body_len: body };
        let _ = read_request(&[&preamble.bytes()[..], &header, &[0; 99]].concat());
    }

    #[test]
    fn a_changed_byte_is_read_or_refused(at in 0usize..150, value in any::<u8>()) {
        let tensor = Tensor::from_f32(WireDtype::F32, &[2], &[1.0, 2.0]);
        let mut bytes = written(1, &forward(), &[tensor], FrameKind::Request);
        let at = at % bytes.len();
        bytes[at] = value;
        let _ = read_request(&bytes);
    }

    #[test]
    fn refusals_round_trip(what in ".{0,40}", got in any::<u64>()) {
        let refused = Response::Refused(Refusal::TooLarge { what, got, limit: 3 });
        let bytes = written(4, &refused, &[], FrameKind::Response);
        let mut reader = FrameReader::new(Cursor::new(bytes), FrameKind::Response, FrameLimits::default());
        prop_assert_eq!(block_on(reader.read::<Response>()).unwrap().message, refused);
    }
}
