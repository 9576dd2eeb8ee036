use proptest::prelude::*;

use super::*;

const DTYPES: [WireDtype; 4] = [WireDtype::F32, WireDtype::F16, WireDtype::Bf16, WireDtype::Int8];

fn tensor(dtype: WireDtype, values: &[f32]) -> Tensor {
    let tensor = Tensor::from_f32(dtype, &[values.len()], values);
    assert_eq!(tensor.meta().byte_len(), Some(tensor.bytes().len()), "{dtype}");
    tensor
}

fn round_trip(dtype: WireDtype, values: &[f32]) -> Vec<f32> {
    tensor(dtype, values).to_f32("x", &[values.len()]).unwrap()
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |a, b| a.max(b.abs()))
}

/// The largest error that rounding may make of a value among others whose largest magnitude is `top`.
fn tolerance(dtype: WireDtype, value: f32, top: f32) -> f32 {
    match dtype {
        WireDtype::F32 => 0.0,
        WireDtype::F16 => value.abs() / 2048.0 + top * 2f32.powi(-39) + f32::MIN_POSITIVE / 1e6,
        WireDtype::Bf16 => value.abs() / 256.0 + f32::MIN_POSITIVE / 256.0,
        // Half a step, of which the scale's rounding makes up to 1/128 more.
        WireDtype::Int8 => top / 127.0 * 0.5 * (1.0 + 1.0 / 100.0) + f32::MIN_POSITIVE,
    }
}

#[test]
fn the_bytes_are_as_specified() {
    let values = [1.0, -2.0, 0.5];
    assert_eq!(tensor(WireDtype::F32, &values).bytes(), [0, 0, 128, 63, 0, 0, 0, 192, 0, 0, 0, 63]);
    assert_eq!(tensor(WireDtype::Bf16, &values).bytes(), [128, 63, 0, 192, 0, 63]);
    // 2.0 becomes 2^14, so the exponent is 1 - 14; 2^13, -2^14 and 2^12 as f16 have the exponent fields 28, 29 and 27.
    assert_eq!(tensor(WireDtype::F16, &values).bytes(), [0xf3, 0xff, 0, 0x70, 0, 0xf4, 0, 0x6c]);
    // 2/127 is 0x3c810204; rounded up to the next bfloat16 it is 0x3c82, of which 2.0 is 126.03.
    assert_eq!(tensor(WireDtype::Int8, &values).bytes(), [0x82, 0x3c, 63, 130, 32]);
    let mut two_blocks = [0.0; 65];
    two_blocks[64] = 127.0;
    let bytes = tensor(WireDtype::Int8, &two_blocks).bytes().to_vec();
    assert_eq!((&bytes[..4], bytes[4 + 63], bytes[4 + 64], bytes.len()), (&[0, 0, 128, 63][..], 0, 127, 4 + 65));
}

#[test]
fn every_number_of_values_has_its_own_number_of_bytes() {
    for dtype in DTYPES {
        for count in (0..300).chain([4096, 10_001]) {
            let values: Vec<f32> = (0..count).map(|n| (n as f32 * 0.37).sin()).collect();
            let back = round_trip(dtype, &values);
            assert_eq!(back.len(), count, "{dtype}");
        }
    }
}

#[test]
fn zeros_extremes_and_tiny_values_survive() {
    for dtype in DTYPES {
        assert_eq!(round_trip(dtype, &[0.0, -0.0, 0.0]), [0.0; 3], "{dtype}");
        assert_eq!(round_trip(dtype, &[]), [0.0; 0], "{dtype}");
    }
    // Of a gradient that f16 alone would lose, and of a hidden state that it could not hold.
    for scale in [1e-30f32, 1e-12, 1e9, 1e30] {
        let values = [scale, -0.3 * scale, 1e-3 * scale];
        let back = round_trip(WireDtype::F16, &values);
        for (got, expected) in back.iter().zip(values) {
            assert!((got - expected).abs() <= expected.abs() * 5e-4, "{got} for {expected}");
        }
    }
    let top = [f32::MAX, f32::MIN, 1.0];
    assert!(round_trip(WireDtype::F16, &top)[0] > 3.3e38);
    let subnormal = f32::from_bits(3);
    for dtype in DTYPES {
        let back = round_trip(dtype, &[subnormal, -subnormal]);
        assert!(largest(&back) <= f32::MIN_POSITIVE, "{dtype}: {back:?}");
    }
    assert_eq!(round_trip(WireDtype::F16, &[subnormal]), [subnormal]);
}

#[test]
fn values_that_are_not_finite_are_refused_by_name_in_every_dtype() {
    for dtype in DTYPES {
        for bad in [f32::NAN, -f32::NAN, f32::from_bits(0x7fff_ffff), f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = vec![0.5; 200];
            values[130] = bad;
            let error = tensor(dtype, &values).to_f32("prompts", &[200]).unwrap_err();
            // A block of 8-bit values is refused as a whole.
            let index = if dtype == WireDtype::Int8 { 128 } else { 130 };
            assert_eq!(error, TensorError::NotFinite { what: "prompts", index }, "{dtype}, {bad}");
        }
    }
}

#[test]
fn wrong_lengths_and_shapes_are_refused() {
    for dtype in DTYPES {
        let meta = TensorMeta { dtype, shape: vec![2, 3] };
        let right = meta.byte_len().unwrap();
        for wrong in [0, right - 1, right + 1] {
            let refused = Tensor::new(meta.clone(), vec![0; wrong]);
            assert!(matches!(refused, Err(TensorError::Length { bytes, .. }) if bytes == wrong), "{dtype}");
        }
        assert!(Tensor::new(TensorMeta { dtype, shape: vec![u32::MAX; 3] }, vec![]).is_err());
        let error = tensor(dtype, &[0.0; 3]).to_f32("prompts", &[1, 3]).unwrap_err();
        assert_eq!(error.to_string(), "prompts has shape [3], expected [1, 3]");
    }
}

#[test]
fn exponents_and_scales_of_a_stranger_are_refused() {
    let with = |dtype, bytes: &[u8]| {
        let meta = TensorMeta { dtype, shape: vec![1] };
        Tensor::new(meta, bytes.to_vec()).unwrap().to_f32("x", &[1])
    };
    for exponent in [-127i16, 114, i16::MIN, i16::MAX] {
        let [a, b] = exponent.to_le_bytes();
        let refused = TensorError::Exponent { what: "x", exponent };
        assert_eq!(with(WireDtype::F16, &[a, b, 0, 0x3c]), Err(refused));
    }
    let not_finite = Err(TensorError::NotFinite { what: "x", index: 0 });
    assert_eq!(with(WireDtype::F16, &[113, 0, 0xff, 0x7b]), not_finite, "65504 times 2^113");
    for scale in [0x7f80u16, 0xff80, 0x7fc0, 0x7f7f, 0xff7f] {
        let [a, b] = scale.to_le_bytes();
        assert_eq!(with(WireDtype::Int8, &[a, b, 1]), not_finite, "{scale:x}");
    }
    assert_eq!(with(WireDtype::Int8, &[0x80, 0xbf, 0x80]), Ok(vec![128.0]), "-1 times -128");
}

/// Finite values of all magnitudes.
fn values() -> impl Strategy<Value = Vec<f32>> {
    let value = any::<f32>().prop_map(|value| if value.is_finite() { value / 2.0 } else { 0.25 });
    proptest::collection::vec(prop_oneof![value, -1f32..1.0, Just(0.0)], 0..400)
}

proptest! {
    #[test]
    fn round_trips_err_by_rounding_only(values in values()) {
        for dtype in DTYPES {
            let back = round_trip(dtype, &values);
            let group = if dtype == WireDtype::Int8 { 64 } else { usize::MAX };
            for (back, values) in back.chunks(group).zip(values.chunks(group)) {
                let top = largest(values);
                for (&got, &expected) in back.iter().zip(values) {
                    let allowed = tolerance(dtype, expected, top);
                    prop_assert!((got - expected).abs() <= allowed, "{}: {} for {} beside {}", dtype, got, expected, top);
                }
            }
        }
    }

    #[test]
    fn bytes_of_a_stranger_are_finite_values_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300), count in 0usize..160) {
        for dtype in DTYPES {
            let meta = TensorMeta { dtype, shape: vec![count as u32] };
            let mut bytes = bytes.clone();
            bytes.resize(meta.byte_len().unwrap(), 7);
            match Tensor::new(meta, bytes).unwrap().to_f32("x", &[count]) {
                Ok(values) => prop_assert!(values.len() == count && values.iter().all(|value| value.is_finite())),
                Err(TensorError::NotFinite { .. } | TensorError::Exponent { .. }) => {}
                Err(error) => prop_assert!(false, "{}", error),
            }
        }
    }
}
