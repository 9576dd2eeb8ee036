//! Weights in MXFP4 (OCP Microscaling Formats 1.0), as gpt-oss's experts come: for each 32 values 16 bytes with two of them each, the lower half
//! first, and a power of two (`convert_moe_packed_tensors` of transformers).

use std::sync::Arc;

use super::{Checkpoint, CheckpointError, Located, TensorFile};

/// Values that have a scale together.
const BLOCK: usize = 32;

/// What four bits stand for.
const VALUES: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// A tensor `[matrices, rows, values]` in its files.
#[derive(Debug)]
pub(crate) struct Mxfp4 {
    blocks: (Arc<TensorFile>, Located),
    scales: (Arc<TensorFile>, Located),
    rows: usize,
}

impl Checkpoint {
    /// Whether the weight of this name is there in MXFP4.
    pub(crate) fn has_mxfp4(&self, name: &str) -> bool {
        self.names(&format!("{name}_blocks"))
    }

    /// Finds `[matrices, rows, values]` in MXFP4.
    ///
    /// # Errors
    /// If blocks or scales are missing or misshapen.
    pub(crate) fn locate_mxfp4(
        &self,
        name: &str,
        [matrices, rows, values]: [usize; 3],
    ) -> Result<Mxfp4, CheckpointError> {
        let of_row = values / BLOCK;
        if !values.is_multiple_of(BLOCK) {
            let reason = format!("`{name}_blocks` is of rows of {values} values, which are no whole blocks of {BLOCK}");
            return Err(CheckpointError::Malformed { path: self.tensors_path().to_owned(), reason });
        }
        let blocks = self.locate_packed(&format!("{name}_blocks"), &[matrices, rows, of_row, BLOCK / 2])?;
        let scales = self.locate_packed(&format!("{name}_scales"), &[matrices, rows, of_row])?;
        Ok(Mxfp4 { blocks, scales, rows })
    }
}

impl Mxfp4 {
    /// Row `row` of matrix `matrix`, as long as `values`.
    pub(crate) fn decode_row(&self, matrix: usize, row: usize, values: &mut [f32]) {
        let first = (matrix * self.rows + row) * (values.len() / BLOCK);
        let ((blocks, at), (scales, of)) = (&self.blocks, &self.scales);
        let (blocks, scales) = (&blocks.bytes(at)[first * BLOCK / 2..], &scales.bytes(of)[first..]);
        for ((values, packed), scale) in values.chunks_exact_mut(BLOCK).zip(blocks.chunks_exact(BLOCK / 2)).zip(scales)
        {
            // 2^(scale - 127); the least ones are no normal numbers.
            let scale = f32::from_bits(u32::from(*scale) << 23).max(f32::from_bits(1 << 22));
            for (pair, byte) in values.as_chunks_mut::<2>().0.iter_mut().zip(packed) {
                *pair = [byte & 15, byte >> 4].map(|bits| VALUES[usize::from(bits)] * scale);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;
    use crate::fixture::{self, config};

    #[test]
    fn values_are_those_of_transformers() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/data/mxfp4.json");
        let golden: Value = serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap();
        let numbers = |name: &str| -> Vec<u32> {
            golden[name].as_array().unwrap().iter().map(|number| number.as_u64().unwrap() as u32).collect()
        };
        let bytes = |name: &str| numbers(name).into_iter().map(|byte| byte as u8).collect::<Vec<u8>>();
        let (shape, bits) = (numbers("shape"), numbers("bits"));
        let [matrices, rows, values] = [0, 1, 2].map(|n| shape[n] as usize);
        let dir = fixture::model(&config(), &fixture::tensors());
        let tensors = [
            ("w_blocks", vec![matrices, rows, values / 32, 16], bytes("blocks")),
            ("w_scales", vec![matrices, rows, values / 32], bytes("scales")),
        ];
        let (mut header, mut data) = (json!({}), Vec::new());
        for (name, shape, bytes) in tensors {
            let start = data.len();
            data.extend(bytes);
            header[name] = json!({"dtype": "U8", "shape": shape, "data_offsets": [start, data.len()]});
        }
        let header = header.to_string();
        let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
        std::fs::write(dir.path().join("model.safetensors"), file).unwrap();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        assert!(checkpoint.has_mxfp4("w") && !checkpoint.has_mxfp4("v"));
        let tensor = checkpoint.locate_mxfp4("w", [matrices, rows, values]).unwrap();
        for (number, expected) in bits.chunks_exact(values).enumerate() {
            let mut row = vec![0.0; values];
            tensor.decode_row(number / rows, number % rows, &mut row);
            let row: Vec<u32> = row.into_iter().map(f32::to_bits).collect();
            assert_eq!(row, expected, "row {number}");
        }
        let error = checkpoint.locate_mxfp4("w", [matrices, rows, values + 8]).unwrap_err().to_string();
        assert!(error.contains("no whole blocks"), "{error}");
        let error = checkpoint.locate_mxfp4("w", [matrices, rows, 2 * values]).unwrap_err().to_string();
        assert!(error.contains("`w_blocks`"), "{error}");
    }
}
