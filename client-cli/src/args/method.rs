//! What is trained, as flags of `train` and `bench train`.

use clap::Args;
use petals_client::{Injection, Method, Module, Modules, PrefixMode, TuningMode, WeightChange, WeightMode};

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

    /// With lora: what is adapted, of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj [default: q_proj,v_proj]. With ia3: of
    /// k_proj, v_proj, down_proj [default: all three].
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub(crate) targets: Vec<Module>,
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

    /// What is trained. What no flag says is as in `given`, if there is such an adapter.
    ///
    /// # Errors
    /// A sentence that names the flag which does not fit the others.
    pub(crate) fn method(&self, given: Option<&Method>) -> Result<Method, String> {
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
        let named: Option<Modules> = (!targets.is_empty()).then(|| targets.iter().copied().collect());
        let (weights, scale) = match mode.weights {
            None => (WeightChange::None, 1.0),
            Some(WeightMode::Ia3) => {
                let earlier = given.and_then(|given| match given.weights {
                    WeightChange::Scales { modules } => Some(modules),
                    _ => None,
                });
                (WeightChange::Scales { modules: named.or(earlier).unwrap_or(Modules::SCALED) }, 1.0)
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
        weights.validate().map_err(|error| format!("--targets: {error}"))?;
        Ok(Method { injection: self.injection(), prefix_len: self.prefix_len(), weights, scale })
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Flags {
        #[command(flatten)]
        method: MethodArgs,
    }

    fn method(flags: &str) -> Result<Method, String> {
        let flags = format!("train {flags}");
        Flags::try_parse_from(flags.split_whitespace()).map_err(|error| error.to_string())?.method.method(None)
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
        assert_eq!(flags.method.method(Some(&given)), Ok(given));
    }
}
