//! What is trained, as flags of `train` and `bench train`.

use clap::Args;
use petals_client::{
    Injection, Method, Module, Modules, PrefixMode, Projections, TuningMode, WeightChange, WeightMode,
};

use super::values::{at_least, injection, mode, positive};

/// Rank of low-rank tables unless told otherwise, as PEFT has it.
const RANK: u32 = 8;
/// What is adapted unless told otherwise, as PEFT has it for Llama.
const LOW_RANK: [Module; 2] = [Module::Query, Module::Value];

/// What is trained.
#[derive(Debug, Clone, Args)]
pub(crate) struct MethodArgs {
    /// What is trained: ptune (a prompt in front of the embeddings), deep_ptune (prompts in front of every block), prefix (keys and
    /// values in front of every block's), lora (low-rank products beside the weights), ia3 (vectors that keys, values and the MLP
    /// are multiplied with), or one of the first three and one of the last two, such as deep_ptune+lora.
    #[arg(long, value_parser = mode())]
    pub(crate) mode: TuningMode,

    /// With deep_ptune: each block's prompt replaces the prefix, or is added to it.
    #[arg(long, default_value = "replace", value_parser = injection())]
    pub(crate) injection: Injection,

    /// With ptune, deep_ptune and prefix: number of trained vectors in front of the text.
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    pub(crate) prefix_len: Option<usize>,

    /// With lora: rank of the products [default: 8].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) rank: Option<u32>,

    /// With lora: products are multiplied with this over the rank [default: twice the rank].
    #[arg(long, value_name = "X", value_parser = positive)]
    pub(crate) alpha: Option<f64>,

    /// With lora: what is adapted, by the names of the model's own family (query_key_value, dense_h_to_4h, …) or as in Llama: q_proj, k_proj,
    /// v_proj, o_proj, gate_proj, up_proj, down_proj, as far as the model has them [default: q_proj,v_proj]. With ia3: of k_proj, v_proj,
    /// down_proj [default: all that there are].
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub(crate) targets: Vec<String>,
}

impl MethodArgs {
    /// Rows in front of the text, 0 without any.
    pub(crate) fn prefix_len(&self) -> usize {
        self.prefix_len.filter(|_| self.mode.prefix.is_some()).unwrap_or(0)
    }

    /// What blocks do to the prefix.
    pub(crate) fn injection(&self) -> Injection {
        match self.mode.prefix {
            None | Some(PrefixMode::Ptune) => Injection::None,
            Some(PrefixMode::DeepPtune) => self.injection,
            Some(PrefixMode::Prefix) => Injection::KeysValues,
        }
    }

    /// What is trained of a model with these projections. What no flag says is as in `given`, if there is such an adapter.
    ///
    /// # Errors
    /// A sentence that names the flag which does not fit the others, or the model.
    pub(crate) fn method(&self, projections: &Projections, given: Option<&Method>) -> Result<Method, String> {
        let Self { mode, prefix_len, rank, alpha, targets, .. } = self;
        if mode.prefix.is_some() && prefix_len.is_none() {
            return Err(format!(
                "--mode {mode} needs --prefix-len N, the number of trained vectors in front of the text"
            ));
        }
        let senseless = [
            ("--prefix-len", prefix_len.is_some() && mode.prefix.is_none()),
            ("--rank", rank.is_some() && mode.weights != Some(WeightMode::Lora)),
            ("--alpha", alpha.is_some() && mode.weights != Some(WeightMode::Lora)),
            ("--targets", !targets.is_empty() && mode.weights.is_none()),
        ];
        if let Some((flag, _)) = senseless.iter().find(|(_, given)| *given) {
            return Err(format!("{flag} means nothing with --mode {mode}"));
        }
        let named = (!targets.is_empty()).then(|| self.named(projections)).transpose()?;
        let (weights, scale) = match mode.weights {
            None => (WeightChange::None, 1.0),
            Some(WeightMode::Ia3) => {
                let earlier = given.and_then(|given| match given.weights {
                    WeightChange::Scales { modules } => Some(modules),
                    _ => None,
                });
                (WeightChange::Scales { modules: named.or(earlier).unwrap_or(projections.scalable()) }, 1.0)
            }
            Some(WeightMode::Lora) => {
                let earlier = given.and_then(|given| match given.weights {
                    WeightChange::LowRank { rank, modules } => Some((rank, modules, given.scale)),
                    _ => None,
                });
                let own_rank = rank.or(earlier.map(|(rank, ..)| rank)).unwrap_or(RANK);
                let modules = named.or(earlier.map(|(_, modules, _)| modules));
                let modules = modules.unwrap_or(LOW_RANK.into_iter().collect());
                let of_alpha = alpha.map(|alpha| (alpha / f64::from(own_rank)) as f32);
                let scale = of_alpha.or(earlier.map(|(.., scale)| scale)).unwrap_or(2.0);
                (WeightChange::LowRank { rank: own_rank, modules }, scale)
            }
        };
        // Flags were checked with their names: what is missing now comes from another adapter.
        if let Some(module) = lacking(weights, projections) {
            let has = projections.describe(possible(mode.weights, projections));
            return Err(format!("--init-from adapts {module}, and of this model only {has} can be: give --targets"));
        }
        weights.validate().map_err(|error| format!("--targets: {error}"))?;
        Ok(Method { injection: self.injection(), prefix_len: self.prefix_len(), weights, scale })
    }

    /// The matrices that `--targets` names.
    fn named(&self, projections: &Projections) -> Result<Modules, String> {
        let possible = possible(self.mode.weights, projections);
        let mut all = Vec::new();
        for name in &self.targets {
            let modules = projections.named(name);
            let Some(modules) = modules.filter(|modules| modules.iter().all(|module| possible.contains(module))) else {
                let has = projections.describe(possible);
                let kind = if self.mode.weights == Some(WeightMode::Ia3) { "scaled" } else { "adapted" };
                // A name of more than can be scaled: what remains has names too.
                let parts: Vec<&str> = modules
                    .into_iter()
                    .flat_map(Modules::iter)
                    .filter(|module| possible.contains(*module))
                    .map(Module::name)
                    .collect();
                let instead = if parts.is_empty() { String::new() } else { format!(": write {}", parts.join(",")) };
                return Err(format!("--targets names `{name}`, and of this model only {has} can be {kind}{instead}"));
            };
            all.extend(modules.iter());
        }
        Ok(all.into_iter().collect())
    }

    /// The flags as they are in the settings of a run.
    pub(crate) fn settings(&self, method: &Method) -> Vec<(&'static str, String)> {
        let mut settings = vec![
            ("--mode", self.mode.to_string()),
            ("--injection", format!("{:?}", self.injection()).to_lowercase()),
            ("--prefix-len", self.prefix_len().to_string()),
        ];
        let names = |modules: Modules| modules.iter().map(Module::name).collect::<Vec<_>>().join(",");
        match method.weights {
            WeightChange::None => {}
            WeightChange::LowRank { rank, modules } => settings.extend([
                ("--rank", rank.to_string()),
                ("--alpha", (f64::from(method.scale) * f64::from(rank)).to_string()),
                ("--targets", names(modules)),
            ]),
            WeightChange::Scales { modules } => settings.push(("--targets", names(modules))),
        }
        settings
    }
}

/// What a mode can change of a model.
fn possible(mode: Option<WeightMode>, projections: &Projections) -> Modules {
    if mode == Some(WeightMode::Ia3) { projections.scalable() } else { projections.adaptable() }
}

/// The first matrix that is changed and cannot be.
fn lacking(change: WeightChange, projections: &Projections) -> Option<Module> {
    let (modules, possible) = match change {
        WeightChange::None => return None,
        WeightChange::LowRank { modules, .. } => (modules, projections.adaptable()),
        WeightChange::Scales { modules } => (modules, projections.scalable()),
    };
    modules.iter().find(|module| !possible.contains(*module))
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use petals_client::ModelConfig;

    use super::*;

    #[derive(Debug, Parser)]
    struct Flags {
        #[command(flatten)]
        method: MethodArgs,
    }

    fn projections(family: &str) -> Projections {
        let sizes = "\"vocab_size\": 16, \"hidden_size\": 8, \"num_hidden_layers\": 1, \"num_attention_heads\": 2";
        let more = "\"intermediate_size\": 8, \"num_key_value_heads\": 2";
        let config = format!("{{\"model_type\": \"{family}\", {sizes}, {more}}}");
        ModelConfig::from_json(&config).unwrap().projections()
    }

    fn method_of(family: &str, flags: &str) -> Result<Method, String> {
        let flags = format!("train {flags}");
        let flags = Flags::try_parse_from(flags.split_whitespace()).map_err(|error| error.to_string())?;
        flags.method.method(&projections(family), None)
    }

    fn method(flags: &str) -> Result<Method, String> {
        method_of("llama", flags)
    }

    fn modules(method: &Method) -> String {
        let (WeightChange::LowRank { modules, .. } | WeightChange::Scales { modules }) = method.weights else {
            return String::new();
        };
        modules.iter().map(Module::name).collect::<Vec<_>>().join(",")
    }

    #[test]
    fn targets_have_the_names_of_the_family_and_ours() {
        for (family, flags, expected) in [
            ("bloom", "--mode lora --targets query_key_value,dense", "q_proj,k_proj,v_proj,o_proj"),
            ("bloom", "--mode lora --targets mlp.dense_h_to_4h,down_proj", "up_proj,down_proj"),
            ("bloom", "--mode lora", "q_proj,v_proj"),
            ("bloom", "--mode ia3", "k_proj,v_proj,down_proj"),
            ("bloom", "--mode ia3 --targets v_proj,dense_4h_to_h", "v_proj,down_proj"),
            ("phi3", "--mode lora --targets gate_up_proj,q_proj", "q_proj,gate_proj,up_proj"),
            ("mixtral", "--mode ia3", "k_proj,v_proj"),
        ] {
            assert_eq!(modules(&method_of(family, flags).unwrap()), expected, "{family} {flags}");
        }
        for (family, flags, named) in [
            ("bloom", "--mode lora --targets gate_proj", ["`gate_proj`", "dense_h_to_4h (up_proj)"]),
            ("bloom", "--mode ia3 --targets query_key_value", ["`query_key_value`", "write k_proj,v_proj"]),
            ("mixtral", "--mode lora --targets w2", ["`w2`", "experts cannot be adapted"]),
            ("mixtral", "--mode ia3 --targets down_proj", ["`down_proj`", "k_proj, v_proj"]),
            ("llama", "--mode lora --targets query_key_value", ["`query_key_value`", "q_proj, k_proj"]),
        ] {
            let refused = method_of(family, flags).unwrap_err();
            assert!(named.iter().all(|named| refused.contains(named)), "{family} {flags}: {refused}");
        }
        let weights = WeightChange::LowRank { rank: 3, modules: [Module::Gate].into_iter().collect() };
        let given = Method { injection: Injection::None, prefix_len: 0, weights, scale: 0.5 };
        let flags = Flags::try_parse_from(["train", "--mode", "lora"]).unwrap();
        let refused = flags.method.method(&projections("bloom"), Some(&given)).unwrap_err();
        assert!(refused.contains("--init-from") && refused.contains("gate_proj"), "{refused}");
    }

    #[test]
    fn each_mode_trains_what_it_says() {
        let lora = method("--mode lora").unwrap();
        let modules = [Module::Query, Module::Value].into_iter().collect();
        assert_eq!((lora.prefix_len, lora.weights, lora.scale), (0, WeightChange::LowRank { rank: 8, modules }, 2.0));
        let both = method("--mode deep_ptune+lora --prefix-len 4 --rank 4 --alpha 4 --targets down_proj").unwrap();
        assert_eq!((both.prefix_len, both.injection, both.scale), (4, Injection::Replace, 1.0));
        assert_eq!(method("--mode prefix --prefix-len 4").unwrap().injection, Injection::KeysValues);
        let ia3 = method("--mode ia3").unwrap();
        assert_eq!(ia3.weights, WeightChange::Scales { modules: Modules::SCALED });
    }

    #[test]
    fn flags_that_do_not_fit_the_mode_are_refused_by_name() {
        for (flags, named) in [
            ("--mode ptune", "--prefix-len"),
            ("--mode lora --prefix-len 4", "--prefix-len"),
            ("--mode ptune --prefix-len 4 --rank 2", "--rank"),
            ("--mode ia3 --alpha 2", "--alpha"),
            ("--mode deep_ptune --prefix-len 4 --targets q_proj", "--targets"),
            ("--mode ia3 --targets q_proj", "--targets"),
            ("--mode lora --targets lm_head", "lm_head"),
            ("--mode lora --rank 0", "--rank"),
            ("--mode lora+ia3", "--mode"),
        ] {
            let refused = method(flags).unwrap_err();
            assert!(refused.contains(named), "{flags}: {refused}");
        }
    }

    #[test]
    fn an_adapter_that_is_gone_on_from_says_what_flags_do_not() {
        let modules = [Module::Up].into_iter().collect();
        let weights = WeightChange::LowRank { rank: 3, modules };
        let given = Method { injection: Injection::None, prefix_len: 0, weights, scale: 0.5 };
        let flags = Flags::try_parse_from(["train", "--mode", "lora"]).unwrap();
        assert_eq!(flags.method.method(&projections("llama"), Some(&given)), Ok(given));
    }
}
