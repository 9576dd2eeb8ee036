//! Members of the swarm that this node has met, and where they are.

use libp2p::{Multiaddr, PeerId};
use tokio::time::{Duration, Instant};

use crate::member_file::{MOST_ADDRESSES, MOST_MEMBERS, Member, MemberFile, unix_s};

/// The first that are met are written down soon: a client may have little time.
const FIRST_WRITE: Duration = Duration::from_secs(1);
/// Later news can wait.
const WRITE_PERIOD: Duration = Duration::from_secs(60);
/// A time that is younger than this is not worth a write.
const COARSE_S: u64 = 3600;

/// Those who were met, the last one in front.
#[derive(Debug)]
pub(super) struct Members {
    file: Option<MemberFile>,
    met: Vec<Member>,
    /// When the file is to be written, if there is news.
    due: Option<Instant>,
    written: Option<Instant>,
}

impl Members {
    /// With those of the file.
    pub(super) fn load(file: Option<MemberFile>, local: PeerId) -> Self {
        let mut met = file.as_ref().map(|file| file.load(unix_s())).unwrap_or_default();
        met.retain(|member| member.peer != local);
        Self { file, met, due: None, written: None }
    }

    /// All of them.
    pub(super) fn all(&self) -> &[Member] {
        &self.met
    }

    /// A member was met.
    pub(super) fn met(&mut self, peer: PeerId, mut addresses: Vec<Multiaddr>, now: Instant) {
        addresses.truncate(MOST_ADDRESSES);
        if addresses.is_empty() {
            return;
        }
        let member = Member { peer, addresses, met_s: unix_s() };
        let known = self.met.iter().position(|known| known.peer == peer).map(|at| self.met.remove(at));
        let is_news = known.is_none_or(|known| {
            known.addresses != member.addresses || member.met_s.saturating_sub(known.met_s) >= COARSE_S
        });
        self.met.insert(0, member);
        self.met.truncate(MOST_MEMBERS);
        if is_news && self.due.is_none() {
            self.due = Some(self.written.map_or(now + FIRST_WRITE, |written| (written + WRITE_PERIOD).max(now)));
        }
    }

    /// What is to be written where, if it is time.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<(MemberFile, Vec<Member>)> {
        if self.due.is_none_or(|due| due > now) {
            return None;
        }
        self.written = Some(now);
        self.take_news()
    }

    /// The same without regard to the time.
    pub(super) fn take_news(&mut self) -> Option<(MemberFile, Vec<Member>)> {
        self.due.take()?;
        Some((self.file.clone()?, self.met.clone()))
    }
}

/// Writes a file of members. Whoever cannot goes on without.
pub(super) fn write((file, members): (MemberFile, Vec<Member>)) {
    if let Err(error) = file.save(&members) {
        tracing::debug!("cannot keep the members met in {}: {error}", file.path().display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> Multiaddr {
        format!("/ip4/10.0.0.1/tcp/{port}").parse().unwrap()
    }

    #[test]
    fn news_is_written_soon_at_first_and_then_now_and_then() {
        let folder = tempfile::tempdir().unwrap();
        let file = MemberFile::new(folder.path().join("members"), None);
        let (local, peer, mut now) = (PeerId::random(), PeerId::random(), Instant::now());
        let mut members = Members::load(Some(file.clone()), local);
        members.met(peer, vec![address(1)], now);
        assert!(members.take_due(now).is_none());
        now += FIRST_WRITE;
        write(members.take_due(now).unwrap());
        members.met(peer, vec![address(1)], now);
        assert!(members.take_due(now + 2 * WRITE_PERIOD).is_none(), "that is no news");
        members.met(PeerId::random(), vec![address(2)], now);
        members.met(PeerId::random(), Vec::new(), now);
        assert!(members.take_due(now + FIRST_WRITE).is_none());
        write(members.take_due(now + WRITE_PERIOD).unwrap());
        let again = Members::load(Some(file.clone()), local);
        assert_eq!(
            again.all().iter().map(|member| &member.addresses[0]).collect::<Vec<_>>(),
            [&address(2), &address(1)]
        );
        assert_eq!(Members::load(Some(file), peer).all().len(), 1, "not this node itself");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut members = Members::load(None, PeerId::random());
        let now = Instant::now();
        for port in 0..2 * MOST_MEMBERS as u16 {
            members.met(PeerId::random(), (0..9).map(|more| address(port + more)).collect(), now);
        }
        assert_eq!(members.all().len(), MOST_MEMBERS);
        assert!(members.all().iter().all(|member| member.addresses.len() == MOST_ADDRESSES));
        assert_eq!(members.all()[0].addresses[0], address(2 * MOST_MEMBERS as u16 - 1));
    }
}
