//! Files and configurations that do not fit together: errors that name the tensor, never a panic.

use super::*;

/// A case by its name, with one of its tensors changed.
fn refusal(name: &str, end: &str, change: impl Fn(&mut Value, &mut (String, Vec<usize>, Vec<u8>))) -> String {
    let mut case = cases().into_iter().find(|case| case.name == name).unwrap();
    change(&mut case.config, case.tensors.get_mut(end).unwrap());
    let (_dir, checkpoint) = checkpoint(&case.config, &case.tensors);
    let error = checkpoint.matrix("w", case.shape).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&format!("`w.{end}`")) && text.contains("model.safetensors"), "{text}");
    assert!(text.ends_with(error.remedy()), "{text}");
    text
}

fn index(bytes: &mut [u8], number: usize, index: i32) {
    bytes[4 * number..4 * number + 4].copy_from_slice(&index.to_le_bytes());
}

#[test]
fn groups_that_there_are_no_scales_for_are_refused() {
    for group in [4, 1000, i32::MAX, -2, i32::MIN] {
        let error = refusal("gptq 4 bits", "g_idx", |_, (_, _, bytes)| index(bytes, 5, group));
        assert!(error.contains("other groups than the 4"), "{error}");
    }
    let error = refusal("int4 groups in another order", "weight_g_idx", |_, (_, _, bytes)| index(bytes, 5, 4));
    assert!(error.contains("other groups than the 4"), "{error}");
    let error = refusal("int4 groups in another order", "weight_g_idx", |_, (_, _, bytes)| {
        (0..3).for_each(|group| index(bytes, group as usize, group));
    });
    assert!(error.contains("its groups are not of 10 values each"), "{error}");
}

#[test]
fn indices_that_were_not_set_mean_the_values_own_order() {
    for (name, end, unset) in [
        ("gptq 4 bits", "g_idx", 0),
        ("gptq 4 bits", "g_idx", -1),
        ("int4 groups in another order", "weight_g_idx", -1),
    ] {
        let mut case = cases().into_iter().find(|case| case.name == name).unwrap();
        let bytes = &mut case.tensors.get_mut(end).unwrap().2;
        (0..case.shape[1]).for_each(|number| index(bytes, number, unset));
        let with = checkpoint(&case.config, &case.tensors);
        case.tensors.remove(end);
        let without = checkpoint(&case.config, &case.tensors);
        let row = |checkpoint: &Checkpoint| {
            let mut row = vec![0.0; case.shape[1]];
            checkpoint.matrix("w", case.shape).unwrap().decode_row(2, &mut row);
            row
        };
        assert_eq!(row(&with.1), row(&without.1), "{name}");
    }
}

#[test]
fn sizes_that_do_not_fit_together_are_refused() {
    let error = refusal("gptq 4 bits", "scales", |config, _| config["group_size"] = json!(16));
    assert!(error.contains("shape [4, 32], the configuration asks for [2, 32]"), "{error}");
    let error = refusal("gptq 4 bits", "qweight", |config, _| config["bits"] = json!(8));
    assert!(error.contains("[4, 32]") && error.contains("[8, 32]"), "{error}");
    let error = refusal("gptq 4 bits", "qweight", |config, (_, shape, _)| {
        (config["dynamic"], *shape) = (json!({"+:w": {"bits": 8}}), vec![64, 2]);
    });
    assert!(error.contains("none of [2, 3, 4, 8] bits"), "{error}");
    let error = refusal("awq", "qweight", |config, _| config["group_size"] = json!(32));
    assert!(error.contains("16 rows of 48 values"), "{error}");
    let error = refusal("awq", "qzeros", |_, (dtype, ..)| *dtype = "F32".to_owned());
    assert!(error.contains("is F32: only I32 is read"), "{error}");
    let error = refusal("int4 groups", "weight_shape", |_, (.., bytes)| bytes[0] = 6);
    assert!(error.contains("it says [6, 20], where config.json asks for [5, 20]"), "{error}");
    for shape in [vec![5, 3], vec![5, 0], vec![0, 2], vec![2, 5], vec![10], vec![5, 2, 1], vec![usize::MAX, usize::MAX]]
    {
        let error = refusal("int4 groups", "weight_scale", |_, (_, own, _)| own.clone_from(&shape));
        assert!(error.contains("do not divide [5, 20]") || error.contains("are not where"), "{shape:?}: {error}");
    }
    let error = refusal("fp8 blocks with edges", "weight_scale_inv", |config, _| {
        config["weight_block_size"] = json!([16, 8]);
    });
    assert!(error.contains("shape [2, 3], the configuration asks for [2, 5]"), "{error}");
    let error = refusal("fp8 blocks with edges", "weight", |_, (dtype, ..)| *dtype = "F8_E5M2".to_owned());
    assert!(error.contains("is F8_E5M2: only F8_E4M3 is read"), "{error}");
}

#[test]
fn modules_with_bits_of_their_own_say_them_by_their_shapes() {
    for mut case in cases().into_iter().filter(|case| case.config["quant_method"] == "gptq") {
        let exact = case.shape[1].is_multiple_of(case.tensors["scales"].1[0]);
        case.config["dynamic"] = json!({"+:w": {"bits": 5}});
        case.config["bits"] = json!(if case.config["bits"] == 4 { 8 } else { 4 });
        let (_dir, checkpoint) = checkpoint(&case.config, &case.tensors);
        if !exact {
            assert!(checkpoint.matrix("w", case.shape).is_err(), "{}", case.name);
            continue;
        }
        let mut row = vec![0.0; case.shape[1]];
        checkpoint.matrix("w", case.shape).unwrap().decode_row(case.rows[1], &mut row);
        let row: Vec<u32> = row.into_iter().map(f32::to_bits).collect();
        assert_eq!(row, case.values[case.shape[1]..2 * case.shape[1]], "{}", case.name);
    }
}

/// Numbers that look random and are the same every time.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end.max(1)
    }

    fn one_of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }
}

/// Whatever headers, configurations and shapes say, a matrix is refused or can be read to its end.
#[test]
fn damaged_headers_and_configurations_never_panic() {
    const DTYPES: [&str; 9] = ["F32", "F16", "BF16", "F8_E4M3", "I64", "I32", "I8", "U8", "F8_E5M2"];
    let numbers = [-2_i64, -1, 0, 1, 2, 3, 4, 5, 8, 16, 31, 32, 33, 128, 1 << 20, 1 << 24, i64::MAX];
    let keys = ["bits", "group_size", "weight_block_size", "checkpoint_format", "format", "config_groups", "dynamic"];
    let mut random = Random(7);
    let (mut read, mut refused) = (0, 0);
    for case in cases() {
        for _ in 0..60 {
            let (mut config, mut tensors, mut shape) = (case.config.clone(), case.tensors.clone(), case.shape);
            let ends: Vec<String> = tensors.keys().cloned().collect();
            for _ in 0..=random.below(3) {
                let end = random.one_of(&ends);
                let Some((dtype, extents, bytes)) = tensors.get_mut(&end) else { continue };
                match random.below(9) {
                    0 => *dtype = random.one_of(&DTYPES).to_owned(),
                    1 if !extents.is_empty() => {
                        let at = random.below(extents.len());
                        extents[at] =
                            random.one_of(&[0, 1, 2, extents[at].saturating_add(1), extents[at] / 2, usize::MAX / 3]);
                    }
                    2 => extents.push(random.one_of(&[0, 1, 2, usize::MAX])),
                    3 => _ = extents.pop(),
                    4 => bytes.truncate(random.below(bytes.len())),
                    5 if !bytes.is_empty() => (0..8).for_each(|_| {
                        let at = random.below(bytes.len());
                        bytes[at] = random.below(256) as u8;
                    }),
                    6 => _ = tensors.remove(&end),
                    7 => config[random.one_of(&keys)] = json!(random.one_of(&numbers)),
                    _ => shape[random.below(2)] = random.one_of(&[1, 2, 7, 8, 31, 32, 33, 64, 1000]),
                }
            }
            let mut whole = fixture::config();
            whole["quantization_config"] = config;
            let named = tensors.iter().map(|(end, tensor)| (format!("w.{end}"), tensor.clone())).collect();
            let dir = fixture::raw_model(&whole, &named);
            let matrix = Checkpoint::open(dir.path()).and_then(|checkpoint| checkpoint.matrix("w", shape));
            let Ok(matrix) = matrix else {
                refused += 1;
                continue;
            };
            read += 1;
            let mut row = vec![0.0; shape[1]];
            (0..shape[0]).for_each(|number| matrix.decode_row(number, &mut row));
        }
    }
    assert!(read > 150 && refused > 150, "{read} were read, {refused} refused");
}
