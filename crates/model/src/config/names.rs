//! What families call their tensors, and which rows of which tensor a projection is.

use std::collections::HashSet;
use std::ops::Range;

use super::{AttentionDesign, ExpertsDesign, HeadNorms, LayerDesign, ModelConfig, NormKind};

/// The names of a family's tensors. Those of blocks lie below `<base><layers>.<number>.`; names end before `.weight` and `.bias`.
#[derive(Debug, PartialEq)]
pub(crate) struct Names {
    /// What all names begin with but the head's; files saved from the base class leave it out.
    pub(crate) base: &'static str,
    pub(crate) embeddings: &'static str,
    pub(crate) embedding_norm: &'static str,
    pub(crate) final_norm: &'static str,
    /// The head's, without the base.
    pub(crate) head: &'static str,
    pub(crate) layers: &'static str,
    pub(crate) attention_norm: &'static str,
    pub(crate) attention_out_norm: &'static str,
    pub(crate) mlp_norm: &'static str,
    pub(crate) mlp_out_norm: &'static str,
    pub(crate) qkv: Qkv,
    pub(crate) query_norm: &'static str,
    pub(crate) key_norm: &'static str,
    pub(crate) sinks: &'static str,
    pub(crate) output: &'static str,
    pub(crate) mlp: &'static str,
    pub(crate) gate_up: GateUp,
    pub(crate) down: &'static str,
    pub(crate) router: &'static str,
    pub(crate) experts: &'static str,
    pub(crate) shared_expert: &'static str,
    pub(crate) shared_gate: &'static str,
    /// Whether transformers keeps keys and values for each query head, and not for each key head.
    pub(crate) caches_repeated_keys: bool,
}

/// Queries, keys and values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Qkv {
    Separate([&'static str; 3]),
    /// All queries, all keys, all values.
    Stacked(&'static str),
    /// For each key head its queries, its key, its value.
    ByKeyHead(&'static str),
}

/// Gate and up of an MLP, or of an expert, below its own name.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum GateUp {
    Separate([&'static str; 2]),
    /// Gate, then up.
    Stacked(&'static str),
    /// Of all experts in one tensor `[experts, input, 2·width]`, in which the columns of gate and up take turns.
    AllExperts(&'static str),
}

/// Rows of a tensor that are a part of a projection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    /// The tensor's name, before `.weight`; whole if it is of all experts.
    pub(crate) tensor: String,
    /// Its rows and columns.
    pub(crate) shape: [usize; 2],
    /// How many of its rows.
    pub(crate) output: usize,
    /// If it is a slice of a tensor of all experts, which lies the other way round: which one, and of how many.
    pub(crate) expert: Option<(usize, usize)>,
    rows: Runs,
}

/// Runs of `run` rows, `stride` apart, from `first` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Runs {
    first: usize,
    run: usize,
    stride: usize,
}

impl Part {
    /// A whole tensor.
    fn whole(tensor: String, [output, input]: [usize; 2]) -> Self {
        Self::rows(tensor, [output, input], 0..output)
    }

    /// Rows of a tensor.
    fn rows(tensor: String, shape: [usize; 2], rows: Range<usize>) -> Self {
        let output = rows.len();
        let rows = Runs { first: rows.start, run: output.max(1), stride: output };
        Self { tensor, shape, output, expert: None, rows }
    }

    /// Every `step`th column from `first` on of one expert's slice of a tensor `[experts, input, columns]`.
    fn of_expert(
        tensor: String,
        [columns, input]: [usize; 2],
        expert: (usize, usize),
        [first, step]: [usize; 2],
    ) -> Self {
        let rows = Runs { first, run: 1, stride: step };
        Self { tensor, shape: [columns, input], output: columns / step, expert: Some(expert), rows }
    }

    /// The first half of a whole tensor's rows, and the second.
    pub(super) fn halves(&self) -> [Self; 2] {
        let rows = self.shape[0];
        [0..rows / 2, rows / 2..rows].map(|half| Self::rows(self.tensor.clone(), self.shape, half))
    }

    /// The name of the bias, and its extents in the file.
    pub(crate) fn bias(&self) -> (String, Vec<usize>) {
        let ([rows, _], name) = (self.shape, &self.tensor);
        match self.expert {
            None => (format!("{name}.bias"), vec![rows]),
            Some((_, count)) => (format!("{name}_bias"), vec![count, rows]),
        }
    }

    /// Which value of the bias belongs to row `number` of this part.
    pub(crate) fn bias_of(&self, number: usize) -> usize {
        self.expert.map_or(0, |(expert, _)| expert * self.shape[0]) + self.row(number)
    }

    /// The tensor's row that is row `number` of this part.
    pub(crate) fn row(&self, number: usize) -> usize {
        let Runs { first, run, stride } = self.rows;
        first + number / run * stride + number % run
    }
}

impl Names {
    /// The name of the embedding table, before `.weight`.
    pub(crate) fn embeddings(&self) -> String {
        format!("{}{}", self.base, self.embeddings)
    }

    /// The name of the norm of embeddings, before `.weight`.
    pub(crate) fn embedding_norm(&self) -> String {
        format!("{}{}", self.base, self.embedding_norm)
    }

    /// The name of the norm behind the last block, before `.weight`.
    pub(crate) fn final_norm(&self) -> String {
        format!("{}{}", self.base, self.final_norm)
    }

    /// The name of the head, before `.weight`.
    pub(crate) fn head(&self) -> &'static str {
        self.head
    }

    /// What names begin with that do not belong to the head.
    pub(crate) fn base(&self) -> &'static str {
        self.base
    }

    /// Whether a name without its base is one of the model's.
    pub(crate) fn belongs_to_base(&self, bare: &str) -> bool {
        let own = [self.embeddings, self.embedding_norm, self.final_norm, self.layers, "rotary_emb"];
        own.iter().any(|own| !own.is_empty() && bare.strip_prefix(own).is_some_and(|rest| rest.starts_with('.')))
    }

    pub(crate) fn of_block(&self, block: u32, name: &str) -> String {
        format!("{}{}.{block}.{name}", self.base, self.layers)
    }
}

/// Norms of a block, before `.weight`, with their widths.
#[derive(Debug)]
pub(crate) struct BlockNorms {
    pub(crate) attention: Option<String>,
    pub(crate) attention_out: Option<String>,
    pub(crate) mlp: Option<String>,
    pub(crate) mlp_out: Option<String>,
    /// Of queries, then of keys.
    pub(crate) heads: Option<[(String, usize); 2]>,
}

impl ModelConfig {
    /// The norms of a block.
    pub(crate) fn norms_of(&self, block: u32) -> BlockNorms {
        let (names, design) = (self.names, &self.block);
        let named = |there: bool, name: &str| (there && !name.is_empty()).then(|| names.of_block(block, name));
        let [queries, keys] = match design.attention.head_norms {
            HeadNorms::None => [0, 0],
            HeadNorms::PerHead => [self.head_dim; 2],
            HeadNorms::Whole => [self.query_width(), self.key_width()],
        };
        let heads = [(names.query_norm, queries), (names.key_norm, keys)];
        BlockNorms {
            attention: named(design.norms.before(), names.attention_norm),
            attention_out: named(design.norms.after(), names.attention_out_norm),
            mlp: named(design.norms.before() && design.mlp_has_own_norm(), names.mlp_norm),
            mlp_out: named(design.norms.after(), names.mlp_out_norm),
            heads: (queries > 0).then(|| heads.map(|(name, width)| (names.of_block(block, name), width))),
        }
    }

    /// The name of the scores that go to no key, one for each head.
    pub(crate) fn sinks_of(&self, block: u32) -> Option<String> {
        self.block.attention.sinks.then(|| self.names.of_block(block, self.names.sinks))
    }

    /// What queries, keys and values of a block are made of.
    pub(crate) fn qkv_of(&self, block: u32) -> [Part; 3] {
        let (d, queries, keys) = (self.hidden_size, self.query_width(), self.key_width());
        let widths = [queries, keys, keys];
        match self.names.qkv {
            Qkv::Separate(names) => {
                let part = |n: usize| Part::whole(self.names.of_block(block, names[n]), [widths[n], d]);
                [part(0), part(1), part(2)]
            }
            Qkv::Stacked(name) => {
                let tensor = self.names.of_block(block, name);
                let ends = [0, queries, queries + keys, queries + 2 * keys];
                [0, 1, 2].map(|n| Part::rows(tensor.clone(), [ends[3], d], ends[n]..ends[n + 1]))
            }
            Qkv::ByKeyHead(name) => {
                let tensor = self.names.of_block(block, name);
                let (dim, group) = (self.head_dim, self.num_attention_heads / self.num_key_value_heads);
                let stride = (group + 2) * dim;
                let part = |n: usize, first: usize, run: usize| Part {
                    tensor: tensor.clone(),
                    shape: [self.num_key_value_heads * stride, d],
                    output: widths[n],
                    expert: None,
                    rows: Runs { first, run, stride },
                };
                [part(0, 0, group * dim), part(1, group * dim, dim), part(2, (group + 1) * dim, dim)]
            }
        }
    }

    /// What the output projection of a block's attention is made of.
    pub(crate) fn output_of(&self, block: u32) -> Part {
        Part::whole(self.names.of_block(block, self.names.output), [self.hidden_size, self.query_width()])
    }

    /// Gate, if it has one, and up of a block's MLP, and down.
    pub(crate) fn mlp_of(&self, block: u32) -> (Vec<Part>, Part) {
        self.mlp_named(&self.names.of_block(block, self.names.mlp), self.intermediate_size)
    }

    /// The router of a block.
    pub(crate) fn router_of(&self, block: u32, experts: usize) -> Part {
        Part::whole(self.names.of_block(block, self.names.router), [experts, self.hidden_size])
    }

    /// [`Self::mlp_of`] for one expert.
    pub(crate) fn expert_of(&self, block: u32, number: usize, width: usize) -> (Vec<Part>, Part) {
        let (experts, d) = (self.names.of_block(block, self.names.experts), self.hidden_size);
        let GateUp::AllExperts(gate_up) = self.names.gate_up else {
            return self.mlp_named(&format!("{experts}.{number}."), width);
        };
        let expert = (number, self.block.experts.map_or(0, |experts| experts.count));
        let side = |first| Part::of_expert(format!("{experts}.{gate_up}"), [2 * width, d], expert, [first, 2]);
        let down = Part::of_expert(format!("{experts}.{}", self.names.down), [d, width], expert, [0, 1]);
        (vec![side(0), side(1)], down)
    }

    /// [`Self::mlp_of`] for the expert that all rows go through.
    pub(crate) fn shared_expert_of(&self, block: u32, width: usize) -> (Vec<Part>, Part) {
        self.mlp_named(&self.names.of_block(block, self.names.shared_expert), width)
    }

    /// What the shared expert's output is multiplied by, before the sigmoid.
    pub(crate) fn shared_gate_of(&self, block: u32) -> Part {
        Part::whole(self.names.of_block(block, self.names.shared_gate), [1, self.hidden_size])
    }

    /// The experts of a layer, if it has some.
    pub(crate) fn experts_of(&self, layer: LayerDesign) -> Option<ExpertsDesign> {
        self.block.experts.filter(|_| layer.experts)
    }

    /// Names and shapes of the tensors of a block that belong to no projection: norms and sinks.
    pub(crate) fn vectors_of(&self, block: u32) -> Vec<(String, usize)> {
        let d = self.hidden_size;
        let BlockNorms { attention, attention_out, mlp, mlp_out, heads } = self.norms_of(block);
        let own = [attention, attention_out, mlp, mlp_out].into_iter().flatten().map(|name| (name, d));
        let mut vectors = Vec::new();
        for (name, width) in own.chain(heads.into_iter().flatten()) {
            vectors.push((format!("{name}.weight"), width));
            if self.block.norm == NormKind::Layer {
                vectors.push((format!("{name}.bias"), width));
            }
        }
        vectors.extend(self.sinks_of(block).map(|name| (name, self.num_attention_heads)));
        vectors
    }

    /// The parts of all projections of a block, with whether they have a bias. A tensor that is several parts is there with the first one.
    pub(crate) fn tensors_of(&self, block: u32) -> Vec<(Part, bool)> {
        let AttentionDesign { qkv_bias, output_bias, .. } = self.block.attention;
        let mlp_bias = self.block.mlp.bias;
        let mut parts: Vec<(Part, bool)> = self.qkv_of(block).map(|part| (part, qkv_bias)).to_vec();
        parts.push((self.output_of(block), output_bias));
        let mut add = |(inside, down): (Vec<Part>, Part), bias| {
            parts.extend(inside.into_iter().map(|part| (part, bias)));
            parts.push((down, bias));
        };
        match self.layers.get(block as usize).and_then(|layer| self.experts_of(*layer)) {
            None => add(self.mlp_of(block), mlp_bias),
            Some(experts) => {
                (0..experts.count).for_each(|number| add(self.expert_of(block, number, experts.width), experts.bias));
                if let Some(shared) = experts.shared {
                    add(self.shared_expert_of(block, shared.width), false);
                    parts.extend(shared.gated.then(|| (self.shared_gate_of(block), false)));
                }
                parts.push((self.router_of(block, experts.count), experts.bias));
            }
        }
        let mut named = HashSet::new();
        parts.retain(|(part, _)| named.insert(part.tensor.clone()));
        parts
    }

    fn mlp_named(&self, below: &str, width: usize) -> (Vec<Part>, Part) {
        let (d, names) = (self.hidden_size, self.names);
        let inside = match (names.gate_up, self.block.mlp.gated) {
            (GateUp::Separate(sides), true) => {
                sides.iter().map(|name| Part::whole(format!("{below}{name}"), [width, d])).collect()
            }
            (GateUp::Separate([_, up]), false) => vec![Part::whole(format!("{below}{up}"), [width, d])],
            (GateUp::Stacked(name) | GateUp::AllExperts(name), _) => {
                vec![Part::whole(format!("{below}{name}"), [2 * width, d])]
            }
        };
        (inside, Part::whole(format!("{below}{}", names.down), [d, width]))
    }
}
