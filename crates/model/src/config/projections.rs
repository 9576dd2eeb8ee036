//! The matrices of blocks as checkpoints and PEFT have them: which there are, what they are called, and which rows of a tensor they are.

use petals_protocol::{Module, Modules, WeightChange};

use super::ModelConfig;
use super::names::Part;

/// A projection that every block has: one matrix, or several whose rows share a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Projection {
    path: String,
    shape: [usize; 2],
    parts: Vec<(Module, Part)>,
}

/// The projections of a model that can be adapted, in the order of [`Module::ALL`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Projections {
    base: &'static str,
    layers: &'static str,
    experts: bool,
    all: Vec<Projection>,
}

impl ModelConfig {
    /// The matrices that low-rank tables can change: no gate where the MLP has none, and nothing of the MLP where a layer is a mixture of experts.
    pub fn adaptable(&self) -> Modules {
        let dense = !self.has_experts();
        let has = |module: &Module| match module {
            Module::Gate => dense && self.block.mlp.gated,
            Module::Up | Module::Down => dense,
            Module::Query | Module::Key | Module::Value | Module::Output => true,
        };
        Module::ALL.into_iter().filter(has).collect()
    }

    /// The matrices that vectors can scale: those of [`Modules::SCALED`] that can be adapted.
    pub fn scalable(&self) -> Modules {
        scaled(self.adaptable())
    }

    /// The first matrix that a change is of and these blocks do not have to change, with those that they have.
    pub(crate) fn lacks(&self, change: WeightChange) -> Option<(Module, Modules)> {
        let (modules, has) = match change {
            WeightChange::None => return None,
            WeightChange::LowRank { modules, .. } => (modules, self.adaptable()),
            WeightChange::Scales { modules } => (modules, self.scalable()),
        };
        modules.iter().find(|module| !has.contains(*module)).map(|module| (module, has))
    }

    /// Heads of keys in transformers' cache, and so in PEFT's prefixes: those of the model, or as many as queries have where keys are repeated
    /// before they are cached.
    pub fn cached_key_heads(&self) -> usize {
        if self.names.caches_repeated_keys { self.num_attention_heads } else { self.num_key_value_heads }
    }

    /// The projections that can be adapted.
    pub fn projections(&self) -> Projections {
        let [queries, keys, values] = self.qkv_of(0);
        let mut parts = vec![(Module::Query, queries), (Module::Key, keys), (Module::Value, values)];
        parts.push((Module::Output, self.output_of(0)));
        if !self.has_experts() {
            let (inside, down) = self.mlp_of(0);
            let inside = match inside.as_slice() {
                // Gate, then up, in one tensor.
                [both] if self.block.mlp.gated => both.halves().to_vec(),
                _ => inside,
            };
            let sides: &[Module] = if self.block.mlp.gated { &[Module::Gate, Module::Up] } else { &[Module::Up] };
            parts.extend(sides.iter().copied().zip(inside));
            parts.push((Module::Down, down));
        }
        let front = self.names.of_block(0, "");
        let mut all = Vec::<Projection>::new();
        for (module, part) in parts {
            let path = part.tensor.strip_prefix(&front).unwrap_or(&part.tensor).to_owned();
            match all.iter_mut().find(|projection| projection.path == path) {
                Some(projection) => projection.parts.push((module, part)),
                None => all.push(Projection { path, shape: part.shape, parts: vec![(module, part)] }),
            }
        }
        Projections { base: self.names.base, layers: self.names.layers, experts: self.has_experts(), all }
    }

    fn has_experts(&self) -> bool {
        self.layers.iter().any(|layer| self.experts_of(*layer).is_some())
    }
}

/// Those of `modules` that can be scaled.
fn scaled(modules: Modules) -> Modules {
    modules.iter().filter(|module| Modules::SCALED.contains(*module)).collect()
}

impl Projection {
    /// Its name below a block's, such as `self_attn.q_proj` or `self_attention.query_key_value`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The last part of [`Self::path`], by which PEFT's `target_modules` name it.
    pub fn name(&self) -> &str {
        self.path.rsplit('.').next().unwrap_or_default()
    }

    /// Features that enter it, and those that leave it.
    pub fn extents(&self) -> [usize; 2] {
        let [output, input] = self.shape;
        [input, output]
    }

    /// The matrices that it is.
    pub fn modules(&self) -> Modules {
        self.parts.iter().map(|(module, _)| *module).collect()
    }

    /// Whether it is several matrices.
    pub fn is_fused(&self) -> bool {
        self.parts.len() > 1
    }

    /// Which of the features that leave it are those of a matrix, in its own order; none if it has no such part.
    pub fn rows(&self, module: Module) -> impl Iterator<Item = usize> + '_ {
        let part = self.parts.iter().find(move |(own, _)| *own == module).map(|(_, part)| part);
        part.into_iter().flat_map(|part| (0..part.output).map(|number| part.row(number)))
    }
}

impl Projections {
    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Projection> {
        self.all.iter()
    }

    /// The matrices that low-rank tables can change.
    pub fn adaptable(&self) -> Modules {
        self.all.iter().flat_map(|projection| &projection.parts).map(|(module, _)| *module).collect()
    }

    /// The matrices that vectors can scale.
    pub fn scalable(&self) -> Modules {
        scaled(self.adaptable())
    }

    /// The matrices of a name: of the checkpoint's, with or without what it is in (`query_key_value`, `mlp.down_proj`), or of ours (`q_proj`).
    pub fn named(&self, name: &str) -> Option<Modules> {
        let is = |projection: &&Projection| {
            let front = projection.path.strip_suffix(name);
            front.is_some_and(|front| front.is_empty() || front.ends_with('.'))
        };
        let own = || {
            let module = name.parse::<Module>().ok().filter(|module| self.adaptable().contains(*module))?;
            Some([module].into_iter().collect())
        };
        self.all.iter().find(is).map(Projection::modules).or_else(own)
    }

    /// The path of a block's projection in transformers, such as `model.layers.3.self_attn.q_proj`.
    pub fn path(&self, block: usize, projection: &Projection) -> String {
        format!("{}{}.{block}.{}", self.base, self.layers, projection.path)
    }

    /// Block and projection that a name is of, with what comes behind its path: `lora_A.weight`, or `bias`. In front may be what PEFT puts there, or
    /// nothing where files were saved from the base class.
    pub fn find<'a, 'n>(&'a self, name: &'n str) -> Option<(usize, &'a Projection, &'n str)> {
        let layers = format!("{}.", self.layers);
        name.match_indices(&layers).find_map(|(at, _)| {
            let front = &name[..at];
            if !(front.is_empty() || front.ends_with(self.base) || front.ends_with("model.")) {
                return None;
            }
            let (number, rest) = name[at + layers.len()..].split_once('.')?;
            let block = number.parse::<usize>().ok().filter(|block| block.to_string() == number)?;
            let of = |projection: &'a Projection| {
                let behind = rest.strip_prefix(&projection.path)?.strip_prefix('.')?;
                Some((block, projection, behind))
            };
            self.all.iter().find_map(of)
        })
    }

    /// What there is of `modules`, in words: the names of the checkpoint, with ours where they are others.
    pub fn describe(&self, modules: Modules) -> String {
        let named = |projection: &Projection| {
            let own: Vec<&str> =
                projection.modules().iter().filter(|module| modules.contains(*module)).map(Module::name).collect();
            match own[..] {
                [] => None,
                [only] if only == projection.name() => Some(only.to_owned()),
                _ => Some(format!("{} ({})", projection.name(), own.join(", "))),
            }
        };
        let all: Vec<String> = self.all.iter().filter_map(named).collect();
        let experts = if self.experts { "; experts cannot be adapted" } else { "" };
        all.join(", ") + experts
    }
}

#[cfg(test)]
mod tests;
