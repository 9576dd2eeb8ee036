//! Blocks that nobody may run, and why.

use std::fmt;

use petals_protocol::Span;
use petals_swarm::PeerId;

use super::Exclusion;

/// Exclusions that a message lists.
const LISTED: usize = 8;

/// A server that holds some of the blocks, but may not run them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Excluded {
    /// Who.
    pub peer: PeerId,
    /// Of which blocks.
    pub span: Span,
    /// Why not.
    pub why: Exclusion,
}

/// Nobody may run these blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingBlocks {
    /// Maximal ranges of blocks that nobody holds, or that none of their holders may run.
    pub spans: Vec<Span>,
    /// Servers that hold some of them.
    pub excluded: Vec<Excluded>,
    /// Why servers may be there that are not seen.
    pub note: Option<String>,
}

impl MissingBlocks {
    /// All of `span`, of whose holders nothing is known.
    pub(crate) fn all(span: Span) -> Self {
        Self { spans: vec![span], excluded: Vec::new(), note: None }
    }

    /// `blocks` in ascending order, with why each of their holders may not run them.
    pub(super) fn new<I: Iterator<Item = (PeerId, Exclusion)>>(
        blocks: impl Iterator<Item = u32>,
        excluded: impl Fn(u32) -> I,
    ) -> Self {
        let mut missing = Self { spans: Vec::new(), excluded: Vec::new(), note: None };
        let grown =
            |span: Span, block: u32| (span.end() == block).then(|| Span::new(span.start(), block + 1).ok()).flatten();
        for block in blocks {
            let Ok(one) = Span::new(block, block.saturating_add(1)) else { continue };
            match missing.spans.last_mut().and_then(|last| Some((grown(*last, block)?, last))) {
                Some((longer, last)) => *last = longer,
                None => missing.spans.push(one),
            }
            for (peer, why) in excluded(block) {
                let known = missing.excluded.iter_mut().find(|e| (e.peer, e.why) == (peer, why));
                match known.and_then(|known| Some((grown(known.span, block)?, known))) {
                    Some((longer, known)) => known.span = longer,
                    None => missing.excluded.push(Excluded { peer, span: one, why }),
                }
            }
        }
        missing
    }
}

impl std::error::Error for MissingBlocks {}

impl fmt::Display for MissingBlocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one = |span: &Span| if span.len() == 1 { span.start().to_string() } else { span.to_string() };
        let plural = if self.spans.iter().map(|span| span.len()).sum::<usize>() > 1 { "s" } else { "" };
        let list = self.spans.iter().map(one).collect::<Vec<_>>().join(", ");
        let note = self.note.as_ref().map(|note| format!("; {note}")).unwrap_or_default();
        if self.excluded.is_empty() {
            return write!(f, "no server holds block{plural} {list}{note}");
        }
        write!(f, "no server may run block{plural} {list}: ")?;
        for (number, Excluded { peer, span, why }) in self.excluded.iter().take(LISTED).enumerate() {
            write!(f, "{}{peer} holds {} but {why}", if number == 0 { "" } else { "; " }, one(span))?;
        }
        match self.excluded.len().saturating_sub(LISTED) {
            0 => {}
            more => write!(f, "; and {more} more")?,
        }
        f.write_str(&note)
    }
}
