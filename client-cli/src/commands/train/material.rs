//! What a run learns from, and what is said of it before it begins.

use std::collections::HashMap;
use std::path::Path;

use petals_client::{Example, Label, LabelMap, TextRules, TrainingRecord};

use crate::args::TrainArgs;
use crate::data::{BatchPlan, DataRules, Dataset};
use crate::error::CliError;
use crate::output::{Planned, ReadData};
use crate::text::TextTokenizer;

/// Fewest classes that are doubted to be classes, if there are hardly more examples.
const DOUBTED_CLASSES: usize = 20;

/// The data of a run.
pub(super) struct Material {
    pub(super) data: Dataset,
    pub(super) eval: Option<Dataset>,
    rules: TextRules,
}

impl Material {
    /// Reads and checks training and held-out data.
    pub(super) fn load(
        args: &TrainArgs,
        rules: TextRules,
        vocab_size: usize,
        tokenizer: &TextTokenizer,
    ) -> Result<Self, CliError> {
        let columns = args.text.columns(args.learning.task()).map_err(CliError::Usage)?;
        if args.data == Path::new("-") && args.eval.as_deref() == Some(Path::new("-")) {
            return Err(CliError::Usage("--data and --eval cannot both be read from standard input".to_owned()));
        }
        let templates = args.text.templates(&args.swarm.model);
        let load = |path: &Path, labels: Option<&LabelMap>| {
            let rules = DataRules {
                task: args.learning.task(),
                text: rules,
                labels,
                columns: &columns,
                templates: &templates,
                vocab_size,
            };
            let data = Dataset::load(path, &rules, tokenizer)?;
            warnings(&data).iter().for_each(|warning| tracing::warn!("{}: {warning}", path.display()));
            Ok::<_, CliError>(data)
        };
        let data = load(&args.data, None)?;
        let eval = args.eval.as_deref().map(|path| load(path, data.labels.as_ref())).transpose()?;
        Ok(Self { data, eval, rules })
    }

    /// The first tokens of the training data as the run takes its examples, so many if there are.
    pub(super) fn first_tokens(&self, args: &TrainArgs, count: usize) -> Vec<u32> {
        let mut plan = BatchPlan::new(self.data.lengths(), args.optimiser.step_size(), args.optimiser.order());
        let mut tokens = Vec::with_capacity(count);
        for step in 0..plan.steps_per_epoch() {
            for example in plan.batch(step).into_iter().filter_map(|index| self.data.examples.get(index)) {
                tokens.extend_from_slice(&example.tokens);
            }
            if tokens.len() >= count {
                break;
            }
        }
        tokens.truncate(count);
        tokens
    }

    /// Most tokens of an example.
    pub(super) fn max_length(&self) -> usize {
        self.rules.max_length.unwrap_or(usize::MAX)
    }

    /// Tokens of a step, on the average.
    pub(super) fn tokens_per_step(&self, plan: &BatchPlan) -> f64 {
        let tokens: usize = self.data.lengths().iter().sum();
        tokens as f64 / plan.steps_per_epoch() as f64
    }

    /// The examples of a step, counted from 0.
    pub(super) fn batch(&self, plan: &mut BatchPlan, step: u64) -> Vec<Example> {
        let indices = plan.batch(step);
        indices.iter().filter_map(|&index| self.data.examples.get(index)).cloned().collect()
    }

    /// What the run is going to do, for its report.
    pub(super) fn planned(
        &self,
        args: &TrainArgs,
        positions: usize,
        record: &TrainingRecord,
        plan: &BatchPlan,
    ) -> Planned {
        let left = record.total_steps.saturating_sub(record.step);
        Planned {
            train: ReadData::new(args.data.clone(), &self.data),
            eval: args.eval.clone().zip(self.eval.as_ref()).map(|(path, data)| ReadData::new(path, data)),
            max_length: self.max_length(),
            prefix_len: args.method.prefix_len(),
            positions,
            step_examples: args.optimiser.step_size(),
            steps_per_epoch: plan.steps_per_epoch(),
            steps: record.total_steps,
            steps_done: record.step,
            tokens_left: (self.tokens_per_step(plan) * left as f64).round() as u64,
            validated_only: args.validate,
        }
    }
}

/// What a person should look at, though it can be trained on.
fn warnings(data: &Dataset) -> Vec<String> {
    let (counts, mut warnings) = (&data.counts, Vec::new());
    if counts.left_out() > 0 {
        warnings.push(counts.to_string());
    }
    if counts.trimmed_labels > 0 {
        warnings.push(format!("{} labels have space around them, which was taken off", counts.trimmed_labels));
    }
    let classes = data.labels.as_ref().map_or(0, LabelMap::len);
    let labels = data.labels.as_ref().map_or(&[][..], LabelMap::labels);
    if let Some((one, other)) = alike(labels) {
        warnings.push(format!("the labels {one} and {other} differ in case or space alone, and are two classes"));
    }
    let used = data.of_each_class().iter().filter(|&&examples| examples > 0).count();
    if used >= DOUBTED_CLASSES && 2 * used > data.examples.len() {
        warnings.push(format!(
            "{} examples have {used} different labels: are they classes? Regression is not supported",
            data.examples.len()
        ));
    }
    if classes > 1 && used == 1 {
        warnings.push("all examples have the same label".to_owned());
    }
    warnings
}

/// Two labels that a person may have meant to be one.
fn alike(labels: &[Label]) -> Option<(&Label, &Label)> {
    let mut known: HashMap<String, &Label> = HashMap::new();
    labels.iter().find_map(|label| {
        let Label::Text(text) = label else { return None };
        let words: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
        known.insert(words.join(" "), label).map(|first| (first, label))
    })
}

#[cfg(test)]
mod tests {
    use petals_client::Target;

    use super::*;
    use crate::data::Counts;

    fn data(classes: usize, examples: usize) -> Dataset {
        let class = |at: usize| Example { tokens: vec![1], target: Target::Class(at % classes) };
        let labels = LabelMap::numbered(classes).unwrap();
        let examples = (0..examples).map(class).collect();
        Dataset { examples, labels: Some(labels), counts: Counts::default(), digest: String::new() }
    }

    #[test]
    fn labels_that_differ_in_case_or_space_are_doubted() {
        let of = |labels: [&str; 3]| {
            let labels = LabelMap::from_labels(labels.map(|label| Label::Text(label.into()))).unwrap();
            warnings(&Dataset { labels: Some(labels), ..data(3, 9) }).concat()
        };
        assert!(of(["Positive", "negative", "positive"]).contains("\"Positive\" and \"positive\" differ in case"));
        assert!(of(["not  sure", "no", "not sure"]).contains("differ in case or space"));
        assert_eq!(of(["a", "b", "c"]), "");
    }

    #[test]
    fn labels_that_are_hardly_ever_the_same_are_doubted() {
        assert!(warnings(&data(30, 40)).concat().contains("30 different labels"));
        assert_eq!(warnings(&data(30, 90)), Vec::<String>::new());
        assert_eq!(warnings(&data(3, 4)), Vec::<String>::new());
        let mut trimmed = data(2, 4);
        trimmed.counts.trimmed_labels = 3;
        assert!(warnings(&trimmed).concat().starts_with("3 labels have space"));
        assert!(warnings(&data(2, 1)).concat().contains("the same label"), "of held-out data");
    }
}
