//! What shapes a run besides batches and AdamW: the loss, dropout, an average, networks in front of the tables.

use clap::Args;
use petals_client::{
    Label, LabelMap, PromptDropout, PromptTables, Reparam, ReparamKind, Table, TrainingLoss, TuningMode,
    balanced_weights,
};

use super::learning::Learning;
use super::values::{at_least, below_one, between_0_and_1, part, reparam};

/// The word for weights that follow from the data.
const BALANCED: &str = "balanced";

/// The loss, dropout, an average, networks in front of the tables.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Regularisation")]
pub(crate) struct ShapingArgs {
    /// Part of each label's probability that all labels share, from 0 to 1, as torch's `cross_entropy(label_smoothing=)`. Losses on
    /// --eval are not smoothed.
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true, value_parser = part)]
    label_smoothing: f32,

    /// For seq-cls: what each class counts, as torch's `cross_entropy(weight=)`: `balanced`, by which each counts as much as any
    /// other, or LABEL=W,… (1 for classes that are not named). Losses on --eval are not weighted.
    #[arg(long, value_name = "balanced|LABEL=W,…", allow_hyphen_values = true)]
    class_weights: Option<String>,

    /// Leave out each value of prompts and prefixes in a step with this probability; nothing is left out on --eval.
    #[arg(long, value_name = "P", default_value_t = 0.0, allow_negative_numbers = true, value_parser = below_one)]
    prompt_dropout: f64,

    /// Measure and save an exponential moving average of the tables: after each step it is D times itself and 1 - D times the tables.
    /// 0.99 is one over about the last 100 steps.
    #[arg(long, value_name = "D", allow_negative_numbers = true, value_parser = between_0_and_1)]
    pub(crate) ema: Option<f64>,

    /// Make prompts and prefixes by a network while they are trained; the adapter has what it makes: mlp (a residual bottleneck beside each row),
    /// p-tuning-mlp and p-tuning-lstm (PEFT's P_TUNING, for ptune and deep_ptune), prefix-projection (PEFT's, for prefix).
    #[arg(long, value_name = "NETWORK", value_parser = reparam())]
    reparam: Option<ReparamKind>,

    /// With --reparam: width of the network inside [default: mlp: half of a row's width, at most 400; else that of what enters, as PEFT's
    /// `encoder_hidden_size`].
    #[arg(long, value_name = "N", requires = "reparam", value_parser = at_least(1))]
    reparam_width: Option<usize>,
}

impl ShapingArgs {
    /// Checks that flags fit the mode and the task, and `given`, the tables of --init-from. `start` is a flag that says where prompts begin.
    ///
    /// # Errors
    /// A sentence that names the flag.
    pub(crate) fn check(
        &self,
        mode: TuningMode,
        learning: Learning,
        given: Option<&PromptTables>,
        start: Option<&str>,
    ) -> Result<(), String> {
        if self.class_weights.is_some() && learning != Learning::SeqCls {
            return Err(format!("--class-weights is for --task seq-cls, and --task {learning} has no classes"));
        }
        if self.label_smoothing > 0.0 && learning == Learning::Distill {
            return Err(
                "--label-smoothing is for labels, and --task distill has a teacher's probabilities instead".to_owned()
            );
        }
        if mode.prefix.is_none() && self.prompt_dropout > 0.0 {
            return Err(format!(
                "--prompt-dropout leaves out values of prompts and prefixes, and --mode {mode} has none: what changes weights is trained whole"
            ));
        }
        let Some(kind) = self.reparam else { return Ok(()) };
        if mode.prefix.is_none() {
            return Err(format!("--reparam {kind} makes prompts or prefixes, and --mode {mode} has none"));
        }
        if self.reparam_width.is_some_and(|width| width > 1 << 16) {
            return Err("--reparam-width must be at most 65536".to_owned());
        }
        let in_front = [Table::Input, Table::Deep, Table::KeysValues];
        if given.is_some_and(|given| in_front.iter().any(|table| given.table(*table).is_some())) {
            return Err(format!(
                "--reparam {kind} makes other prompts of those in --init-from: leave one of the two flags away"
            ));
        }
        match start.filter(|_| !kind.keeps_start()) {
            Some(flag) => Err(format!("{flag} says where prompts start, and --reparam {kind} makes its own")),
            None => Ok(()),
        }
    }

    /// What steps minimise, on data with these classes and so many examples of each.
    ///
    /// # Errors
    /// A sentence that names the flag and what is wrong in it.
    pub(crate) fn loss(&self, labels: Option<&LabelMap>, counts: &[usize]) -> Result<TrainingLoss, String> {
        let weights = self.class_weights.as_deref().zip(labels);
        let weights = weights.map(|(text, labels)| match text {
            BALANCED => Ok(balanced_weights(counts)),
            _ => weights_by_name(text, labels),
        });
        let class_weights = weights.transpose()?.map(Into::into);
        Ok(TrainingLoss { label_smoothing: self.label_smoothing, class_weights })
    }

    /// What steps leave out.
    pub(crate) fn dropout(&self, seed: u64) -> Option<PromptDropout> {
        (self.prompt_dropout > 0.0).then_some(PromptDropout { rate: self.prompt_dropout, seed })
    }

    /// What makes the tables.
    pub(crate) fn reparam(&self) -> Option<Reparam> {
        self.reparam.map(|kind| Reparam { kind, width: self.reparam_width })
    }

    /// The flags that are given, as they are in the settings of a run: one without them has none of these.
    pub(crate) fn settings(&self) -> impl Iterator<Item = (&'static str, String)> {
        let number = |value: f64| (value > 0.0).then(|| value.to_string());
        // As it was given: 0.1 and not what a single has for it.
        let smoothing = (self.label_smoothing > 0.0).then(|| self.label_smoothing.to_string());
        let all = [
            ("--label-smoothing", smoothing),
            ("--class-weights", self.class_weights.clone()),
            ("--prompt-dropout", number(self.prompt_dropout)),
            ("--ema", self.ema.map(|decay| decay.to_string())),
            ("--reparam", self.reparam.map(|kind| kind.to_string())),
            ("--reparam-width", self.reparam_width.map(|width| width.to_string())),
        ];
        all.into_iter().filter_map(|(flag, value)| Some((flag, value?)))
    }
}

/// Reads `LABEL=W,…`. What is in front of the last `=` of a part is a label, and may have commas of its own.
fn weights_by_name(text: &str, labels: &LabelMap) -> Result<Vec<f32>, String> {
    let wrong = |problem: String| format!("--class-weights: {problem}: write {BALANCED}, or LABEL=W,…");
    let mut weights: Vec<Option<f32>> = vec![None; labels.len()];
    let mut waiting = String::new();
    for part in text.split(',') {
        waiting += part;
        let Some((name, weight)) = waiting.rsplit_once('=').and_then(|(name, w)| Some((name, w.trim().parse().ok()?)))
        else {
            waiting.push(',');
            continue;
        };
        let weight: f32 = weight;
        let name = name.trim().to_owned();
        waiting.clear();
        let class = labels.labels().iter().position(|label| match label {
            Label::Number(number) => name.parse() == Ok(*number),
            Label::Text(text) => *text == name,
        });
        let Some(slot) = class.and_then(|class| weights.get_mut(class)) else {
            let known: Vec<String> = labels.labels().iter().take(12).map(ToString::to_string).collect();
            return Err(wrong(format!("the data has no label {name:?}, it has {}", known.join(", "))));
        };
        if !(weight.is_finite() && weight > 0.0) {
            return Err(wrong(format!("the weight of {name:?} is not a number above 0")));
        }
        if slot.replace(weight).is_some() {
            return Err(wrong(format!("{name:?} is there twice")));
        }
    }
    if waiting.is_empty() {
        return Ok(weights.into_iter().map(|weight| weight.unwrap_or(1.0)).collect());
    }
    let rest = waiting.trim_end_matches(',');
    Err(wrong(format!("{rest:?} has no weight")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shaping(class_weights: &str) -> ShapingArgs {
        ShapingArgs { class_weights: Some(class_weights.to_owned()), ..ShapingArgs::default() }
    }

    fn texts() -> LabelMap {
        LabelMap::from_labels(["no", "yes, please", "a=b"].map(|label| Label::Text(label.into()))).unwrap()
    }

    #[test]
    fn weights_are_given_by_label_or_follow_from_the_data() {
        let weights = |text: &str, labels: &LabelMap| {
            let loss = shaping(text).loss(Some(labels), &[1, 1, 2])?;
            Ok::<_, String>(loss.class_weights.unwrap().to_vec())
        };
        // In the order of the labels: "a=b", "no", "yes, please".
        assert_eq!(weights("yes, please=2, no=0.5", &texts()), Ok(vec![1.0, 0.5, 2.0]));
        assert_eq!(weights("a=b=3", &texts()), Ok(vec![3.0, 1.0, 1.0]));
        assert_eq!(weights("1=4", &LabelMap::numbered(3).unwrap()), Ok(vec![1.0, 4.0, 1.0]));
        let third = 4.0 / 3.0;
        assert_eq!(weights("balanced", &texts()), Ok(vec![third, third, 2.0 / 3.0]));
        for (text, named) in [
            ("maybe=2", "\"maybe\""),
            ("no=0", "\"no\""),
            ("no=-1", "\"no\""),
            ("no=inf", "\"no\""),
            ("no=1,no=2", "twice"),
            ("no", "\"no\" has no weight"),
            ("no=1,yes", "\"yes\" has no weight"),
            ("", "has no weight"),
        ] {
            let refused = weights(text, &texts()).err().unwrap_or_else(|| panic!("{text} is taken"));
            assert!(refused.starts_with("--class-weights") && refused.contains(named), "{text}: {refused}");
        }
    }

    #[test]
    fn flags_that_do_not_fit_are_refused_by_name() {
        let mode = |text: &str| text.parse::<TuningMode>().unwrap();
        let none = ShapingArgs::default();
        assert_eq!(none.check(mode("lora"), Learning::CausalLm, None, Some("--init")), Ok(()));
        let refused = shaping("balanced").check(mode("ptune"), Learning::CausalLm, None, None).unwrap_err();
        assert!(refused.contains("--class-weights"), "{refused}");
        let dropping = ShapingArgs { prompt_dropout: 0.1, ..ShapingArgs::default() };
        let refused = dropping.check(mode("lora"), Learning::SeqCls, None, None).unwrap_err();
        assert!(refused.contains("--prompt-dropout"), "{refused}");
        assert_eq!(dropping.check(mode("deep_ptune+lora"), Learning::SeqCls, None, None), Ok(()));
        let made = |kind| ShapingArgs { reparam: Some(kind), ..ShapingArgs::default() };
        let refused = made(ReparamKind::Mlp).check(mode("ia3"), Learning::SeqCls, None, None).unwrap_err();
        assert!(refused.contains("--reparam mlp"), "{refused}");
        let lstm = made(ReparamKind::PTuningLstm);
        let refused = lstm.check(mode("ptune"), Learning::SeqCls, None, Some("--init")).unwrap_err();
        assert!(refused.contains("--init") && refused.contains("p-tuning-lstm"), "{refused}");
        assert_eq!(made(ReparamKind::Mlp).check(mode("ptune"), Learning::SeqCls, None, Some("--init")), Ok(()));
    }

    #[test]
    fn only_what_is_given_is_a_setting() {
        assert_eq!(ShapingArgs::default().settings().count(), 0);
        let given = ShapingArgs { ema: Some(0.99), label_smoothing: 0.1, ..shaping("balanced") };
        let settings: Vec<(&str, String)> = given.settings().collect();
        let expected = [("--label-smoothing", "0.1"), ("--class-weights", "balanced"), ("--ema", "0.99")];
        assert_eq!(settings, expected.map(|(flag, value)| (flag, value.to_owned())));
    }
}
