//! What servers keep of a forward: the gradients do not depend on it, the number of block passes does.

use petals_client::{RelayMode, SequenceConfig, TrafficCount, TunerConfig};
use petals_node::{ExecutorConfig, StashPolicy};

use crate::gradients::check;

const BLOCKS: u64 = 4;

/// Block passes of the golden steps, over servers that keep stashes of a level; the gradients are compared to torch's.
async fn passes(
    spans: &[&str],
    executor: ExecutorConfig,
    micro_batch_tokens: usize,
) -> anyhow::Result<Vec<TrafficCount>> {
    let (micro_batch_tokens, in_flight) = (Some(micro_batch_tokens), Some(3));
    let tuning = TunerConfig { micro_batch_tokens, in_flight, ..TunerConfig::default() };
    // A chain without stashes repeats its forward once to find out what went in, and is then avoided.
    let relay = if executor.stash_policy == StashPolicy::None { RelayMode::Star } else { RelayMode::Chain };
    check("qwen3", spans, executor, SequenceConfig { relay, ..SequenceConfig::default() }, tuning).await
}

fn with(stash_policy: StashPolicy) -> ExecutorConfig {
    ExecutorConfig { stash_policy, ..ExecutorConfig::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_level_gives_torchs_gradients_and_has_its_number_of_block_passes() -> anyhow::Result<()> {
    for (policy, forwards) in
        [(StashPolicy::Auto, 1), (StashPolicy::Full, 1), (StashPolicy::Inputs, 2), (StashPolicy::None, 2)]
    {
        // The three examples at once, and each on its own.
        for (tokens, micro_batches) in [(1024, 1), (1, 3)] {
            for count in passes(&["0..2", "2..4"], with(policy), tokens).await? {
                let counted = (count.block_forwards, count.block_backwards);
                assert_eq!(counted, (forwards * micro_batches * BLOCKS, micro_batches * BLOCKS), "{policy:?}");
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_output_gradients_travels_for_the_backward_of_a_stash() -> anyhow::Result<()> {
    let sent = |counts: Vec<TrafficCount>| counts.iter().map(|count| count.sent).sum::<u64>();
    let full = sent(passes(&["0..4"], with(StashPolicy::Full), 1024).await?);
    let inputs = sent(passes(&["0..4"], with(StashPolicy::Inputs), 1024).await?);
    let none = sent(passes(&["0..4"], with(StashPolicy::None), 1024).await?);
    assert_eq!(full, inputs);
    assert!(none > full * 4 / 3, "{none} beside {full}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_too_small_for_everything_is_used_for_inputs() -> anyhow::Result<()> {
    // Room for one whole stash or two; others are kept as inputs.
    let executor = ExecutorConfig { stash_bytes: 100_000, ..ExecutorConfig::default() };
    let counts = passes(&["0..4"], executor, 1).await?;
    let backwards: u64 = counts.iter().map(|count| count.block_backwards).sum();
    let forwards: u64 = counts.iter().map(|count| count.block_forwards).sum();
    assert_eq!(backwards, 6 * 3 * BLOCKS);
    assert!(forwards > backwards && forwards < 2 * backwards, "{forwards} forwards");
    Ok(())
}
