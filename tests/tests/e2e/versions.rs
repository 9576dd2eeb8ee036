//! A swarm that is being upgraded: members of two versions work together, and what only the newer one has is asked of the newer ones.

use std::sync::Arc;
use std::time::{Duration, Instant};

use petals_client::{AdamW, PromptTuner, RemoteModel, SequenceConfig, Table, TunerConfig};
use petals_e2e::{Goldens, LocalSwarm, assert_close};
use petals_protocol::WireVersion;

use crate::gradients::{examples, tables};

const FAMILY: &str = "llama-gqa";
const NOW: &[WireVersion] = &WireVersion::SPOKEN;
/// What a member of the version before this one offers.
const LAST: &[WireVersion] = &[WireVersion::PASSES];

#[tokio::test(flavor = "multi_thread")]
async fn members_of_two_versions_train_together_with_torchs_gradients() -> anyhow::Result<()> {
    let goldens = Goldens::load(FAMILY)?;
    let (mode, task) = ("replace", "seq-cls");
    let swarms = [
        ("an older client", LAST, [("0..2", NOW), ("2..4", NOW)]),
        ("an older server, first", NOW, [("0..2", LAST), ("2..4", NOW)]),
        ("an older server, last", NOW, [("0..2", NOW), ("2..4", LAST)]),
        ("older ones alone", LAST, [("0..2", LAST), ("2..4", LAST)]),
    ];
    for (what, client, servers) in swarms {
        let swarm = LocalSwarm::of_versions(&goldens.model(), &servers, client, |config| config).await?;
        let tables = tables(&goldens, &swarm, mode, task)?;
        let (sequence, optimizer) = (swarm.sequence(SequenceConfig::default()), AdamW::new(tables.shape(), 0.0));
        let config = TunerConfig::default();
        let tuner = PromptTuner::new(Arc::new(sequence), swarm.local.clone(), tables, optimizer, config);
        let (gradients, score) = tuner.gradients(&examples(&goldens, task)?).await?;
        let loss = goldens.value(&format!("loss.{mode}.{task}")).as_f64().unwrap_or(f64::NAN);
        assert!((score.loss().unwrap_or(f64::NAN) - loss).abs() <= 1e-4 * loss.abs(), "{what}: {:?}", score.loss());
        let deep = gradients.table(Table::Deep).unwrap_or_default();
        assert_close(what, deep, &goldens.tensor(&format!("grad.{mode}.{task}.Q")), 1e-4);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_older_server_does_not_know_is_asked_of_newer_ones_and_else_refused_by_name() -> anyhow::Result<()> {
    let goldens = Goldens::load(FAMILY)?;
    let text: Vec<u32> = Goldens::input_ids()?.concat().into_iter().take(9).collect();
    let model =
        |swarm: &LocalSwarm| RemoteModel::new(Arc::new(swarm.sequence(SequenceConfig::default())), swarm.local.clone());

    let mixed =
        LocalSwarm::of_versions(&goldens.model(), &[("0..4", LAST), ("0..4", NOW)], NOW, |config| config).await?;
    let prefix = model(&mixed).prefix_of_text(&text).await?;
    assert_eq!(prefix.shape().prefix_len, 9);

    let old = LocalSwarm::of_versions(&goldens.model(), &[("0..4", LAST)], NOW, |config| config).await?;
    let begun = Instant::now();
    let error =
        format!("{:#}", anyhow::Error::new(model(&old).prefix_of_text(&text).await.expect_err("no server knows it")));
    assert!(error.contains("knows what is asked of it: keys and values of a prefix need wire version 4"), "{error}");
    assert!(error.contains("upgrade petals-node there") && begun.elapsed() < Duration::from_secs(30), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_no_version_in_common_is_named_with_what_to_upgrade() -> anyhow::Result<()> {
    let goldens = Goldens::load(FAMILY)?;
    let future: Vec<WireVersion> = WireVersion::of_protocol("/petals-rs/blocks/9").into_iter().collect();
    let swarm = LocalSwarm::of_versions(&goldens.model(), &[("0..4", &future)], NOW, |config| config).await?;
    let config = SequenceConfig { give_up_after: Duration::from_secs(1), ..SequenceConfig::default() };
    let model = RemoteModel::new(Arc::new(swarm.sequence(config)), swarm.local.clone());
    let error =
        format!("{:#}", anyhow::Error::new(model.logits(&[vec![1, 2, 3]]).await.expect_err("nobody understands")));
    assert!(error.contains("speaks wire version 9 and this program 3 and 4: upgrade this program"), "{error}");
    Ok(())
}
