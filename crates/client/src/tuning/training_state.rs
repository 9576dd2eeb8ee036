//! What a training run needs to go on where it was killed: tables, optimiser, position and settings in one file.
//!
//! The order of the data is a function of the seed and the step alone, so these two are the data cursor and the state
//! of the random numbers.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};

use petals_protocol::{BlockWidths, Injection, ModelId, WeightChange};
use serde::{Deserialize, Serialize};

use super::aids::Aids;
use super::average::Average;
use super::encoder::{Encoder, EncoderPart, Reparam};
use super::optimizer::AdamW;
use crate::adapter::labels::LabelMap;
use crate::adapter::names::injection_name;
use crate::adapter::tables::{Parts, PromptTables, Table, TableShape};
use crate::adapter::tensor_file::{TensorFile, TensorFileError, write_tensors};

/// Where the state lies inside of the run's output directory.
const STATE_FILE: &str = "training_state/state.safetensors";
const RECORD_KEY: &str = "petals_training_state";
const TABLES: &str = "tables";
const MEANS: &str = "adamw.exp_avg";
const SQUARES: &str = "adamw.exp_avg_sq";
const AVERAGES: &str = "ema";
const ENCODER: &str = "encoder";
const ENCODER_MEANS: &str = "encoder.exp_avg";
const ENCODER_SQUARES: &str = "encoder.exp_avg_sq";

/// Position and settings of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainingRecord {
    /// The model that is adapted.
    pub model: ModelId,
    /// Steps made; the index of the next one.
    pub step: u64,
    /// Steps of the whole run, which the schedule depends on.
    pub total_steps: u64,
    /// Seed of everything random.
    pub seed: u64,
    /// Classes in the order of the score head's rows.
    pub labels: Option<LabelMap>,
    /// The flags that shape the loss curve, by name (`--lr`), and a digest of the data.
    pub settings: BTreeMap<String, String>,
}

/// A saved run.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainingState {
    /// Position and settings.
    pub record: TrainingRecord,
    /// The tables after the last step.
    pub tables: PromptTables,
    /// The optimiser after the last step.
    pub optimizer: AdamW,
    /// What there is beside them.
    pub aids: Aids,
}

/// A setting that differs from that of the saved run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingChange {
    /// The flag.
    pub flag: String,
    /// Its value in the saved run.
    pub was: Option<String>,
    /// Its value now.
    pub now: Option<String>,
}

/// Why a saved run could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainingStateError {
    /// The file is not usable, or could not be written.
    #[error(transparent)]
    Tensors(#[from] TensorFileError),
    /// It is a safetensors file of something else.
    #[error("{} is not a training state", .0.display())]
    NoRecord(PathBuf),
    /// Its record is malformed or of another version.
    #[error("the record of the training state {} is malformed", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

/// The record as saved, with what is needed to read the tensors.
#[derive(Serialize, Deserialize)]
struct SavedRecord {
    #[serde(flatten)]
    record: TrainingRecord,
    #[serde(with = "injection_name")]
    injection: Injection,
    #[serde(default)]
    weights: WeightChange,
    #[serde(default = "one")]
    scale: f32,
    blocks: usize,
    prefix_len: usize,
    hidden: usize,
    /// Runs that adapt no weights need none but the hidden states'.
    #[serde(default)]
    widths: Option<BlockWidths>,
    classes: Option<usize>,
    optimizer_steps: u64,
    weight_decay: f64,
    /// What the average keeps in a step; runs without one say nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ema: Option<f64>,
    /// What makes the tables; runs whose tables are trained themselves say nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reparam: Option<Reparam>,
}

fn one() -> f32 {
    1.0
}

impl fmt::Display for SettingChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "not given".to_owned());
        write!(f, "{} was {}, is now {}", self.flag, text(&self.was), text(&self.now))
    }
}

impl TrainingRecord {
    /// The settings that differ from `now`, by name.
    pub fn changed_settings(&self, now: &BTreeMap<String, String>) -> Vec<SettingChange> {
        let mut flags: Vec<&String> = self.settings.keys().chain(now.keys()).collect();
        flags.sort();
        flags.dedup();
        let change = |flag: &String| {
            let (was, now) = (self.settings.get(flag).cloned(), now.get(flag).cloned());
            (was != now).then(|| SettingChange { flag: flag.clone(), was, now })
        };
        flags.into_iter().filter_map(change).collect()
    }

    /// Writes the state of a run into its output directory. A process killed at any moment leaves the old state or the
    /// new one.
    ///
    /// # Errors
    /// [`TrainingStateError::Tensors`].
    pub fn save(
        &self,
        out: &Path,
        tables: &PromptTables,
        optimizer: &AdamW,
        aids: &Aids,
    ) -> Result<(), TrainingStateError> {
        let shape = tables.shape();
        let (means, squares) = optimizer.moments();
        let mut groups = vec![(TABLES, tables.parts()), (MEANS, means), (SQUARES, squares)];
        groups.extend(aids.average.iter().map(|average| (AVERAGES, average.tables().parts())));
        let mut tensors = Vec::new();
        for (table, (group, values)) in
            shape.tables().into_iter().flat_map(|table| groups.iter().map(move |group| (table, group)))
        {
            let Some(extents) = shape.of(table) else { continue };
            tensors.push((tensor_name(group, table), extents, values.get(table).unwrap_or(&[])));
        }
        let of_encoder = aids.encoder.iter().flat_map(Encoder::state);
        tensors.extend(
            of_encoder.map(|(part, name, extents, values)| (encoder_name(part, &name), extents.to_vec(), values)),
        );
        let saved = SavedRecord {
            record: self.clone(),
            injection: shape.injection,
            weights: shape.weights,
            scale: shape.scale,
            blocks: shape.blocks,
            prefix_len: shape.prefix_len,
            hidden: shape.hidden(),
            widths: Some(shape.widths),
            classes: shape.labels,
            optimizer_steps: optimizer.steps(),
            weight_decay: optimizer.weight_decay(),
            ema: aids.average.as_ref().map(Average::decay),
            reparam: aids.encoder.as_ref().map(Encoder::reparam),
        };
        let path = out.join(STATE_FILE);
        let text = serde_json::to_string(&saved)
            .map_err(|source| TrainingStateError::Record { path: path.clone(), source })?;
        Ok(write_tensors(&path, &tensors, HashMap::from([(RECORD_KEY.to_owned(), text)]))?)
    }
}

impl TrainingState {
    /// Reads the state in a run's output directory; `None` if there is none.
    ///
    /// # Errors
    /// [`TrainingStateError`], naming the file and what is wrong with it.
    pub fn load(out: &Path) -> Result<Option<Self>, TrainingStateError> {
        let path = out.join(STATE_FILE);
        if !path.exists() {
            return Ok(None);
        }
        let file = TensorFile::read(&path)?;
        let text = file.metadata(RECORD_KEY)?.ok_or_else(|| TrainingStateError::NoRecord(path.clone()))?;
        let saved: SavedRecord =
            serde_json::from_str(&text).map_err(|source| TrainingStateError::Record { path, source })?;
        let shape = TableShape {
            injection: saved.injection,
            weights: saved.weights,
            scale: saved.scale,
            blocks: saved.blocks,
            prefix_len: saved.prefix_len,
            widths: saved.widths.unwrap_or(BlockWidths::uniform(saved.hidden)),
            labels: saved.classes,
        };
        let tables = PromptTables::from_parts(shape, read_parts(&file, TABLES, &shape)?);
        let (means, squares) = (read_parts(&file, MEANS, &shape)?, read_parts(&file, SQUARES, &shape)?);
        let optimizer = AdamW::from_saved(saved.weight_decay, saved.optimizer_steps, means, squares);
        let average = |decay| {
            Ok(Average::from_saved(decay, PromptTables::from_parts(shape, read_parts(&file, AVERAGES, &shape)?)))
        };
        let average = saved.ema.map(average).transpose().map_err(TrainingStateError::Tensors)?;
        let read = |part, name: &str, extents: &[usize]| file.expect(&encoder_name(part, name), extents);
        let encoder = saved.reparam.map(|reparam| Encoder::from_saved(reparam, &shape, read)).transpose()?;
        Ok(Some(Self { record: saved.record, tables, optimizer, aids: Aids { encoder, average } }))
    }
}

fn encoder_name(part: EncoderPart, name: &str) -> String {
    let group = match part {
        EncoderPart::Value => ENCODER,
        EncoderPart::Mean => ENCODER_MEANS,
        EncoderPart::Square => ENCODER_SQUARES,
    };
    format!("{group}.{name}")
}

fn tensor_name(group: &str, table: Table) -> String {
    format!("{group}.{}", table.tensor_name())
}

fn read_parts(file: &TensorFile, group: &str, shape: &TableShape) -> Result<Parts, TensorFileError> {
    let read = |table| {
        let extents = shape.of(table).unwrap_or_default();
        Ok((table, file.expect(&tensor_name(group, table), &extents)?))
    };
    Ok(Parts::new(shape.tables().into_iter().map(read).collect::<Result<_, TensorFileError>>()?))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use petals_protocol::Fingerprint;

    use super::*;
    use crate::adapter::tables::TableGradients;
    use crate::tuning::encoder::ReparamKind;

    fn record(step: u64) -> TrainingRecord {
        let settings = [("--lr", "0.1"), ("--clip", "1")].map(|(flag, value)| (flag.to_owned(), value.to_owned()));
        TrainingRecord {
            model: ModelId::new("tiny", Fingerprint([1; 8])).unwrap(),
            step,
            total_steps: 20,
            seed: 3,
            labels: Some(LabelMap::numbered(2).unwrap()),
            settings: settings.into(),
        }
    }

    fn gradients(shape: TableShape, seed: f32) -> TableGradients {
        let mut gradients = TableGradients::zeros(shape);
        gradients.add_input(&[seed, -1.0, 0.3, seed * 0.1]).unwrap();
        gradients.add_score(&[0.5, seed, 0.0, 0.25]).unwrap();
        gradients.add_tables(petals_protocol::Span::new(1, 2).unwrap(), &[seed; 4]).unwrap();
        gradients
    }

    fn shape() -> TableShape {
        TableShape {
            injection: Injection::Add,
            weights: WeightChange::None,
            scale: 1.0,
            blocks: 2,
            prefix_len: 2,
            widths: BlockWidths::uniform(2),
            labels: Some(2),
        }
    }

    #[test]
    fn a_resumed_run_makes_the_same_steps_as_an_uninterrupted_one() {
        let root = tempfile::tempdir().unwrap();
        let shape = shape();
        let (mut tables, mut optimizer) = (PromptTables::zeros(shape), AdamW::new(&shape, 0.01));
        for i in 0..3 {
            optimizer.step(&mut tables, &gradients(shape, i as f32), 0.1);
        }
        record(3).save(root.path(), &tables, &optimizer, &Aids::default()).unwrap();
        let mut resumed = TrainingState::load(root.path()).unwrap().unwrap();
        assert_eq!(resumed.record, record(3));
        for i in 3..6 {
            optimizer.step(&mut tables, &gradients(shape, i as f32), 0.1);
            resumed.optimizer.step(&mut resumed.tables, &gradients(shape, i as f32), 0.1);
        }
        assert_eq!((resumed.tables, resumed.optimizer), (tables, optimizer));
    }

    #[test]
    fn a_run_with_an_encoder_and_an_average_resumes_exactly() {
        let root = tempfile::tempdir().unwrap();
        let shape = shape();
        for kind in [ReparamKind::Mlp, ReparamKind::PTuningLstm] {
            let (mut tables, mut optimizer) = (PromptTables::zeros(shape), AdamW::new(&shape, 0.01));
            let encoder = Encoder::new(Reparam { kind, width: Some(3) }, &mut tables, 4).unwrap();
            let mut aids = Aids { encoder: Some(encoder), average: Some(Average::new(0.9, &tables)) };
            let step = |tables: &mut PromptTables, optimizer: &mut AdamW, aids: &mut Aids, i: usize| {
                aids.step((tables, optimizer), gradients(shape, i as f32), (1.0, 0.1)).unwrap()
            };
            for i in 0..3 {
                step(&mut tables, &mut optimizer, &mut aids, i);
            }
            record(3).save(root.path(), &tables, &optimizer, &aids).unwrap();
            let TrainingState { tables: mut own, optimizer: mut own_optimizer, aids: mut own_aids, .. } =
                TrainingState::load(root.path()).unwrap().unwrap();
            assert_eq!((&own, &own_aids), (&tables, &aids), "{kind}");
            for i in 3..6 {
                let norm = step(&mut tables, &mut optimizer, &mut aids, i);
                assert_eq!(step(&mut own, &mut own_optimizer, &mut own_aids, i), norm);
            }
            assert_ne!(aids.average.as_ref().unwrap().tables().as_ref(), &tables);
            assert_eq!((own, own_optimizer, own_aids), (tables, optimizer, aids), "{kind}");
        }
    }

    #[test]
    fn changed_settings_are_named() {
        let mut now = record(0).settings;
        assert!(record(5).changed_settings(&now).is_empty());
        now.insert("--lr".into(), "0.2".into());
        now.remove("--clip");
        let changes: Vec<String> = record(5).changed_settings(&now).iter().map(ToString::to_string).collect();
        assert_eq!(changes, ["--clip was 1, is now not given", "--lr was 0.1, is now 0.2"]);
    }

    #[test]
    fn an_empty_directory_has_no_state_and_a_broken_file_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        assert!(TrainingState::load(root.path()).unwrap().is_none());
        let shape = TableShape {
            injection: Injection::None,
            weights: WeightChange::None,
            scale: 1.0,
            blocks: 2,
            prefix_len: 2,
            widths: BlockWidths::uniform(2),
            labels: None,
        };
        record(1).save(root.path(), &PromptTables::zeros(shape), &AdamW::new(&shape, 0.0), &Aids::default()).unwrap();
        let path = root.path().join(STATE_FILE);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 4]).unwrap();
        assert!(matches!(TrainingState::load(root.path()), Err(TrainingStateError::Tensors(_))));
        fs::write(
            &path,
            safetensors::serialize(Vec::<(&str, safetensors::tensor::TensorView<'_>)>::new(), None).unwrap(),
        )
        .unwrap();
        assert!(matches!(TrainingState::load(root.path()), Err(TrainingStateError::NoRecord(_))));
    }
}
