//! What a run learns from, before it begins.

use std::fmt::{self, Display};
use std::path::PathBuf;

use petals_client::Label;
use serde::Serialize;

use super::Event;
use crate::data::{Counts, Dataset};

/// Most classes that are listed for people.
const CLASSES_SHOWN: usize = 12;

/// What was read out of the data, and what the run makes of it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Planned {
    /// The training data.
    pub(crate) train: ReadData,
    /// The held-out data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) eval: Option<ReadData>,
    /// Most tokens of an example.
    pub(crate) max_length: usize,
    /// Trained vectors in front of the text.
    pub(crate) prefix_len: usize,
    /// Positions of the model.
    pub(crate) positions: usize,
    /// Examples of a step.
    pub(crate) step_examples: usize,
    /// Steps in which every example is taken once.
    pub(crate) steps_per_epoch: u64,
    /// Steps of the whole run.
    pub(crate) steps: u64,
    /// Steps made before, by the run that is resumed.
    pub(crate) steps_done: u64,
    /// Tokens that the steps still to be made put through the blocks, about.
    pub(crate) tokens_left: u64,
    /// Whether the run stops here.
    pub(crate) validated_only: bool,
}

/// What an adapter is measured on.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Measured {
    /// The data.
    pub(crate) eval: ReadData,
    /// Most tokens of an example.
    pub(crate) max_length: usize,
}

/// What was read out of one file.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ReadData {
    /// The file.
    pub(crate) file: PathBuf,
    /// Examples that are used.
    pub(crate) examples: usize,
    /// Tokens of all of them.
    pub(crate) tokens: usize,
    /// Labels: tokens that are predicted, or classes.
    pub(crate) labels: usize,
    /// What became of the rows.
    #[serde(flatten)]
    pub(crate) counts: Counts,
    /// Classes with the number of their examples.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) classes: Vec<ClassCount>,
}

/// A class and how often it is there.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ClassCount {
    /// The class as the data names it.
    pub(crate) label: Label,
    /// Its examples.
    pub(crate) examples: usize,
}

impl ReadData {
    /// What was read out of a file.
    pub(crate) fn new(file: PathBuf, data: &Dataset) -> Self {
        let labels = data.labels.iter().flat_map(|labels| labels.labels().iter().cloned());
        let classes = labels.zip(data.of_each_class()).map(|(label, examples)| ClassCount { label, examples });
        Self {
            file,
            examples: data.examples.len(),
            tokens: data.lengths().iter().sum(),
            labels: data.examples.iter().map(petals_client::Example::labels).sum(),
            counts: data.counts,
            classes: classes.collect(),
        }
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, max_length: usize) -> fmt::Result {
        let Self { file, examples, tokens, labels, counts, classes } = self;
        write!(f, "{}: {examples} examples, {tokens} tokens", file.display())?;
        if classes.is_empty() {
            write!(f, " ({labels} to be predicted)")?;
        }
        if counts.cut > 0 {
            write!(f, "; {} cut to {max_length} tokens, the longest had {}", counts.cut, counts.longest)?;
        }
        if counts.left_out() > 0 {
            write!(f, "; {counts}")?;
        }
        if counts.split_conversations > 0 {
            write!(f, "; {} conversations are an example for each answer", counts.split_conversations)?;
        }
        for (at, class) in classes.iter().take(CLASSES_SHOWN).enumerate() {
            write!(f, "{} {}: {}", if at == 0 { "\n  classes" } else { "," }, class.label, class.examples)?;
        }
        if classes.len() > CLASSES_SHOWN { write!(f, " and {} more", classes.len() - CLASSES_SHOWN) } else { Ok(()) }
    }
}

impl Event for Planned {
    const NAME: &'static str = "data";
}

impl Event for Measured {
    const NAME: &'static str = "data";
}

impl Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.eval.write(f, self.max_length)
    }
}

impl Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.train.write(f, self.max_length)?;
        if let Some(eval) = &self.eval {
            f.write_str("\n")?;
            eval.write(f, self.max_length)?;
        }
        let Self { max_length, prefix_len, positions, step_examples, steps, steps_done, tokens_left, .. } = self;
        let epoch = self.steps_per_epoch;
        write!(
            f,
            "\nexamples have at most {max_length} tokens; with the prefix of {prefix_len} the model has {positions} positions"
        )?;
        write!(f, "\n{steps} steps of {step_examples} examples, {epoch} an epoch")?;
        if *steps_done > 0 {
            write!(f, ", {steps_done} of them made")?;
        }
        write!(f, "; about {tokens_left} tokens to go, nothing is padded")?;
        if self.validated_only {
            f.write_str(
                "\nnothing was trained; how long it takes depends on the swarm, and is estimated when it is joined",
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use petals_client::{Example, LabelMap, Target};

    use super::*;

    fn planned() -> Planned {
        let class = |class| Example { tokens: vec![1, 2, 3], target: Target::Class(class) };
        let counts = Counts { rows: 6, empty: 1, without_label: 2, cut: 1, longest: 9, ..Counts::default() };
        let labels = LabelMap::from_labels(["no", "yes"].map(|label| Label::Text(label.into()))).unwrap();
        let data =
            Dataset { examples: [1, 1, 0].map(class).into(), labels: Some(labels), counts, digest: String::new() };
        Planned {
            train: ReadData::new("d.jsonl".into(), &data),
            eval: None,
            max_length: 3,
            prefix_len: 5,
            positions: 8,
            step_examples: 2,
            steps_per_epoch: 2,
            steps: 4,
            steps_done: 1,
            tokens_left: 20,
            validated_only: true,
        }
    }

    #[test]
    fn scripts_read_every_count_by_name() {
        let json = serde_json::to_value(planned()).unwrap();
        let train = &json["train"];
        let counts = ["examples", "tokens", "labels", "rows", "empty", "without_label", "cut", "longest"];
        assert_eq!(counts.map(|name| train[name].as_u64().unwrap()), [3, 9, 3, 6, 1, 2, 1, 9]);
        let classes = serde_json::json!([{"label": "no", "examples": 1}, {"label": "yes", "examples": 2}]);
        assert_eq!((&train["classes"], &json["max_length"], &json["steps"]), (&classes, &3.into(), &4.into()));
        assert!(json.get("eval").is_none());
    }

    #[test]
    fn people_read_what_was_cut_and_left_out() {
        let text = planned().to_string();
        for words in [
            "3 examples, 9 tokens; 1 cut to 3 tokens, the longest had 9",
            "6 rows, 3 left out: 1 empty, 2 too short or cut off by --max-length",
            "classes \"no\": 1, \"yes\": 2",
            "4 steps of 2 examples, 2 an epoch, 1 of them made; about 20 tokens to go",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
    }
}
