//! What a pass brings along for frozen blocks: how their weights are adapted, and how all tables of a block lie back to back.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Highest rank of low-rank tables. A higher one than a matrix has adds nothing, and no matrix of a block is that small.
const MAX_RANK: u32 = 4096;

/// A frozen matrix of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Module {
    /// Queries.
    Query,
    /// Keys.
    Key,
    /// Values.
    Value,
    /// What the attended values go through.
    Output,
    /// The MLP's gate.
    Gate,
    /// What the gate lets through.
    Up,
    /// The MLP's way back.
    Down,
}

/// Widths of a block's rows on their way through it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockWidths {
    /// Of hidden states.
    pub hidden: usize,
    /// Of the queries of all heads.
    pub query: usize,
    /// Of the keys of all heads, and of their values.
    pub key: usize,
    /// Of the MLP's inside.
    pub intermediate: usize,
}

/// Some of a block's matrices.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Modules(u8);

/// How the frozen weights of the blocks are adapted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum WeightChange {
    /// Not at all.
    #[default]
    None,
    /// `y = x·W + (x·Aᵀ)·B` with `A` `[rank, input]` and `B` `[rank, output]` (LoRA, Hu et al. 2021). `B` is PEFT's `lora_B` transposed, and
    /// has the factor `alpha / rank` in it.
    LowRank {
        /// Rows of `A` and `B`.
        rank: u32,
        /// Which matrices.
        modules: Modules,
    },
    /// Keys and values times a vector each, and what enters the MLP's way back times another (IA3, Liu et al. 2022).
    Scales {
        /// [`Module::Key`], [`Module::Value`], [`Module::Down`].
        modules: Modules,
    },
}

/// What a table of a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TableKind {
    /// The prompts of the block, `[prefix_len, hidden]`.
    Prompts,
    /// Keys beside values of the prefix, as they are attended to: `[prefix_len, 2·key]`.
    KeysValues,
    /// `[rank, input]`.
    LowRankA(Module),
    /// `[rank, output]`.
    LowRankB(Module),
    /// `[1, width]`.
    Scale(Module),
}

/// A table of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockTable {
    /// What it is.
    pub kind: TableKind,
    /// Its rows.
    pub rows: usize,
    /// Values of each.
    pub width: usize,
}

/// Why a change of weights makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WeightChangeError {
    /// Nothing is adapted by it.
    #[error("the change of the weights names no matrix, or one that no block has")]
    Modules,
    /// Only three places can be scaled.
    #[error("only keys, values and the input of the MLP's way back can be scaled")]
    Scaled,
    /// No rank, or a senseless one.
    #[error("low-rank tables have rank {0}, which must be 1 to {MAX_RANK}")]
    Rank(u32),
}

/// A name that is none of a block's matrices.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a matrix of a block: they are q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj")]
pub struct UnknownModule(String);

impl BlockWidths {
    /// Those of a block in which all rows are `width` wide.
    pub const fn uniform(width: usize) -> Self {
        Self { hidden: width, query: width, key: width, intermediate: width }
    }
}

impl Module {
    /// Every one, in the order of their tables.
    pub const ALL: [Self; 7] = [Self::Query, Self::Key, Self::Value, Self::Output, Self::Gate, Self::Up, Self::Down];

    /// Its name in checkpoints and adapters of Hugging Face.
    pub fn name(self) -> &'static str {
        match self {
            Self::Query => "q_proj",
            Self::Key => "k_proj",
            Self::Value => "v_proj",
            Self::Output => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }

    /// Features that enter it, and those that leave it.
    pub fn extents(self, widths: BlockWidths) -> [usize; 2] {
        let BlockWidths { hidden, query, key, intermediate } = widths;
        match self {
            Self::Query => [hidden, query],
            Self::Key | Self::Value => [hidden, key],
            Self::Output => [query, hidden],
            Self::Gate | Self::Up => [hidden, intermediate],
            Self::Down => [intermediate, hidden],
        }
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

impl fmt::Display for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Module {
    type Err = UnknownModule;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|module| module.name() == text).ok_or_else(|| UnknownModule(text.to_owned()))
    }
}

impl Modules {
    /// Those that can be scaled.
    pub const SCALED: Self = Self(1 << Module::Key as u8 | 1 << Module::Value as u8 | 1 << Module::Down as u8);

    /// Whether `module` is one of them.
    pub fn contains(self, module: Module) -> bool {
        self.0 & module.bit() != 0
    }

    /// Each of them, in the order of [`Module::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Module> {
        Module::ALL.into_iter().filter(move |module| self.contains(*module))
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl FromIterator<Module> for Modules {
    fn from_iter<I: IntoIterator<Item = Module>>(modules: I) -> Self {
        Self(modules.into_iter().fold(0, |bits, module| bits | module.bit()))
    }
}

impl fmt::Debug for Modules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(Module::name)).finish()
    }
}

impl WeightChange {
    /// Checks what can be checked without knowing the model.
    ///
    /// # Errors
    /// The first [`WeightChangeError`] found.
    pub fn validate(self) -> Result<(), WeightChangeError> {
        let (modules, possible) = match self {
            Self::None => return Ok(()),
            Self::LowRank { rank, .. } if !(1..=MAX_RANK).contains(&rank) => {
                return Err(WeightChangeError::Rank(rank));
            }
            Self::LowRank { modules, .. } => (modules, Module::ALL.into_iter().collect()),
            Self::Scales { modules } => (modules, Modules::SCALED),
        };
        if modules.is_empty() || modules.0 >> Module::ALL.len() != 0 {
            return Err(WeightChangeError::Modules);
        }
        if modules.0 & !possible.0 != 0 { Err(WeightChangeError::Scaled) } else { Ok(()) }
    }

    /// Tables of one block, in the order in which they lie.
    pub fn tables(self, widths: BlockWidths) -> Vec<BlockTable> {
        match self {
            Self::None => Vec::new(),
            Self::LowRank { rank, modules } => modules
                .iter()
                .flat_map(|module| {
                    let [input, output] = module.extents(widths);
                    let table = |kind, width| BlockTable { kind, rows: rank as usize, width };
                    [table(TableKind::LowRankA(module), input), table(TableKind::LowRankB(module), output)]
                })
                .collect(),
            Self::Scales { modules } => modules
                .iter()
                .map(|module| {
                    let [input, output] = module.extents(widths);
                    let width = if module == Module::Down { input } else { output };
                    BlockTable { kind: TableKind::Scale(module), rows: 1, width }
                })
                .collect(),
        }
    }
}

impl BlockTable {
    /// Values of it.
    pub fn values(&self) -> usize {
        self.rows * self.width
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_changes_that_make_no_sense() {
        let all: Modules = Module::ALL.into_iter().collect();
        assert_eq!(WeightChange::LowRank { rank: 8, modules: all }.validate(), Ok(()));
        assert_eq!(WeightChange::LowRank { rank: 0, modules: all }.validate(), Err(WeightChangeError::Rank(0)));
        let none = Modules::default();
        assert_eq!(WeightChange::LowRank { rank: 1, modules: none }.validate(), Err(WeightChangeError::Modules));
        assert_eq!(WeightChange::Scales { modules: Modules(128) }.validate(), Err(WeightChangeError::Modules));
        assert_eq!(WeightChange::Scales { modules: all }.validate(), Err(WeightChangeError::Scaled));
    }

    #[test]
    fn names_are_those_of_checkpoints() {
        assert!(Module::ALL.iter().all(|module| module.name().parse() == Ok(*module)));
        assert!("lm_head".parse::<Module>().unwrap_err().to_string().contains("q_proj"));
    }
}
