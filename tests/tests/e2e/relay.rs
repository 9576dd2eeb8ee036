//! Chains: servers that pass micro-batches on to each other.

use std::sync::Arc;
use std::time::Duration;

use petals_client::{
    AdaptedModel, Adapter, PassGradients, PassInput, PromptTables, RelayMode, RemoteSequence, SequenceConfig,
    TrafficCount,
};
use petals_e2e::{Goldens, LocalSwarm, Node, ProcessSwarm, assert_close};
use petals_model::{Checkpoint, ClientModel, Dtype};
use petals_node::ExecutorConfig;
use petals_swarm::{Identity, SwarmConfig, SwarmHandle, SwarmNode};

const LENGTHS: [u32; 3] = [9, 9, 9];
const READ: [u32; 2] = [4, 20];

fn tables(goldens: &Goldens, mode: &str) -> anyhow::Result<PromptTables> {
    let checkpoint = Checkpoint::open(goldens.model())?;
    let model = AdaptedModel::new(checkpoint.model_id(Some("golden"))?, String::new(), checkpoint.config());
    Ok(Adapter::load(&goldens.path(&format!("init-{mode}")), &model)?.tables)
}

fn input(local: &ClientModel, tables: PromptTables) -> anyhow::Result<PassInput> {
    Ok(PassInput {
        lengths: LENGTHS.to_vec(),
        text: local.embed(&Goldens::input_ids()?.concat())?,
        read_rows: Some(READ.to_vec()),
        tables: Some(Arc::new(tables)),
    })
}

fn by_block(gradients: &PassGradients) -> Vec<f32> {
    let mut prompts = gradients.tables.clone();
    prompts.sort_by_key(|(span, _)| *span);
    prompts.into_iter().flat_map(|(_, values)| values).collect()
}

fn assert_same(what: &str, got: &PassGradients, expected: &PassGradients) {
    assert_close(&format!("{what}: prompts"), &by_block(got), &by_block(expected), 1e-5);
    let prefix = |gradients: &PassGradients| gradients.prefix.clone().unwrap_or_default();
    assert_close(&format!("{what}: prefix"), &prefix(got), &prefix(expected), 1e-5);
}

/// A pass forward and backward over `spans`, and what crossed the client's link in each direction of it.
async fn traffic(
    goldens: &Goldens,
    mode: &str,
    spans: &[&str],
    relay: RelayMode,
) -> anyhow::Result<(TrafficCount, TrafficCount, PassGradients)> {
    let swarm = LocalSwarm::start(&goldens.model(), spans, ExecutorConfig::default()).await?;
    let sequence = swarm.sequence(SequenceConfig { relay, ..SequenceConfig::default() });
    let input = input(&swarm.local, tables(goldens, mode)?)?;
    let grad = vec![0.01; READ.len() * swarm.hidden];
    // The greetings are over after a first pass.
    let (_, trace) = sequence.forward(input.clone(), true).await?;
    assert_eq!(trace.hops().count(), spans.len());
    sequence.backward(trace, grad.clone()).await?;
    let start = sequence.traffic();
    let (_, trace) = sequence.forward(input, true).await?;
    let middle = sequence.traffic();
    let gradients = sequence.backward(trace, grad).await?;
    Ok((middle.since(&start), sequence.traffic().since(&middle), gradients))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clients_link_carries_a_micro_batch_once_however_many_hops() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    for mode in ["ptune", "replace", "add"] {
        let one = traffic(&goldens, mode, &["0..4"], RelayMode::Chain).await?;
        let three = traffic(&goldens, mode, &["0..1", "1..3", "3..4"], RelayMode::Chain).await?;
        let star = traffic(&goldens, mode, &["0..1", "1..3", "3..4"], RelayMode::Star).await?;
        assert_same(&format!("{mode}, chain"), &three.2, &one.2);
        assert_same(&format!("{mode}, star"), &star.2, &one.2);
        // Two more frames each way, with their layouts and tokens; all prompts and their gradients travel in any case.
        let headers = 2 * 512;
        for (direction, one, three) in [("forward", one.0, three.0), ("backward", one.1, three.1)] {
            assert_eq!((one.requests, three.requests), (1, 3), "{mode}, {direction}");
            for (sent, of_one, of_three) in [("sent", one.sent, three.sent), ("received", one.received, three.received)]
            {
                let extra = of_three.saturating_sub(of_one);
                assert!(extra < headers, "{mode}, {direction}: {of_three} bytes {sent} for {of_one}");
            }
        }
        assert!(star.0.sent > three.0.sent + 2 * 27 * 64, "the star sends the text to each");
    }
    Ok(())
}

/// Servers that are processes, which can be killed, and a client in this one.
struct Killable {
    swarm: ProcessSwarm,
    sequence: Arc<RemoteSequence>,
    _client: SwarmHandle,
    input: PassInput,
    grad: Vec<f32>,
}

impl Killable {
    async fn start(goldens: &Goldens, spans: &[&str]) -> anyhow::Result<Self> {
        let swarm = ProcessSwarm::start(&goldens.model(), spans)?;
        let checkpoint = Checkpoint::open(goldens.model())?;
        let local = checkpoint.load_client(Dtype::F32)?;
        let config = SwarmConfig { peers: vec![swarm.bootstrap.address.parse()?], ..SwarmConfig::client() };
        let (client, _) = SwarmNode::start(Identity::generate(), config).await?;
        client.wait_connected(Duration::from_secs(10)).await?;
        let hidden = checkpoint.config().hidden_size;
        let (id, blocks) = (checkpoint.model_id(None)?, checkpoint.blocks());
        let sequence = RemoteSequence::new(client.clone(), id, blocks, hidden, SequenceConfig::default());
        let input = input(&local, tables(goldens, "add")?)?;
        let grad = vec![0.01; READ.len() * hidden];
        Ok(Self { swarm, sequence: Arc::new(sequence), _client: client, input, grad })
    }

    /// Lets the middle server stop answering while `work` runs, kills it, and only then starts another one.
    async fn kill_middle<T: Send + 'static>(
        &mut self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> anyhow::Result<(T, Node)> {
        self.swarm.servers[1].signal("STOP")?;
        let work = tokio::spawn(work);
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!work.is_finished(), "the middle server stands still");
        self.swarm.servers[1].kill()?;
        let spare = self.swarm.spawn_server(&["--blocks", "1..3"])?;
        spare.event("ready")?;
        Ok((tokio::time::timeout(Duration::from_secs(120), work).await??, spare))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_middle_server_killed_in_the_forward_changes_nothing() -> anyhow::Result<()> {
    let goldens = Goldens::load("qwen3")?;
    let mut swarm = Killable::start(&goldens, &["0..1", "1..3", "3..4"]).await?;
    let (sequence, input, grad) = (swarm.sequence.clone(), swarm.input.clone(), swarm.grad.clone());
    let (expected, trace) = sequence.forward(input.clone(), true).await?;
    let gradients = sequence.backward(trace, grad.clone()).await?;
    let again = sequence.clone();
    let (outcome, _spare) = swarm.kill_middle(async move { again.forward(input, true).await }).await?;
    let (output, trace) = outcome?;
    assert_close("output", &output, &expected, 1e-5);
    assert_same("gradients", &sequence.backward(trace, grad).await?, &gradients);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_middle_server_killed_in_the_backward_changes_nothing() -> anyhow::Result<()> {
    let goldens = Goldens::load("qwen3")?;
    let mut swarm = Killable::start(&goldens, &["0..1", "1..3", "3..4"]).await?;
    let (sequence, input, grad) = (swarm.sequence.clone(), swarm.input.clone(), swarm.grad.clone());
    let (_, trace) = sequence.forward(input.clone(), true).await?;
    let expected = sequence.backward(trace, grad.clone()).await?;
    let (_, trace) = sequence.forward(input, true).await?;
    assert_eq!(trace.hops().count(), 3);
    let (outcome, _spare) = swarm.kill_middle(async move { sequence.backward(trace, grad).await }).await?;
    assert_same("gradients", &outcome?, &expected);
    Ok(())
}
