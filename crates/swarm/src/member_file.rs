//! Members of a swarm that were met, on disk: who starts again finds the others through them when its bootstrap node is gone.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};

use crate::addresses::{MAX_ADDRESS_LEN, split_peer};
use crate::swarm_key::SwarmKey;

/// What the file begins with.
const HEADER: &str = "petals members 1";
/// Members that are kept.
pub(crate) const MOST_MEMBERS: usize = 64;
/// Addresses of one member that are kept: enough for a few networks and protocols.
pub(crate) const MOST_ADDRESSES: usize = 4;
/// No file is longer, so no more is read of one.
const MAX_LEN: u64 = ((MOST_MEMBERS * MOST_ADDRESSES) * (MAX_ADDRESS_LEN + 80) + 256) as u64;
/// A member that was not met for so long is forgotten.
const LONGEST_ABSENCE: Duration = Duration::from_secs(30 * 24 * 3600);

/// Where members are kept, and of which swarm.
#[derive(Debug, Clone)]
pub struct MemberFile {
    path: PathBuf,
    /// The fingerprint of the swarm's key; members of another swarm are of no use.
    swarm: String,
    /// Other files of that kind, which are read and not written.
    others: Vec<PathBuf>,
}

/// A member that was met.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Member {
    pub(crate) peer: PeerId,
    /// Without the peer id.
    pub(crate) addresses: Vec<Multiaddr>,
    /// Unix time in seconds.
    pub(crate) met_s: u64,
}

/// Why a file is not one of members.
#[derive(Debug, thiserror::Error)]
enum MemberFileError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it does not begin with `{HEADER}`")]
    Header,
    #[error("it is of a swarm with another key")]
    OtherSwarm,
}

impl MemberFile {
    /// A file, which need not exist, of the swarm with this key or without one.
    pub fn new(path: impl Into<PathBuf>, key: Option<&SwarmKey>) -> Self {
        let swarm = key.map_or_else(|| "public".to_owned(), SwarmKey::fingerprint);
        Self { path: path.into(), swarm, others: Vec::new() }
    }

    /// With members of other files of the same swarm key besides.
    #[must_use]
    pub fn reading_too(self, others: Vec<PathBuf>) -> Self {
        Self { others, ..self }
    }

    /// The members in the file, those that were met last in front. A file that cannot be used is as good as none: it is said why, and the
    /// next one takes its place.
    pub(crate) fn load(&self, now_s: u64) -> Vec<Member> {
        let mut members = self.load_one(&self.path, now_s);
        for other in &self.others {
            // Files for other swarm keys lie beside this one.
            let more = self.read(other, now_s).unwrap_or_default();
            let is_new = |member: &Member| members.iter().all(|known: &Member| known.peer != member.peer);
            let more: Vec<Member> = more.into_iter().filter(is_new).collect();
            members.extend(more);
        }
        members.sort_by_key(|member| std::cmp::Reverse(member.met_s));
        members.truncate(MOST_MEMBERS);
        members
    }

    fn load_one(&self, path: &Path, now_s: u64) -> Vec<Member> {
        match self.read(path, now_s) {
            Ok(members) => members,
            Err(MemberFileError::Io(error))
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
            {
                Vec::new()
            }
            Err(error) => {
                tracing::warn!("members kept in {} are not used: {error}", path.display());
                Vec::new()
            }
        }
    }

    /// The addresses of the members in the file, each ending in `/p2p/` and its id.
    pub fn addresses(&self) -> Vec<Multiaddr> {
        self.load(unix_s()).iter().flat_map(Member::full_addresses).collect()
    }

    fn read(&self, path: &Path, now_s: u64) -> Result<Vec<Member>, MemberFileError> {
        let mut bytes = Vec::new();
        File::open(path)?.take(MAX_LEN).read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes);
        let mut lines = text.lines();
        if lines.next() != Some(HEADER) {
            return Err(MemberFileError::Header);
        }
        if lines.next().and_then(|line| line.strip_prefix("swarm ")) != Some(&self.swarm) {
            return Err(MemberFileError::OtherSwarm);
        }
        let mut members: Vec<Member> = Vec::new();
        // A line that somebody cut or that a later version wrote takes nothing from the others.
        for (met_s, peer, address) in lines.filter_map(parse) {
            if now_s.saturating_sub(met_s) > LONGEST_ABSENCE.as_secs() {
                continue;
            }
            let has_room = members.len() < MOST_MEMBERS;
            match members.iter_mut().find(|member| member.peer == peer) {
                Some(member) if member.addresses.len() < MOST_ADDRESSES => member.addresses.push(address),
                Some(_) => {}
                None if has_room => members.push(Member { peer, addresses: vec![address], met_s }),
                None => break,
            }
        }
        Ok(members)
    }

    /// Writes the file anew. Others see the old one or the new one, never a part.
    pub(crate) fn save(&self, members: &[Member]) -> io::Result<()> {
        let mut text = format!("{HEADER}\nswarm {}\n", self.swarm);
        for member in members.iter().take(MOST_MEMBERS) {
            for address in member.full_addresses() {
                text.push_str(&format!("{} {address}\n", member.met_s));
            }
        }
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        // Mode 0600: whom somebody met is nobody else's business.
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(text.as_bytes())?;
        file.persist(&self.path).map_err(|error| error.error)?;
        Ok(())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Member {
    fn full_addresses(&self) -> impl Iterator<Item = Multiaddr> {
        let known = self.addresses.iter().take(MOST_ADDRESSES);
        known.map(|address| address.clone().with(Protocol::P2p(self.peer)))
    }
}

fn parse(line: &str) -> Option<(u64, PeerId, Multiaddr)> {
    let (met_s, address) = line.split_once(' ')?;
    let (peer, address) = split_peer(&address.parse().ok()?).ok()?;
    (address.len() <= MAX_ADDRESS_LEN && !address.is_empty()).then_some(())?;
    Some((met_s.parse().ok()?, peer, address))
}

/// Unix time in seconds.
pub(crate) fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(port: u16, met_s: u64) -> Member {
        let addresses = (0..2).map(|more| format!("/ip4/10.0.0.1/tcp/{}", port + more).parse().unwrap()).collect();
        Member { peer: PeerId::random(), addresses, met_s }
    }

    #[test]
    fn members_are_read_as_they_were_written_and_forgotten_after_a_month() {
        let folder = tempfile::tempdir().unwrap();
        let file = MemberFile::new(folder.path().join("deep/members"), None);
        assert!(file.load(0).is_empty(), "there is none yet");
        let now = LONGEST_ABSENCE.as_secs() + 1000;
        let members = [member(1, now), member(3, 1000), member(5, 999)];
        file.save(&members).unwrap();
        assert_eq!(file.load(now), members[..2]);
        let many: Vec<Member> = (0..2 * MOST_MEMBERS as u16).map(|port| member(port, now)).collect();
        file.save(&many).unwrap();
        assert_eq!(file.load(now), many[..MOST_MEMBERS]);
        assert!(fs::metadata(file.path()).unwrap().len() < MAX_LEN);
    }

    #[test]
    fn other_files_are_read_besides_and_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let (one, two) = (member(1, 10), member(3, 20));
        MemberFile::new(path("one"), None).save(std::slice::from_ref(&one)).unwrap();
        MemberFile::new(path("two"), None).save(&[two.clone(), Member { met_s: 5, ..one.clone() }]).unwrap();
        MemberFile::new(path("private"), Some(&SwarmKey::generate())).save(&[member(5, 30)]).unwrap();
        let others = ["one", "two", "private", "none"].map(path).to_vec();
        let all = MemberFile::new(path("all"), None).reading_too(others);
        assert_eq!(all.load(20), [two, one]);
        assert!(!path("all").exists());
    }

    #[test]
    fn members_of_another_swarm_and_damaged_files_are_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("members");
        let key = SwarmKey::generate();
        MemberFile::new(&path, Some(&key)).save(&[member(1, 5)]).unwrap();
        assert_eq!(MemberFile::new(&path, Some(&key)).load(5).len(), 1);
        assert!(MemberFile::new(&path, None).load(5).is_empty());
        let file = MemberFile::new(&path, None);
        file.save(&[member(1, 5)]).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        for damaged in ["", "\u{0}", "other\n", &text.replace("members 1", "members 2")] {
            fs::write(&path, damaged).unwrap();
            assert!(file.load(5).is_empty(), "{damaged:?}");
        }
        // What is whole is used.
        fs::write(
            &path,
            format!("{}\nx\n9999999999999999999999 /ip4/1.2.3.4/tcp/1\n5 /p2p/x\n", &text[..text.len() - 9]),
        )
        .unwrap();
        assert_eq!(file.load(5).len(), 1);
        fs::write(&path, [0xff; 64]).unwrap();
        assert!(file.load(5).is_empty());
    }
}
