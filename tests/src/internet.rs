//! A small internet of network namespaces: hosts around a core that forwards between them, loses packets and is cut as a
//! test wants.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::Context;

use crate::namespace::{Namespace, unavailable};

/// The first two bytes of every address.
const NET: [u8; 2] = [10, 77];
/// Added to a host's number for the net behind its NAT.
const PRIVATE: u8 = 100;

/// What stands between a host and the internet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nothing: everybody can open connections to it.
    Public,
    /// A router that lets in only what answers, address and port, and keeps the port of what goes out. Connections that
    /// both sides open at the same time get through.
    Nat,
    /// As [`Access::Nat`], but every connection goes out from a port drawn for it, which nobody can foresee.
    SymmetricNat,
    /// A router that passes on to the host whatever comes to its own address.
    FullCone,
}

/// Hosts and the core. Everything is gone when it is dropped; drop what runs in it before.
#[derive(Debug)]
pub struct Internet {
    core: Namespace,
    hosts: Vec<Host>,
    faults: Mutex<Faults>,
}

/// A machine. It is removed with its internet.
#[derive(Debug)]
pub struct Host {
    number: u8,
    inside: Namespace,
    /// The router of a host behind one, kept for as long as the host.
    router: Option<Namespace>,
}

/// What the core does besides forwarding.
#[derive(Debug, Default)]
struct Faults {
    /// Percent of the packets lost each way, by host.
    loss: BTreeMap<u8, u8>,
    /// Hosts cut off from those with another number here. All are in part 0 otherwise.
    parts: BTreeMap<u8, u8>,
}

impl Internet {
    /// Hosts with this access, or nothing, with a message on stderr, where network namespaces cannot be made.
    ///
    /// # Errors
    /// If making one goes wrong halfway.
    pub fn new(accesses: &[Access]) -> anyhow::Result<Option<Self>> {
        if let Some(reason) = unavailable() {
            // Past the capture of a test's output: a test that did not run should not look like one that did.
            let _ = writeln!(std::io::stderr(), "skipped: no network namespaces here: {reason}");
            return Ok(None);
        }
        let core = Namespace::new("core")?;
        core.set("ipv4/ip_forward", "1")?;
        core.nft("add table inet faults\nadd chain inet faults forward { type filter hook forward priority 0; }")?;
        let mut internet = Self { core, hosts: Vec::new(), faults: Mutex::default() };
        for (number, access) in (1..PRIVATE).zip(accesses) {
            let host = Host::new(&internet.core, number, *access).with_context(|| format!("host {number}"))?;
            internet.hosts.push(host);
        }
        Ok(Some(internet))
    }

    /// The host of a place in the list of accesses.
    ///
    /// # Panics
    /// If there is none.
    pub fn host(&self, index: usize) -> &Host {
        &self.hosts[index]
    }

    /// Number of hosts.
    pub fn len(&self) -> usize {
        self.hosts.len()
    }

    /// Whether there are no hosts.
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }

    /// Loses this percentage of a host's packets, each way, from now on.
    ///
    /// # Errors
    /// If the rules cannot be set.
    pub fn lose(&self, host: usize, percent: u8) -> anyhow::Result<()> {
        self.change(|faults| faults.loss.insert(self.hosts[host].number, percent.min(100)))
    }

    /// Cuts these hosts off from all others. They still reach each other.
    ///
    /// # Errors
    /// If the rules cannot be set.
    pub fn cut_off(&self, hosts: &[usize]) -> anyhow::Result<()> {
        self.change(|faults| {
            let part = faults.parts.values().max().map_or(1, |last| last + 1);
            faults.parts.extend(hosts.iter().map(|&host| (self.hosts[host].number, part)));
        })
    }

    /// Ends loss and cuts of these hosts.
    ///
    /// # Errors
    /// If the rules cannot be set.
    pub fn heal(&self, hosts: &[usize]) -> anyhow::Result<()> {
        self.change(|faults| {
            for &host in hosts {
                faults.loss.remove(&self.hosts[host].number);
                faults.parts.remove(&self.hosts[host].number);
            }
        })
    }

    /// Bytes of IP packets that went between the core and a host's access so far, both ways together.
    ///
    /// # Errors
    /// If the system does not tell.
    pub fn bytes(&self, host: usize) -> anyhow::Result<u64> {
        let interface = interface(self.hosts[host].number);
        let count = |what: &str| -> anyhow::Result<u64> {
            let text = self.core.read(&format!("/sys/class/net/{interface}/statistics/{what}"))?;
            Ok(text.trim().parse()?)
        };
        Ok(count("rx_bytes")? + count("tx_bytes")?)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Faults) -> T) -> anyhow::Result<()> {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut faults);
        self.core.nft(&faults.rules(&self.hosts)?)
    }
}

impl Faults {
    /// All rules at once, so that no moment is without.
    fn rules(&self, hosts: &[Host]) -> anyhow::Result<String> {
        let mut rules = "flush chain inet faults forward\n".to_owned();
        for (number, percent) in self.loss.iter().filter(|(_, percent)| **percent > 0) {
            for side in ["iifname", "oifname"] {
                let (host, chain) = (interface(*number), "add rule inet faults forward");
                writeln!(rules, "{chain} {side} {host} numgen random mod 100 <= {} drop", percent - 1)?;
            }
        }
        let part = |host: &Host| self.parts.get(&host.number).copied().unwrap_or(0);
        for (number, own) in &self.parts {
            let others = hosts.iter().filter(|host| part(host) != *own).map(|host| interface(host.number));
            let others = others.collect::<Vec<_>>().join(", ");
            if !others.is_empty() {
                let (host, chain) = (interface(*number), "add rule inet faults forward");
                writeln!(rules, "{chain} iifname {host} oifname {{ {others} }} drop")?;
                writeln!(rules, "{chain} oifname {host} iifname {{ {others} }} drop")?;
            }
        }
        Ok(rules)
    }
}

impl Host {
    fn new(core: &Namespace, number: u8, access: Access) -> anyhow::Result<Self> {
        let inside = Namespace::new(&format!("host{number}"))?;
        if access == Access::Public {
            connect(core, &interface(number), &inside, "uplink", number)?;
            return Ok(Self { number, inside, router: None });
        }
        let router = Namespace::new(&format!("nat{number}"))?;
        router.set("ipv4/ip_forward", "1")?;
        connect(core, &interface(number), &router, "wan", number)?;
        connect(&router, "lan", &inside, "uplink", PRIVATE + number)?;
        router.nft(&nat_rules(access, second(PRIVATE + number)))?;
        Ok(Self { number, inside, router: Some(router) })
    }

    /// Its own address.
    pub fn address(&self) -> Ipv4Addr {
        second(if self.router.is_some() { PRIVATE + self.number } else { self.number })
    }

    /// The address that others see: its own, or that of its router.
    pub fn public_address(&self) -> Ipv4Addr {
        second(self.number)
    }

    /// A program that will run on this host.
    pub fn command(&self, program: &Path) -> Command {
        self.inside.command(program)
    }
}

/// An address translator. It does not answer what it does not pass on, as home routers do: a reset would end a
/// connection that both sides open at the same time.
fn nat_rules(access: Access, host: Ipv4Addr) -> String {
    let source = if access == Access::SymmetricNat { "masquerade fully-random" } else { "masquerade" };
    let mut rules = format!(
        "add table ip nat
         add chain ip nat leaving {{ type nat hook postrouting priority srcnat; }}
         add rule ip nat leaving oifname wan {source}
         add table inet guard
         add chain inet guard to_itself {{ type filter hook input priority 0; }}
         add rule inet guard to_itself iifname wan ct state new,invalid drop
         add chain inet guard through {{ type filter hook forward priority 0; }}\n"
    );
    if access == Access::FullCone {
        rules.push_str("add chain ip nat arriving { type nat hook prerouting priority dstnat; }\n");
        let _ = writeln!(rules, "add rule ip nat arriving iifname wan dnat to {host}");
    } else {
        rules.push_str("add rule inet guard through iifname wan ct state new,invalid drop\n");
    }
    rules
}

/// The core's interface towards a host.
fn interface(number: u8) -> String {
    format!("host{number}")
}

fn first(net: u8) -> Ipv4Addr {
    Ipv4Addr::new(NET[0], NET[1], net, 1)
}

fn second(net: u8) -> Ipv4Addr {
    Ipv4Addr::new(NET[0], NET[1], net, 2)
}

/// A cable between two namespaces. The first is the way to everything else for the second.
fn connect(near: &Namespace, near_name: &str, far: &Namespace, far_name: &str, net: u8) -> anyhow::Result<()> {
    near.ip(&["link", "add", near_name, "type", "veth", "peer", "name", far_name, "netns", far.name()])?;
    for (namespace, name, address) in [(near, near_name, first(net)), (far, far_name, second(net))] {
        namespace.ip(&["addr", "add", &format!("{address}/24"), "dev", name])?;
        namespace.ip(&["link", "set", name, "up"])?;
    }
    far.ip(&["route", "add", "default", "via", &first(net).to_string()])
}
