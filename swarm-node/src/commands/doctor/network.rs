//! What others see of this machine.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use petals_protocol::{ModelId, Span, WireVersion};
use petals_swarm::{ClockOffset, Multiaddr, PeerId, Reachability, SwarmHandle, SwarmNode};
use tokio::time::{Instant, sleep};

use super::answers::Answers;
use super::running::{self, Role};
use crate::args::DoctorArgs;
use crate::commands::events::Check;
use crate::commands::network;
use crate::error::NodeError;

/// Longest wait for a first peer.
const CONNECT: Duration = Duration::from_secs(10);
/// Longest wait for others to try to reach this node, and for a relay.
const PROBES: Duration = Duration::from_secs(25);
/// Records repeat at least this often, so the latest of a swarm is not older.
const RECORD_PERIOD_MS: i64 = 60_000;
/// Clocks that differ by more make records be refused.
const MOST_SKEW_MS: i64 = 60_000;

/// What to do about a clock.
const CLOCK_REMEDY: &str = "set the clock, best by NTP: records whose time is off by more than a minute are refused";

/// Starts a node as `serve` would, and asks others about it.
pub(super) async fn checks(
    args: &DoctorArgs,
    model: Option<(ModelId, Span)>,
    answers: &mut Answers,
) -> Result<(), NodeError> {
    let Role { identity, running, check } = Role::of(args.network.identity.as_deref());
    check.into_iter().for_each(|check| answers.check(check));
    let arguments = if running.is_some() { running::beside(&args.network) } else { args.network.clone() };
    let config = network::config(&arguments, &args.peers)?;
    let has_peers = !config.peers.is_empty();
    let private = config.swarm_key.map(|key| key.fingerprint());
    let (swarm, _streams) = match SwarmNode::start(identity, config).await {
        Ok(started) => started,
        Err(error) => {
            answers.check(Check::fail("listen", error.to_string(), "give another --listen address"));
            return Ok(());
        }
    };
    if running.is_none() {
        answers.check(Check::ok("listen", list(&swarm)));
    }
    if !has_peers {
        let remedy = "give --peers: only others can tell whether they reach this machine";
        answers.check(Check::warn("port", "not tried", remedy));
    } else {
        match swarm.wait_connected(CONNECT).await {
            Ok(()) => {
                let with = private.map_or(String::new(), |key| format!(", with the swarm key {key}"));
                answers.check(Check::ok("peers", format!("{} connected{with}", swarm.connected_peers().len())));
                answers.check(match running {
                    // Others would try the running node's port and meet that one.
                    Some(peer) => running::seen(&swarm, peer, model.clone()).await,
                    None => port(&swarm).await,
                });
                // By now everybody has said what it speaks.
                answers.check(versions(&swarm.wire_versions_of_peers()));
                answers.check(match swarm.clock_offset().await {
                    Some(offset) => compared(offset),
                    // Members of an older version do not tell the time, but their records do.
                    None => match model {
                        Some((model, blocks)) => clock(&swarm, &model, blocks).await,
                        None => Check::warn("clock", "nobody told the time", CLOCK_REMEDY),
                    },
                });
            }
            Err(error) => answers.check(Check::fail("peers", error.to_string(), remedy_for_peers(&error.to_string()))),
        }
    }
    swarm.shutdown().await;
    Ok(())
}

fn list(swarm: &SwarmHandle) -> String {
    let addresses: Vec<_> = swarm.listen_addresses().iter().map(ToString::to_string).collect();
    addresses.join(" ")
}

fn remedy_for_peers(error: &str) -> &'static str {
    if error.contains("swarm key") {
        "use the swarm's own --swarm-key file, or none if the swarm has none"
    } else {
        "see that a node runs there, that its port is open, and that this machine gets out"
    }
}

async fn port(swarm: &SwarmHandle) -> Check {
    const NAME: &str = "port";
    let deadline = Instant::now() + PROBES;
    if !swarm.announced().is_empty() {
        while Instant::now() < deadline && swarm.announced().iter().any(|(_, reached)| reached.is_none()) {
            sleep(Duration::from_millis(200)).await;
        }
        return announced(&swarm.announced());
    }
    let relay = || swarm.external_addresses().into_iter().find(|address| address.to_string().contains("/p2p-circuit"));
    while Instant::now() < deadline {
        match (swarm.reachability(), relay()) {
            (Reachability::Direct, _) => return Check::ok(NAME, "others reach this machine directly"),
            (Reachability::Unreachable, Some(relay)) => {
                let remedy = "nothing has to be done; a forwarded port (--listen and --announce) or UPnP in the router is faster";
                return Check::warn(
                    NAME,
                    format!("behind NAT or a firewall, reachable through the relay {relay}"),
                    remedy,
                );
            }
            _ => sleep(Duration::from_millis(200)).await,
        }
    }
    match swarm.reachability() {
        Reachability::Unreachable => Check::fail(
            NAME,
            "behind NAT or a firewall, and no peer relays",
            "open or forward the port and say so with --announce, or name a relay with --relay-via",
        ),
        _ => Check::warn(
            NAME,
            "no peer tried to reach this machine",
            "ask a peer that runs `serve` or `bootstrap` of this version, or try from another machine",
        ),
    }
}

/// What became of the addresses that are announced.
fn announced(outcomes: &[(Multiaddr, Option<bool>)]) -> Check {
    const NAME: &str = "port";
    const REMEDY: &str = "see that --announce is the address at which the world sees this machine, and that the port is open and forwarded";
    let with = |wanted: Option<bool>| {
        let addresses =
            outcomes.iter().filter(|(_, outcome)| *outcome == wanted).map(|(address, _)| address.to_string());
        addresses.collect::<Vec<_>>().join(" ")
    };
    let (reached, failed, untried) = (with(Some(true)), with(Some(false)), with(None));
    if !failed.is_empty() {
        return Check::fail(NAME, format!("a peer dialled the announced address {failed} in vain"), REMEDY);
    }
    if !untried.is_empty() {
        let remedy = "ask a peer that runs `serve` or `bootstrap` of this version, or try from another machine";
        return Check::warn(NAME, format!("no peer tried the announced address {untried}"), remedy);
    }
    Check::ok(NAME, format!("a peer reached this machine at {reached}"))
}

/// Whether those who serve blocks speak a version that this program speaks too.
fn versions(peers: &[(PeerId, Vec<WireVersion>)]) -> Check {
    const NAME: &str = "versions";
    let ours = &WireVersion::SPOKEN;
    let serving: Vec<_> = peers.iter().filter(|(_, spoken)| !spoken.is_empty()).collect();
    let strange: Vec<_> =
        serving.iter().filter(|(_, spoken)| !spoken.iter().any(|version| ours.contains(version))).collect();
    let speaks = format!("this program speaks wire version {}", WireVersion::list(ours));
    match strange.first() {
        Some((peer, theirs)) => Check::warn(
            NAME,
            format!(
                "{speaks}, and {} of {} peers do not, such as {peer} with {}",
                strange.len(),
                serving.len(),
                WireVersion::list(theirs)
            ),
            "upgrade whichever program is older: members work together if they have a version in common",
        ),
        None => {
            Check::ok(NAME, format!("{speaks}, and so do all of {} connected peers that serve blocks", serving.len()))
        }
    }
}

/// What others' clocks say of this one.
fn compared(offset: ClockOffset) -> Check {
    const NAME: &str = "clock";
    let (seconds, witnesses) = (offset.ahead_ms.unsigned_abs() / 1000, offset.witnesses);
    if offset.is_too_large() {
        let remedy = format!("{CLOCK_REMEDY}; if this one is right, theirs is wrong");
        Check::fail(NAME, format!("this clock is {offset} of the swarm's ({witnesses} asked)"), remedy)
    } else if seconds > 1 {
        Check::warn(NAME, format!("this clock is {offset} of the swarm's ({witnesses} asked)"), CLOCK_REMEDY)
    } else {
        Check::ok(NAME, "agrees with the swarm's")
    }
}

async fn clock(swarm: &SwarmHandle, model: &ModelId, blocks: Span) -> Check {
    const NAME: &str = "clock";
    let latest = match swarm.lookup(model, blocks).await {
        Ok(servers) => servers.into_iter().map(|server| server.info.written_ms).max(),
        Err(error) => return Check::warn(NAME, format!("no records to compare with: {error}"), CLOCK_REMEDY),
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    match latest {
        None => Check::warn(NAME, "no server of this model to compare with", CLOCK_REMEDY),
        Some(latest) => judge(now as i64 - latest as i64),
    }
}

/// How old the latest record of the swarm looks from here, in milliseconds.
fn judge(age_ms: i64) -> Check {
    const NAME: &str = "clock";
    let seconds = |ms: i64| ms as f64 / 1000.0;
    if age_ms < -1000 {
        Check::warn(NAME, format!("this clock is {:.0} s behind a server's", seconds(-age_ms)), CLOCK_REMEDY)
    } else if age_ms > RECORD_PERIOD_MS + MOST_SKEW_MS {
        Check::fail(NAME, format!("this clock is {:.0} s ahead", seconds(age_ms - RECORD_PERIOD_MS)), CLOCK_REMEDY)
    } else {
        Check::ok(NAME, "agrees with the swarm's")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::events::CheckStatus;

    #[test]
    fn clocks_are_compared_with_the_latest_record() {
        assert_eq!(judge(30_000).status, CheckStatus::Ok);
        assert_eq!(judge(-200).status, CheckStatus::Ok);
        assert_eq!(judge(-20_000).status, CheckStatus::Warn);
        assert_eq!(judge(400_000).status, CheckStatus::Fail);
    }

    #[test]
    fn an_announced_address_that_nobody_reaches_fails_the_check() {
        let address = |text: &str| -> Multiaddr { text.parse().unwrap() };
        let (good, bad) = (address("/ip4/8.8.4.4/tcp/1"), address("/ip4/203.0.113.99/tcp/1"));
        assert_eq!(announced(&[(good.clone(), Some(true))]).status, CheckStatus::Ok);
        assert_eq!(announced(&[(good.clone(), None)]).status, CheckStatus::Warn);
        let failed = announced(&[(good, Some(true)), (bad, Some(false))]);
        assert_eq!(failed.status, CheckStatus::Fail);
        assert!(failed.to_string().contains("203.0.113.99"), "{failed}");
    }

    #[test]
    fn peers_of_versions_that_are_not_spoken_here_are_named() {
        let strange: Vec<WireVersion> = WireVersion::of_protocol("/petals-rs/blocks/9").into_iter().collect();
        let peers = [(PeerId::random(), WireVersion::SPOKEN.to_vec()), (PeerId::random(), Vec::new())];
        let check = versions(&peers);
        assert!(check.status == CheckStatus::Ok && check.to_string().contains("all of 1"), "{check}");
        let check = versions(&[peers[0].clone(), (PeerId::random(), strange)]);
        assert!(check.status == CheckStatus::Warn && check.to_string().contains("1 of 2 peers do not"), "{check}");
        assert!(check.to_string().contains("with 9"), "{check}");
    }

    #[test]
    fn a_clock_is_compared_with_those_of_members() {
        let status = |ahead_ms| compared(ClockOffset { ahead_ms, witnesses: 2 }).status;
        assert_eq!(status(300), CheckStatus::Ok);
        assert_eq!(status(-20_000), CheckStatus::Warn);
        assert_eq!(status(180_000), CheckStatus::Fail);
        assert!(compared(ClockOffset { ahead_ms: -180_000, witnesses: 2 }).to_string().contains("180 s behind"));
    }
}
