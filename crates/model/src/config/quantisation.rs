//! `quantization_config`: how the weights of a checkpoint are quantised. What cannot be read is refused by name before anything else of
//! its configuration could look wrong.

use serde_json::Value;

use super::{ConfigError, Fields};

/// Largest group of values or side of a block: as large as any extent of a weight.
const MAX_EXTENT: usize = 1 << 24;

/// How the weights of a checkpoint are quantised. Each matrix may still be there as floats: what it is, its tensors say.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Quantisation {
    /// GPTQ, as AutoGPTQ and GPTQModel pack it.
    Gptq {
        /// Bits of a weight; none if modules have different ones, which their tensors' shapes tell.
        bits: Option<u32>,
        /// Values that have a scale together; none: a whole row, or as the tensors say where modules differ.
        group: Option<usize>,
        /// Whether zero points are stored less one (all files but those of `gptq_v2`).
        zeros_less_one: bool,
    },
    /// AWQ with four bits, as AutoAWQ packs it for its GEMM.
    Awq {
        /// Values that have a scale together; none: a whole row.
        group: Option<usize>,
    },
    /// compressed-tensors: packed integers, bytes or FP8.
    CompressedTensors {
        /// Bits that packed integers may have.
        bits: Vec<u32>,
        /// Rows and values of the blocks that have a scale together, where there are such.
        blocks: Vec<[usize; 2]>,
    },
    /// FP8 with scales of blocks or of whole matrices, as DeepSeek and Qwen publish it.
    Fp8 {
        /// Rows and values of a block.
        block: [usize; 2],
    },
    /// MXFP4, in gpt-oss's experts.
    Mxfp4,
}

/// The methods that are read, as refusals say it.
const READ: &str = "read are the methods gptq, awq, compressed-tensors, fp8 and, of gpt_oss, mxfp4, and weights that are not quantised, in \
                    F32, BF16 or F16";
const REMEDY: &str = "use the model that this one was made from, which its model card names";
/// What compressed-tensors calls the layouts that are read.
const FORMATS: [&str; 4] = ["pack-quantized", "int-quantized", "float-quantized", "naive-quantized"];

impl Quantisation {
    /// What a configuration says of its weights.
    pub(super) fn read(fields: &Fields<'_>) -> Result<Option<Self>, ConfigError> {
        let model_type = fields.text("model_type")?;
        // The second one is what early versions of compressed-tensors wrote.
        for key in ["quantization_config", "compression_config"] {
            let Some(own) = fields.object(key)? else { continue };
            return Ok(Some(match own.text("quant_method")? {
                Some("gptq") => gptq(&own)?,
                Some("awq") => awq(&own)?,
                Some("compressed-tensors") => compressed_tensors(&own)?,
                Some("fp8") => fp8(&own)?,
                Some("mxfp4") if model_type == Some("gpt_oss") => Self::Mxfp4,
                method => return Err(unknown(&own, method)?),
            }));
        }
        Ok(None)
    }
}

fn unknown(fields: &Fields<'_>, method: Option<&str>) -> Result<ConfigError, ConfigError> {
    let mut method = match method {
        Some(method) => format!("`{}`", method.escape_default()),
        None if fields.flag("load_in_4bit")? || fields.flag("load_in_8bit")? => "`bitsandbytes`".to_owned(),
        None => "a method without a name".to_owned(),
    };
    if let Ok(Some(bits)) = fields.number("bits", 1.0, 32.0) {
        method.push_str(&format!(" with {bits} bits"));
    }
    Ok(unsupported(fields.name("quant_method"), method, READ))
}

fn unsupported(key: String, got: String, supported: &str) -> ConfigError {
    ConfigError::Unsupported { key, got, supported: supported.to_owned(), remedy: REMEDY.to_owned() }
}

/// Refuses a text that is there and none of `read`, in whichever case.
fn one_of(fields: &Fields<'_>, key: &str, read: &[&str]) -> Result<Option<String>, ConfigError> {
    let Some(text) = fields.text(key)? else { return Ok(None) };
    let lower = text.to_ascii_lowercase();
    if read.contains(&lower.as_str()) {
        return Ok(Some(lower));
    }
    let got = format!("`{}`", text.escape_default());
    Err(unsupported(fields.name(key), got, &format!("read are {}", read.join(", "))))
}

/// An integer that is one of `read`.
fn bits(fields: &Fields<'_>, key: &str, default: u32, read: &[u32]) -> Result<u32, ConfigError> {
    let found = fields.size_or(key, default as usize, 64)?;
    let known = read.iter().find(|bits| **bits as usize == found).copied();
    known.ok_or_else(|| {
        let listed: Vec<String> = read.iter().map(u32::to_string).collect();
        unsupported(fields.name(key), found.to_string(), &format!("read are {}", listed.join(", ")))
    })
}

/// `group_size`, of which -1 means a whole row.
fn group(fields: &Fields<'_>) -> Result<Option<usize>, ConfigError> {
    const KEY: &str = "group_size";
    let size = fields.number(KEY, -1.0, MAX_EXTENT as f64)?.unwrap_or(128.0);
    match size {
        -1.0 => Ok(None),
        _ if size >= 1.0 && size.fract() == 0.0 => Ok(Some(size as usize)),
        _ => Err(fields.invalid(KEY, size.to_string(), "-1 or a positive integer")),
    }
}

fn gptq(fields: &Fields<'_>) -> Result<Quantisation, ConfigError> {
    // GPTQModel has begun to write the first one as well.
    let [format, older] = ["format", "checkpoint_format"].map(|key| one_of(fields, key, &["gptq", "gptq_v2"]));
    let format = format?.or(older?);
    one_of(fields, "pack_dtype", &["int32"])?;
    if fields.flag("is_marlin_format")? {
        return Err(unsupported(fields.name("is_marlin_format"), "true".to_owned(), "read are gptq and gptq_v2"));
    }
    // GPTQModel's rules for modules that are quantised in their own way.
    let dynamic = fields.object("dynamic")?.is_some_and(|rules| !rules.is_empty());
    let (bits, group) = (bits(fields, "bits", 4, &[2, 3, 4, 8])?, group(fields)?);
    Ok(Quantisation::Gptq {
        bits: Some(bits).filter(|_| !dynamic),
        group: group.filter(|_| !dynamic),
        zeros_less_one: format.as_deref() != Some("gptq_v2"),
    })
}

fn awq(fields: &Fields<'_>) -> Result<Quantisation, ConfigError> {
    for key in ["version", "format", "checkpoint_format"] {
        one_of(fields, key, &["gemm"])?;
    }
    one_of(fields, "backend", &["autoawq"])?;
    bits(fields, "bits", 4, &[4])?;
    Ok(Quantisation::Awq { group: group(fields)? })
}

fn compressed_tensors(fields: &Fields<'_>) -> Result<Quantisation, ConfigError> {
    let mixed = [&FORMATS[..], &["mixed-precision"]].concat();
    if one_of(fields, "format", &mixed)?.is_none() {
        return Err(fields.missing("format"));
    }
    let sparsity = fields.object("sparsity_config")?;
    if let Some(sparsity) = sparsity.filter(|sparsity| !sparsity.is_empty()) {
        one_of(&sparsity, "format", &["dense"])?;
    }
    let (mut widths, mut blocks) = (Vec::new(), Vec::new());
    for group in fields.object("config_groups")?.iter().flat_map(Fields::objects) {
        one_of(&group, "format", &FORMATS)?;
        let Some(weights) = group.object("weights")? else { continue };
        match one_of(&weights, "type", &["int", "float"])?.as_deref() {
            Some("float") => _ = bits(&weights, "num_bits", 8, &[8])?,
            _ => widths.push(bits(&weights, "num_bits", 8, &[4, 8])?),
        }
        blocks.extend(block(&weights, "block_structure")?);
    }
    if widths.is_empty() {
        // Schemes by name (`W4A16`), or none of integers.
        widths = vec![4, 8];
    }
    Ok(Quantisation::CompressedTensors { bits: widths, blocks })
}

fn fp8(fields: &Fields<'_>) -> Result<Quantisation, ConfigError> {
    one_of(fields, "fmt", &["e4m3", "float8_e4m3fn"])?;
    // What a missing key means in transformers. A scale of a whole matrix is told by its shape.
    Ok(Quantisation::Fp8 { block: block(fields, "weight_block_size")?.unwrap_or([128, 128]) })
}

/// Rows and values of a block: a list of both, or as in `128x128`.
fn block(fields: &Fields<'_>, key: &str) -> Result<Option<[usize; 2]>, ConfigError> {
    let Some(value) = fields.get(key) else { return Ok(None) };
    let numbers: Vec<Option<u64>> = match value {
        Value::Array(list) => list.iter().map(Value::as_u64).collect(),
        Value::String(text) => text.split('x').map(|side| side.parse().ok()).collect(),
        _ => Vec::new(),
    };
    let side = |side: Option<u64>| side.map(|side| side as usize).filter(|side| (1..=MAX_EXTENT).contains(side));
    match numbers[..] {
        [rows, values] => match (side(rows), side(values)) {
            (Some(rows), Some(values)) => Ok(Some([rows, values])),
            _ => Err(fields.wrong(key, value, format!("two integers from 1 to {MAX_EXTENT}"))),
        },
        _ => Err(fields.wrong(key, value, "a list of two integers")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(config: Value) -> Result<Option<Quantisation>, String> {
        let config = json!({"model_type": "llama", "quantization_config": config});
        Quantisation::read(&Fields::new(config.as_object().unwrap())).map_err(|error| error.to_string())
    }

    #[test]
    fn gptq_says_bits_groups_and_zero_points() {
        let gptq =
            |bits, group, zeros_less_one| Ok(Some(Quantisation::Gptq { bits: Some(bits), group, zeros_less_one }));
        let with = |key: &str, value: Value| {
            let mut config = json!({"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": true});
            config[key] = value;
            read(config)
        };
        assert_eq!(with("sym", json!(true)), gptq(4, Some(32), true));
        assert_eq!(with("checkpoint_format", json!("gptq_v2")), gptq(4, Some(32), false));
        assert_eq!(with("format", json!("gptq_v2")), gptq(4, Some(32), false));
        assert_eq!(with("group_size", json!(-1)), gptq(4, None, true));
        assert_eq!(with("group_size", json!(null)), gptq(4, Some(128), true));
        assert_eq!(with("bits", json!(8)), gptq(8, Some(32), true));
        let dynamic = Quantisation::Gptq { bits: None, group: None, zeros_less_one: true };
        assert_eq!(with("dynamic", json!({"+:.*down_proj": {"bits": 8}})), Ok(Some(dynamic)));
        for (key, value, said) in [
            ("bits", json!(5), "`quantization_config.bits` = 5 is not supported (read are 2, 3, 4, 8)"),
            ("bits", json!("4"), "`quantization_config.bits`"),
            ("group_size", json!(0), "`quantization_config.group_size` is 0"),
            ("group_size", json!(1.5), "-1 or a positive integer"),
            ("group_size", json!(1e30), "`quantization_config.group_size`"),
            ("checkpoint_format", json!("marlin"), "`quantization_config.checkpoint_format` = `marlin`"),
            ("is_marlin_format", json!(true), "is_marlin_format"),
            ("pack_dtype", json!("int16"), "`quantization_config.pack_dtype` = `int16`"),
        ] {
            let error = with(key, value).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn awq_is_read_in_the_layout_of_its_gemm() {
        let with = |key: &str, value: Value| {
            let mut config = json!({"quant_method": "awq", "bits": 4, "group_size": 64, "version": "GEMM"});
            config[key] = value;
            read(config)
        };
        assert_eq!(with("zero_point", json!(true)), Ok(Some(Quantisation::Awq { group: Some(64) })));
        assert_eq!(with("group_size", json!(-1)), Ok(Some(Quantisation::Awq { group: None })));
        for (key, value) in [("version", "gemv"), ("backend", "llm-awq"), ("checkpoint_format", "gemv_fast")] {
            let error = with(key, json!(value)).unwrap_err();
            assert!(error.contains(&format!("`quantization_config.{key}` = `{value}`")), "{error}");
        }
        assert!(with("bits", json!(3)).unwrap_err().contains("read are 4"));
    }

    #[test]
    fn compressed_tensors_says_what_its_groups_are() {
        let groups = |format: &str, weights: Value| {
            read(json!({"quant_method": "compressed-tensors", "format": format, "ignore": ["lm_head"],
                        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights,
                                                      "input_activations": {"num_bits": 8, "dynamic": true}}}}))
        };
        let compressed = |bits: &[u32], blocks: &[[usize; 2]]| {
            Ok(Some(Quantisation::CompressedTensors { bits: bits.to_vec(), blocks: blocks.to_vec() }))
        };
        let int4 = json!({"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128});
        assert_eq!(groups("pack-quantized", int4), compressed(&[4], &[]));
        let block = json!({"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 64]});
        assert_eq!(groups("float-quantized", block), compressed(&[4, 8], &[[128, 64]]));
        let text = json!({"num_bits": 8, "type": "float", "block_structure": "2x4"});
        assert_eq!(groups("float-quantized", text), compressed(&[4, 8], &[[2, 4]]));
        assert_eq!(groups("int-quantized", json!(null)), compressed(&[4, 8], &[]));
        for (format, weights, said) in [
            ("marlin-24", json!(null), "`quantization_config.format` = `marlin-24`"),
            ("nvfp4-pack-quantized", json!(null), "nvfp4"),
            ("pack-quantized", json!({"num_bits": 3}), "`weights.num_bits` = 3"),
            ("float-quantized", json!({"num_bits": 4, "type": "float"}), "`weights.num_bits` = 4"),
            ("float-quantized", json!({"type": "float", "block_structure": [0, 1]}), "`weights.block_structure`"),
            ("float-quantized", json!({"type": "float", "block_structure": [1]}), "two integers"),
        ] {
            let error = groups(format, weights).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
        let sparse = json!({"quant_method": "compressed-tensors", "format": "pack-quantized",
                            "sparsity_config": {"format": "sparse-24-bitmask"}});
        assert!(read(sparse).unwrap_err().contains("`sparsity_config.format` = `sparse-24-bitmask`"));
        assert!(read(json!({"quant_method": "compressed-tensors"})).unwrap_err().contains("has no"));
    }

    #[test]
    fn fp8_says_its_blocks() {
        let fp8 = |block: Value| read(json!({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": block}));
        assert_eq!(fp8(json!([64, 32])), Ok(Some(Quantisation::Fp8 { block: [64, 32] })));
        assert_eq!(fp8(json!(null)), Ok(Some(Quantisation::Fp8 { block: [128, 128] })));
        assert!(fp8(json!([64, -1])).unwrap_err().contains("`quantization_config.weight_block_size`"));
        assert!(read(json!({"quant_method": "fp8", "fmt": "e5m2"})).unwrap_err().contains("`e5m2`"));
    }
}
