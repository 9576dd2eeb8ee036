//! Prompts that the requests of a stream share.

use petals_protocol::{PassLayout, PromptsId, Refusal, Span};

use crate::executor::Prompts;
use crate::machine::budget::PeerBudget;

/// What one stream has kept: prompts under one name, for one or several spans.
#[derive(Debug)]
pub(crate) struct PromptCache {
    memory: PeerBudget,
    id: Option<PromptsId>,
    kept: Vec<(Span, u32, Prompts)>,
}

impl PromptCache {
    /// An empty cache that takes its memory from `memory`.
    pub(crate) fn new(memory: PeerBudget) -> Self {
        Self { memory, id: None, kept: Vec::new() }
    }

    /// Keeps the prompts that came with a request, if there is memory for them; those of other names are dropped.
    pub(crate) fn keep(&mut self, id: PromptsId, layout: &PassLayout, values: Vec<f32>) -> Prompts {
        if self.id != Some(id) {
            self.kept.clear();
            self.id = Some(id);
        }
        self.kept.retain(|(span, prefix_len, _)| (*span, *prefix_len) != (layout.span, layout.prefix_len));
        let Ok(memory) = self.memory.try_reserve(4 * values.len() as u64, 0) else { return Prompts::new(values) };
        let prompts = Prompts::kept(values, memory);
        self.kept.push((layout.span, layout.prefix_len, prompts.clone()));
        prompts
    }

    /// The prompts kept under a name for the layout's span.
    pub(crate) fn get(&self, id: PromptsId, layout: &PassLayout) -> Result<Prompts, Refusal> {
        let fits =
            |(span, prefix_len, _): &&(Span, u32, Prompts)| (*span, *prefix_len) == (layout.span, layout.prefix_len);
        let found = self.kept.iter().find(fits).filter(|_| self.id == Some(id));
        found.map(|(.., prompts)| prompts.clone()).ok_or(Refusal::PromptsGone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::budget::Budget;
    use petals_protocol::Injection;
    use petals_swarm::PeerId;

    fn layout(start: u32) -> PassLayout {
        let span = Span::new(start, 4).unwrap();
        PassLayout { span, lengths: vec![1], prefix_len: 2, injection: Injection::Add, read_rows: None }
    }

    #[test]
    fn prompts_are_found_under_their_name_and_span_until_another_name_comes() {
        let mut cache = PromptCache::new(Budget::new(1 << 20).of(PeerId::random()));
        assert_eq!(cache.get(PromptsId(1), &layout(0)).unwrap_err(), Refusal::PromptsGone);
        cache.keep(PromptsId(1), &layout(0), vec![1.0]);
        cache.keep(PromptsId(1), &layout(1), vec![2.0]);
        let get = |cache: &PromptCache, id, start| cache.get(PromptsId(id), &layout(start)).map(Prompts::into_values);
        assert_eq!((get(&cache, 1, 0), get(&cache, 1, 1)), (Ok(vec![1.0]), Ok(vec![2.0])));
        let longer = PassLayout { prefix_len: 3, ..layout(0) };
        assert_eq!(cache.get(PromptsId(1), &longer).unwrap_err(), Refusal::PromptsGone);
        cache.keep(PromptsId(2), &layout(0), vec![3.0]);
        assert_eq!(get(&cache, 2, 0), Ok(vec![3.0]));
        assert_eq!((get(&cache, 1, 1), get(&cache, 2, 1)), (Err(Refusal::PromptsGone), Err(Refusal::PromptsGone)));
    }

    #[test]
    fn kept_prompts_take_memory_until_nobody_needs_them() {
        let budget = Budget::new(16 << 10);
        let peer = PeerId::random();
        let (mut cache, share) = (PromptCache::new(budget.of(peer)), budget.of(peer));
        let kept = cache.keep(PromptsId(1), &layout(0), vec![1.0; 1024]);
        assert!(share.try_reserve(4 << 10, 0).is_err(), "the share is used up");
        // A request that waits still has the old ones: nothing more fits, so the new ones are for their request alone.
        assert_eq!(cache.keep(PromptsId(2), &layout(0), vec![2.0; 1024]).into_values(), vec![2.0; 1024]);
        assert_eq!(cache.get(PromptsId(2), &layout(0)).unwrap_err(), Refusal::PromptsGone);
        assert_eq!(kept.into_values(), vec![1.0; 1024]);
        assert!(share.try_reserve(4 << 10, 0).is_ok());
    }
}
