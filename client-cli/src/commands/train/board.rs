//! Event files of TensorBoard: what `--tensorboard` writes.
//!
//! A file is a sequence of records, each a length, its checksum, an `Event` of `tensorboard/compat/proto/event.proto`, and its checksum
//! (`tensorboard/compat/tensorflow_stub/io/tf_record.py`); scalars are `simple_value`s of its `Summary`. The few fields that are needed are
//! encoded by hand.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;

use crate::error::CliError;

/// Name of the folder in a run's directory.
pub(crate) const FOLDER: &str = "tensorboard";
/// What names of event files begin with; the second that they were made in follows.
const PREFIX: &str = "events.out.tfevents.";
/// Fields of an `Event`.
const VERSION: u64 = 3;
const SUMMARY: u64 = 5;
const SESSION: u64 = 7;
/// A `SessionLog` with the status `START`.
const STARTED: [u8; 2] = [0x08, 0x01];
/// Castagnoli's polynomial, reflected.
const POLYNOMIAL: u32 = 0x82F6_3B78;
/// Checksums are turned and moved, as checksums of checksums are weak.
const MASK: u32 = 0xA282_EAD8;

/// An open event file.
#[derive(Debug)]
pub(super) struct Board {
    path: PathBuf,
    file: File,
}

impl Board {
    /// Begins a new file in the folder of the run in `out`, which has made `step` steps. Of what other files there have of later steps,
    /// TensorBoard shows nothing; a new run shows nothing of one before.
    pub(super) fn open(out: &Path, step: u64) -> Result<Self, CliError> {
        let folder = out.join(FOLDER);
        let failed = |error: io::Error| anyhow::Error::new(error).context(format!("cannot write {}", folder.display()));
        fs::create_dir_all(&folder).map_err(failed)?;
        // Files are read in the order of their names, so this one's is behind the others'.
        let mut second = now() as u64;
        for entry in fs::read_dir(&folder).map_err(failed)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let digits = name.strip_prefix(PREFIX).and_then(|rest| rest.split('.').next());
            if let Some(made) = digits.and_then(|digits| digits.parse::<u64>().ok()) {
                second = second.max(made.saturating_add(1));
            }
        }
        let path = folder.join(format!("{PREFIX}{second:010}.petals-tune.{}", std::process::id()));
        let file = OpenOptions::new().write(true).create_new(true).open(&path).map_err(failed)?;
        let mut board = Self { path, file };
        board.write(&event(now(), 0, VERSION, b"brain.Event:2"))?;
        // It takes back that step and all behind it.
        let first = if step == 0 { 0 } else { step + 1 };
        board.write(&event(now(), first, SESSION, &STARTED))?;
        Ok(board)
    }

    /// Adds scalars of a step.
    pub(super) fn add(&mut self, step: u64, scalars: &[(&str, f64)]) -> Result<(), CliError> {
        self.write(&event(now(), step, SUMMARY, &self::scalars(scalars)))
    }

    fn write(&mut self, event: &[u8]) -> Result<(), CliError> {
        let written = self.file.write_all(&record(event));
        Ok(written.with_context(|| format!("cannot write {}", self.path.display()))?)
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// An `Event` with one field beside time and step.
fn event(wall_time: f64, step: u64, field: u64, content: &[u8]) -> Vec<u8> {
    let mut event = Vec::new();
    key(&mut event, 1, 1);
    event.extend(wall_time.to_le_bytes());
    key(&mut event, 2, 0);
    varint(&mut event, step);
    bytes(&mut event, field, content);
    event
}

/// A `Summary` of scalars: a `Value` each with its tag and its `simple_value`.
fn scalars(scalars: &[(&str, f64)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, value) in scalars {
        let mut scalar = Vec::new();
        bytes(&mut scalar, 1, tag.as_bytes());
        key(&mut scalar, 2, 5);
        scalar.extend((*value as f32).to_le_bytes());
        bytes(&mut summary, 1, &scalar);
    }
    summary
}

/// The number and the wire type of a field.
fn key(message: &mut Vec<u8>, field: u64, wire_type: u64) {
    varint(message, field << 3 | wire_type);
}

/// A field that is a text or another message.
fn bytes(message: &mut Vec<u8>, field: u64, content: &[u8]) {
    key(message, field, 2);
    varint(message, content.len() as u64);
    message.extend(content);
}

fn varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

fn record(content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u64).to_le_bytes();
    [&length[..], &masked(&length), content, &masked(content)].concat()
}

fn masked(content: &[u8]) -> [u8; 4] {
    crc32c(content).rotate_right(15).wrapping_add(MASK).to_le_bytes()
}

/// Bit by bit: a step has a few hundred bytes.
fn crc32c(content: &[u8]) -> u32 {
    let of_byte = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (POLYNOMIAL & 0u32.wrapping_sub(crc & 1)))
    };
    !content.iter().fold(!0, of_byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by tensorboard 2.21: `RecordWriter(file).write(event.SerializeToString())` with `Event(wall_time=1.5, step=300,
    /// summary=Summary(value=[Value(tag="train/loss", simple_value=0.25), Value(tag="eval/loss", simple_value=-1.5)]))` and
    /// `Event(wall_time=1.5, step=7, session_log=SessionLog(status=SessionLog.START))`.
    #[test]
    fn records_are_those_of_tensorboard() {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let written = record(&event(1.5, 300, SUMMARY, &scalars(&[("train/loss", 0.25), ("eval/loss", -1.5)])));
        assert_eq!(
            hex(&written),
            concat!(
                "33000000000000000ca7205609000000000000f83f10ac022a250a110a0a747261696e2f6c6f7373150000803e0a100a0965",
                "76616c2f6c6f7373150000c0bfc2ddc21b"
            )
        );
        let started = record(&event(1.5, 7, SESSION, &STARTED));
        assert_eq!(hex(&started), "0f000000000000006d532b0909000000000000f83f10073a020801774771c7");
        assert_eq!(crc32c(b"123456789"), 0xE306_9283, "the check value of CRC-32C");
    }

    #[test]
    fn files_of_resumed_runs_come_behind_the_others() {
        let root = tempfile::tempdir().unwrap();
        let names = || {
            let entries = fs::read_dir(root.path().join(FOLDER)).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        fs::create_dir(root.path().join(FOLDER)).unwrap();
        fs::write(root.path().join(FOLDER).join(format!("{PREFIX}9000000000.host.1")), "").unwrap();
        drop((Board::open(root.path(), 0).unwrap(), Board::open(root.path(), 3).unwrap()));
        let seconds: Vec<String> = names().iter().map(|name| name[PREFIX.len()..][..10].to_owned()).collect();
        assert_eq!(seconds, ["9000000000", "9000000001", "9000000002"]);
    }
}
