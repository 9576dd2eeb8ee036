//! What a client remembers of servers from one run to the next: who gave wrong results, so that a liar is not met anew each time, and for some hours who was late and who was on
//! time.
//!
//! It is a short text, a line for each server, which people can read, change and delete. Ids are free, so it keeps no liar from coming back under
//! another one; but that one has to earn its place again, and those that stay are known.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use petals_swarm::PeerId;

use crate::adapter::atomic_file::write_atomically;

/// What the file begins with.
const HEADER: &str = "petals reputation 1";
/// Servers that are kept; of more the oldest are forgotten, first those that only strangers accused.
const MOST: usize = 1024;
/// No line is longer, so no more is read of a file.
const LONGEST_LINE: usize = 160;
/// A server that was found out so long ago is given another chance: it may be in other hands, or mended.
const MEMORY: Duration = Duration::from_secs(30 * 24 * 3600);
/// How quick somebody was says something for so long.
const MEMORY_OF_TIMES: Duration = Duration::from_secs(12 * 3600);

/// What is held against a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Charge {
    /// It contradicted itself or a trusted peer.
    Untrue,
    /// Strangers outvoted it: it is passed over until then, in seconds of Unix time, and how often that was so.
    Suspended { until_s: u64, times: u32 },
    /// It took so many milliseconds more than it accounted for.
    Late { ms: u64 },
    /// Nothing: it was on time.
    OnTime,
}

impl Charge {
    /// The heavier one outlasts the others.
    fn weight(self) -> u8 {
        match self {
            Self::Untrue => 2,
            Self::Suspended { .. } => 1,
            Self::Late { .. } | Self::OnTime => 0,
        }
    }

    fn memory(self) -> Duration {
        match self {
            Self::Untrue | Self::Suspended { .. } => MEMORY,
            Self::Late { .. } | Self::OnTime => MEMORY_OF_TIMES,
        }
    }
}

/// A server with a past.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) peer: PeerId,
    pub(crate) charge: Charge,
    /// When it was last found out, in seconds of Unix time.
    pub(crate) at_s: u64,
}

/// Where it is remembered.
#[derive(Debug)]
pub(crate) struct Reputation(PathBuf);

impl Reputation {
    /// In a file, which need not exist.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// Everybody with a past that still counts. A file that is damaged is set aside, and what can be read of it is used.
    pub(crate) fn load(&self, now_s: u64) -> Vec<Entry> {
        let (entries, is_whole) = match read(&self.0) {
            Ok(text) => parse(&text),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Vec::new();
            }
            Err(error) => {
                tracing::warn!("what is remembered of servers in {} cannot be read: {error}", self.0.display());
                return Vec::new();
            }
        };
        if !is_whole {
            self.set_aside(entries.len());
        }
        bounded(entries, now_s)
    }

    /// Remembers more, beside what other clients of this user have written meanwhile.
    pub(crate) fn add(&self, new: &[Entry], now_s: u64) {
        let mut entries = self.load(now_s);
        for &entry in new {
            match entries.iter_mut().find(|known| known.peer == entry.peer) {
                Some(known) => *known = worse(*known, entry),
                None => entries.push(entry),
            }
        }
        let lines: String = bounded(entries, now_s).iter().map(line).collect();
        if let Err(error) = write_atomically(&self.0, format!("{HEADER}\n{lines}").as_bytes()) {
            // The run goes on as if it had none.
            tracing::warn!("what servers did is not remembered for the next run: {error}");
        }
    }

    fn set_aside(&self, readable: usize) {
        let mut name = self.0.clone().into_os_string();
        name.push(".damaged");
        let aside = PathBuf::from(name);
        let (path, aside_shown) = (self.0.display(), aside.display());
        match fs::rename(&self.0, &aside) {
            Ok(()) => tracing::warn!(
                "{path} is damaged: it is {aside_shown} now, and {readable} servers in it are remembered"
            ),
            Err(error) => tracing::warn!("{path} is damaged, and cannot be set aside: {error}"),
        }
    }
}

/// Unix time in seconds.
pub(crate) fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn read(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    // Twice as many as are written, for who adds some by hand.
    File::open(path)?.take((2 * MOST * LONGEST_LINE) as u64).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The entries, and whether that is all that there is.
fn parse(text: &str) -> (Vec<Entry>, bool) {
    let mut lines = text.lines();
    if lines.next() != Some(HEADER) {
        return (Vec::new(), false);
    }
    let (mut entries, mut is_whole) = (Vec::new(), text.ends_with('\n'));
    for line in lines.filter(|line| !line.trim().is_empty()) {
        match entry(line) {
            Some(entry) => entries.push(entry),
            None => is_whole = false,
        }
    }
    (entries, is_whole)
}

fn entry(line: &str) -> Option<Entry> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        ["untrue", at, peer] => {
            Some(Entry { peer: peer.parse().ok()?, charge: Charge::Untrue, at_s: at.parse().ok()? })
        }
        ["suspended", at, until, times, peer] => {
            let charge = Charge::Suspended { until_s: until.parse().ok()?, times: times.parse().ok()? };
            Some(Entry { peer: peer.parse().ok()?, charge, at_s: at.parse().ok()? })
        }
        ["late", at, ms, peer] => Some(Entry {
            peer: peer.parse().ok()?,
            charge: Charge::Late { ms: ms.parse().ok()? },
            at_s: at.parse().ok()?,
        }),
        ["on-time", at, peer] => {
            Some(Entry { peer: peer.parse().ok()?, charge: Charge::OnTime, at_s: at.parse().ok()? })
        }
        _ => None,
    }
}

fn line(entry: &Entry) -> String {
    let Entry { peer, charge, at_s } = entry;
    match charge {
        Charge::Untrue => format!("untrue {at_s} {peer}\n"),
        Charge::Suspended { until_s, times } => format!("suspended {at_s} {until_s} {times} {peer}\n"),
        Charge::Late { ms } => format!("late {at_s} {ms} {peer}\n"),
        Charge::OnTime => format!("on-time {at_s} {peer}\n"),
    }
}

/// Of what is known and what is new the heavier one, and the later one of two alike.
fn worse(known: Entry, new: Entry) -> Entry {
    let weight = |entry: &Entry| (entry.charge.weight(), entry.at_s);
    if weight(&new) >= weight(&known) { new } else { known }
}

/// Those that still count, the latest ones.
fn bounded(mut entries: Vec<Entry>, now_s: u64) -> Vec<Entry> {
    entries.retain(|entry| now_s.saturating_sub(entry.at_s) <= entry.charge.memory().as_secs());
    entries.sort_by_key(|entry| std::cmp::Reverse((entry.charge.weight(), entry.at_s)));
    entries.truncate(MOST);
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn untrue(at_s: u64) -> Entry {
        Entry { peer: PeerId::random(), charge: Charge::Untrue, at_s }
    }

    fn suspended(at_s: u64) -> Entry {
        let charge = Charge::Suspended { until_s: at_s + 600, times: 1 };
        Entry { peer: PeerId::random(), charge, at_s }
    }

    #[test]
    fn what_was_found_out_is_there_the_next_time_and_forgotten_after_a_month() {
        let folder = tempfile::tempdir().unwrap();
        let reputation = Reputation::new(folder.path().join("deep/reputation"));
        assert!(reputation.load(NOW).is_empty());
        let (liar, accused) = (untrue(NOW), suspended(NOW + 1));
        reputation.add(&[liar], NOW);
        Reputation::new(folder.path().join("deep/reputation")).add(&[accused], NOW + 1);
        assert_eq!(reputation.load(NOW + 1), [liar, accused]);
        // What strangers say takes nothing from what is certain.
        reputation.add(&[Entry { peer: liar.peer, ..suspended(NOW + 2) }], NOW + 2);
        reputation.add(&[Entry { peer: accused.peer, ..untrue(NOW + 3) }], NOW + 3);
        let charges: Vec<Charge> = reputation.load(NOW + 3).iter().map(|entry| entry.charge).collect();
        assert_eq!(charges, [Charge::Untrue; 2]);
        assert!(reputation.load(NOW + 4 + MEMORY.as_secs()).is_empty());
    }

    #[test]
    fn it_is_bounded_and_liars_outlast_the_accused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("reputation");
        let old = untrue(NOW - 1000);
        let lines: String = (0..2 * MOST as u64).map(|n| line(&suspended(NOW + n))).collect();
        fs::write(&path, format!("{HEADER}\n{}{lines}", line(&old))).unwrap();
        let reputation = Reputation::new(path.clone());
        reputation.add(&[untrue(NOW)], NOW);
        let kept = reputation.load(NOW);
        assert_eq!((kept.len(), kept[1]), (MOST, old));
        assert!(fs::metadata(path).unwrap().len() < (MOST * LONGEST_LINE) as u64);
    }

    #[test]
    fn a_damaged_file_is_set_aside_and_what_is_whole_is_used() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("reputation");
        let aside = folder.path().join("reputation.damaged");
        let liar = untrue(NOW);
        let whole = format!("{HEADER}\n{}", line(&liar));
        let cut = format!("{whole}untrue 18");
        let strange = format!("{whole}banned 5 x\n");
        for (damaged, left) in [("", 0), ("other\n", 0), (cut.as_str(), 1), (strange.as_str(), 1), ("\u{0}\u{0}", 0)] {
            fs::write(&path, damaged).unwrap();
            let reputation = Reputation::new(path.clone());
            assert_eq!(reputation.load(NOW).len(), left, "{damaged:?}");
            assert!(!path.exists() && fs::read_to_string(&aside).unwrap() == damaged, "{damaged:?}");
            // And the next one is written as if nothing had been.
            reputation.add(&[liar], NOW);
            assert_eq!(reputation.load(NOW), [liar]);
            assert!(path.exists());
        }
        // A place that cannot be written costs a warning.
        Reputation::new(path.join("below a file")).add(&[liar], NOW);
    }
    #[test]
    fn times_are_remembered_for_hours_and_take_nothing_from_what_is_worse() {
        let folder = tempfile::tempdir().unwrap();
        let reputation = Reputation::new(folder.path().join("reputation"));
        let of = |charge, at_s| Entry { peer: PeerId::random(), charge, at_s };
        let (liar, late, quick) = (untrue(NOW), of(Charge::Late { ms: 900 }, NOW), of(Charge::OnTime, NOW));
        reputation.add(&[liar, late, quick], NOW);
        // The last word counts, but for who gave wrong results.
        let news = [liar, late].map(|entry| Entry { charge: Charge::OnTime, at_s: NOW + 1, ..entry });
        reputation.add(&news, NOW + 1);
        assert_eq!(reputation.load(NOW + 1), [liar, news[1], quick]);
        assert_eq!(reputation.load(NOW + 2 + MEMORY_OF_TIMES.as_secs()), [liar]);
    }
}
