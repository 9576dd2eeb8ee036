//! Trained tables as they were recorded.

use petals_model::ClientModel;
use petals_protocol::{Injection, Module, Modules, WeightChange};

use crate::golden::Golden;

/// A mode's tables: what enters as prefix and as tables of all blocks.
pub(crate) struct Tables {
    pub(crate) injection: Injection,
    pub(crate) weights: WeightChange,
    pub(crate) m: usize,
    pub(crate) prefix: Option<Vec<f32>>,
    /// Of each block, back to back.
    pub(crate) tables: Option<Vec<f32>>,
}

impl Tables {
    pub(crate) fn read(golden: &Golden, mode: &str) -> Self {
        let (m, p) = (golden.bytes_of("P").0[0], golden.tensor("P"));
        let (injection, prefix, tables) = match mode {
            "ptune" => (Injection::None, Some(p), None),
            "add" => (Injection::Add, Some(p), Some(golden.tensor("Q_add"))),
            _ => (Injection::Replace, None, Some([p, golden.tensor("Q_replace")].concat())),
        };
        Self { injection, weights: WeightChange::None, m, prefix, tables }
    }

    /// The tables of all blocks as they go to servers: what replaces the first prefix enters as embeddings do.
    pub(crate) fn entered(&self, client: &ClientModel) -> Option<Vec<f32>> {
        let mut tables = self.tables.clone()?;
        if self.injection == Injection::Replace && self.weights == WeightChange::None {
            let rows = self.m * client.config().hidden_size;
            let first = client.enter(tables[..rows].to_vec());
            tables[..rows].copy_from_slice(&first);
        }
        Some(tables)
    }

    /// The recorded tables of a kind of adapter; see `make_adapters.py`.
    pub(crate) fn of_kind(adapters: &Golden, kind: &str) -> Self {
        let number = |name: &str| adapters.scalars[name].as_u64().unwrap() as u32;
        let injection = match kind {
            _ if kind.starts_with("prefix") => Injection::KeysValues,
            _ if kind.starts_with("replace") => Injection::Replace,
            _ => Injection::None,
        };
        let modules = |key: &str, default: Modules| match adapters.scalars[key].as_array() {
            None => default,
            Some(names) => {
                names.iter().map(|name| format!("{}_proj", name.as_str().unwrap()).parse().unwrap()).collect()
            }
        };
        let weights = match kind {
            _ if kind.ends_with("lora") => {
                let modules = modules("modules", Module::ALL.into_iter().collect());
                WeightChange::LowRank { rank: number("rank"), modules }
            }
            _ if kind.ends_with("ia3") => WeightChange::Scales { modules: modules("scaled", Modules::SCALED) },
            _ => WeightChange::None,
        };
        let m = if injection == Injection::None { 0 } else { number("rows") as usize };
        Self { injection, weights, m, prefix: None, tables: Some(adapters.tensor(&format!("tables.{kind}"))) }
    }
}
