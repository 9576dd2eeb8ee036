//! Layouts against the values that their reference implementations compute (`tests/oracle/quantised.py`).

use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::checkpoint::blocks::{BLOCK, Column};
use crate::fixture::{self, Bytes, config};

mod damage;
mod models;

/// A recorded matrix.
struct Case {
    name: String,
    config: Value,
    /// By what their names end with.
    tensors: Bytes,
    shape: [usize; 2],
    rows: Vec<usize>,
    /// The bits of the values of `rows`.
    values: Vec<u32>,
}

fn cases() -> Vec<Case> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/data/quantised.json");
    let golden: Vec<Value> = serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap();
    let numbers = |list: &Value| -> Vec<usize> {
        list.as_array().unwrap().iter().map(|number| number.as_u64().unwrap() as usize).collect()
    };
    let tensor = |(end, tensor): (&String, &Value)| {
        let (dtype, data) = (tensor["dtype"].as_str().unwrap(), base64(tensor["data"].as_str().unwrap()));
        (end.clone(), (dtype.to_owned(), numbers(&tensor["shape"]), data))
    };
    let case = |case: &Value| Case {
        name: case["name"].as_str().unwrap().to_owned(),
        config: case["config"].clone(),
        tensors: case["tensors"].as_object().unwrap().iter().map(tensor).collect(),
        shape: numbers(&case["shape"]).try_into().unwrap(),
        rows: numbers(&case["rows"]),
        values: base64(case["values"].as_str().unwrap()).as_chunks().0.iter().map(|&b| u32::from_le_bytes(b)).collect(),
    };
    golden.iter().map(case).collect()
}

/// The bytes of a text without line ends.
fn base64(text: &str) -> Vec<u8> {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bytes = Vec::new();
    let (mut held, mut bits) = (0_u32, 0);
    for letter in text.bytes().filter(|letter| *letter != b'=') {
        held = held << 6 | LETTERS.iter().position(|own| *own == letter).unwrap() as u32;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((held >> bits) as u8);
        }
    }
    bytes
}

/// A checkpoint with one module `w` beside whatever the configuration asks for.
fn checkpoint(quantisation: &Value, tensors: &Bytes) -> (fixture::Dir, Checkpoint) {
    let mut config = config();
    config["quantization_config"] = quantisation.clone();
    let named = tensors.iter().map(|(end, tensor)| (format!("w.{end}"), tensor.clone())).collect();
    let dir = fixture::raw_model(&config, &named);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    (dir, checkpoint)
}

#[test]
fn values_are_those_of_the_reference_implementations_bit_for_bit() {
    for Case { name, config, tensors, shape, rows, values } in cases() {
        let (_dir, checkpoint) = checkpoint(&config, &tensors);
        let matrix = checkpoint.matrix("w", shape).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(checkpoint.has_matrix("w") && !checkpoint.has_matrix("v"));
        matrix.want();
        for (row, expected) in rows.iter().zip(values.chunks_exact(shape[1])) {
            let mut found = vec![f32::NAN; shape[1]];
            matrix.decode_row(*row, &mut found);
            let found: Vec<u32> = found.into_iter().map(f32::to_bits).collect();
            assert_eq!(found, expected, "{name}, row {row}");
        }
        matrix.release();
    }
}

/// A weight `[8, 64]` in groups of 32: the recorded ones have smaller groups.
fn of_whole_blocks(name: &str, config: Value, tensors: [(&str, &str, [usize; 2], Vec<u8>); 3]) -> Case {
    let tensors = tensors.map(|(end, dtype, shape, data)| (end.to_owned(), (dtype.to_owned(), shape.to_vec(), data)));
    Case { name: name.into(), config, tensors: tensors.into(), shape: [8, 64], rows: Vec::new(), values: Vec::new() }
}

fn words(count: u32) -> Vec<u8> {
    (0..count).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect()
}

fn scales() -> Vec<u8> {
    (0..16).flat_map(|n| half::f16::from_f32(0.01 * n as f32 + 0.003).to_le_bytes()).collect()
}

/// With these zero points, two to a byte.
fn gptq_of_whole_blocks(name: &str, zeros: u8) -> Case {
    let config = json!({"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": false, "sym": true});
    let zeros = ("qzeros", "I32", [2, 1], vec![zeros; 8]);
    of_whole_blocks(name, config, [("qweight", "I32", [8, 8], words(64)), zeros, ("scales", "F16", [2, 8], scales())])
}

fn compressed_of_whole_blocks(name: &str, zeros: (&str, [usize; 2], Vec<u8>)) -> Case {
    let weights = json!({"num_bits": 4, "type": "int", "symmetric": false, "strategy": "group", "group_size": 32});
    let groups = json!({"group_0": {"targets": ["Linear"], "weights": weights}});
    let config = json!({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups});
    let (dtype, shape, data) = zeros;
    let zeros = ("weight_zero_point", dtype, shape, data);
    let codes = ("weight_packed", "I32", [8, 8], words(64));
    of_whole_blocks(name, config, [codes, ("weight_scale", "F16", [8, 2], scales()), zeros])
}

#[test]
fn blocks_stand_for_the_same_values() {
    let mut lying = Vec::new();
    let whole = [("gptq, symmetric", 0x77), ("gptq with zero points", 0x2b)]
        .map(|(name, zeros)| gptq_of_whole_blocks(name, zeros));
    let compressed = [
        compressed_of_whole_blocks("packed zero points", ("I32", [1, 2], words(2))),
        compressed_of_whole_blocks("zero points", ("I8", [8, 2], (0..16).map(|n| (n as u8).wrapping_sub(8)).collect())),
        compressed_of_whole_blocks("zero points beyond the codes", ("I8", [8, 2], vec![9; 16])),
    ];
    for Case { name, config, tensors, shape, .. } in cases().into_iter().chain(whole).chain(compressed) {
        let (_dir, checkpoint) = checkpoint(&config, &tensors);
        let matrix = checkpoint.matrix("w", shape).unwrap();
        let Some(bits) = matrix.bits() else { continue };
        let (mut row, mut column) = (vec![0.0; shape[1]], Column::default());
        for number in 0..shape[0] {
            matrix.blocks_of(number, &mut row.clone(), &mut column);
            matrix.decode_row(number, &mut row);
            assert_eq!(column.values.len(), row.len().next_multiple_of(BLOCK), "{name}");
            for (at, expected) in row.iter().enumerate() {
                // An offset is the nearest that f16 has.
                let off = column.offsets.get(at / BLOCK).map_or(0.0, |offset| offset.to_f32().abs() / 1024.0);
                assert!((column.value(bits, at) - expected).abs() <= off, "{name}, row {number}, value {at}");
            }
        }
        lying.push(name);
    }
    for layout in ["gptq, symmetric", "gptq with zero points", "int4", "int8", "packed zero points"] {
        assert!(lying.iter().any(|name| name.contains(layout)), "none of {layout}: {lying:?}");
    }
    assert!(lying.iter().any(|name| name == "zero points"), "{lying:?}");
    assert!(!lying.iter().any(|name| ["awq", "fp8", "beyond"].iter().any(|kind| name.contains(kind))), "{lying:?}");
}

/// GPTQModel takes the ones away word by word when it saves the first format, so that a zero point of none borrows from its neighbour.
#[test]
fn zero_points_of_none_come_back_from_gptqs_first_format() {
    for (name, ones) in
        [("gptq 4 bits, version 2", 0x1111_1111), ("gptq 8 bits, version 2 in another order", 0x0101_0101_u32)]
    {
        let mut case = cases().into_iter().find(|case| case.name == name).unwrap();
        let zeros = &mut case.tensors.get_mut("qzeros").unwrap().2;
        zeros.iter_mut().step_by(3).for_each(|byte| *byte &= 0xf0);
        zeros.iter_mut().step_by(5).for_each(|byte| *byte = 0);
        let read = |case: &Case| {
            let (_dir, checkpoint) = checkpoint(&case.config, &case.tensors);
            let (matrix, mut row) = (checkpoint.matrix("w", case.shape).unwrap(), vec![0.0; case.shape[1]]);
            let mut rows = Vec::new();
            for number in 0..case.shape[0] {
                matrix.decode_row(number, &mut row);
                rows.extend_from_slice(&row);
            }
            rows
        };
        let second = read(&case);
        case.config["checkpoint_format"] = json!("gptq");
        for word in case.tensors.get_mut("qzeros").unwrap().2.as_chunks_mut::<4>().0 {
            *word = u32::from_le_bytes(*word).wrapping_sub(ones).to_le_bytes();
        }
        assert!(read(&case) == second, "{name}");
    }
}

#[test]
fn floats_count_whatever_the_configuration_says() {
    for case in cases() {
        let values: Vec<u8> = fixture::noise(3, 12).iter().flat_map(|value| value.to_le_bytes()).collect();
        let mut tensors = case.tensors;
        tensors.insert("weight".to_owned(), ("F32".to_owned(), vec![3, 4], values.clone()));
        let (_dir, checkpoint) = checkpoint(&case.config, &tensors);
        let mut row = vec![0.0; 4];
        checkpoint.matrix("w", [3, 4]).unwrap().decode_row(2, &mut row);
        assert_eq!(row, fixture::noise(3, 12)[8..], "{}", case.name);
    }
}

#[test]
fn quantised_weights_of_which_the_configuration_says_nothing_are_refused() {
    for case in cases() {
        let (_dir, checkpoint) = checkpoint(&json!(null), &case.tensors);
        let error = checkpoint.matrix("w", case.shape).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("`w.weight`") && text.contains("`quantization_config`"), "{}: {text}", case.name);
        assert!(text.ends_with(error.remedy()), "{text}");
    }
}
