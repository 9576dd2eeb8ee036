//! What befalls a fleet, drawn from a seed.

use std::time::{Duration, Instant};

use crate::fleet::{Fleet, MORTAL};

/// Time between the beginnings of two faults.
const PAUSE: Duration = Duration::from_millis(1500);
/// After a server was killed nothing else happens for so long, so that what it takes to recover from that alone is seen.
const QUIET: Duration = Duration::from_secs(3);
/// Servers that are not all right at the same time, at most.
const IMPAIRED: usize = 3;
const LOSS_PERCENT: u8 = 30;
const LOSS_TIME: Duration = Duration::from_secs(10);

/// One kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// SIGKILL, and a restart under the same identity some seconds later.
    Kill,
    /// SIGSTOP: it keeps its connections and says nothing.
    Stop,
    /// 30 % of its packets are lost each way for 10 s.
    Loss,
    /// Two servers are cut off from everybody else.
    Cut,
    /// The bootstrap node is killed and never comes back.
    NoBootstrap,
}

/// Everything happens once in this order, then at random.
const FIRST: [Kind; 7] = [Kind::Kill, Kind::Stop, Kind::Loss, Kind::Kill, Kind::Cut, Kind::NoBootstrap, Kind::Kill];
const LATER: [Kind; 5] = [Kind::Kill, Kind::Kill, Kind::Stop, Kind::Loss, Kind::Cut];

/// A fault under way.
struct Active {
    kind: Kind,
    servers: Vec<usize>,
    until: Instant,
}

pub(crate) struct Storm {
    dice: Dice,
    active: Vec<Active>,
    next: Instant,
    /// Drawn, but waits for its time.
    due: Option<Kind>,
    /// Kinds so far, in order.
    pub(crate) happened: Vec<Kind>,
    /// When which server was killed while everything else was all right.
    pub(crate) kills: Vec<(Instant, usize)>,
}

impl Storm {
    pub(crate) fn new(seed: u64) -> Self {
        let (active, next) = (Vec::new(), Instant::now() + PAUSE);
        Self { dice: Dice(seed), active, next, due: None, happened: Vec::new(), kills: Vec::new() }
    }

    /// Ends what is over and lets something happen if it is time. To be called often.
    pub(crate) fn tick(&mut self, fleet: &mut Fleet) -> anyhow::Result<()> {
        let now = Instant::now();
        let (over, active) =
            std::mem::take(&mut self.active).into_iter().partition(|fault: &Active| fault.until <= now);
        self.active = active;
        for fault in &over {
            end(fault, fleet)?;
        }
        if now < self.next {
            return Ok(());
        }
        let drawn = self.due.or_else(|| FIRST.get(self.happened.len()).copied());
        let kind = drawn.unwrap_or_else(|| LATER[self.dice.below(LATER.len())]);
        self.due = Some(kind);
        if kind == Kind::Kill && !self.active.is_empty() {
            return Ok(());
        }
        let Some(servers) = self.victims(kind) else { return Ok(()) };
        let seconds = |storm: &mut Self, from: u64, to: u64| {
            Duration::from_millis(from * 1000 + storm.dice.below(((to - from) * 1000) as usize) as u64)
        };
        let lasts = match kind {
            Kind::Loss => LOSS_TIME,
            Kind::Kill => seconds(self, 3, 5),
            Kind::NoBootstrap => Duration::ZERO,
            Kind::Stop | Kind::Cut => seconds(self, 3, 8),
        };
        eprintln!("storm: {kind:?} of servers {servers:?} for {lasts:.1?}");
        begin(kind, &servers, fleet)?;
        let now = Instant::now();
        if kind == Kind::Kill {
            self.kills.extend(servers.iter().map(|&server| (now, server)));
        }
        self.next = now + if kind == Kind::Kill { QUIET } else { PAUSE };
        self.active.push(Active { kind, servers, until: now + lasts });
        self.happened.push(kind);
        self.due = None;
        Ok(())
    }

    /// Ends everything that is under way.
    pub(crate) fn calm(&mut self, fleet: &mut Fleet) -> anyhow::Result<()> {
        std::mem::take(&mut self.active).iter().try_for_each(|fault| end(fault, fleet))
    }

    /// Servers that this may befall now, or nobody: each block keeps a holder that is all right.
    fn victims(&mut self, kind: Kind) -> Option<Vec<usize>> {
        let (among, count) = match kind {
            Kind::NoBootstrap => return Some(Vec::new()),
            Kind::Kill => (MORTAL, 1),
            Kind::Cut => (Fleet::count(), 2),
            Kind::Stop | Kind::Loss => (Fleet::count(), 1),
        };
        let impaired: Vec<usize> = self.active.iter().flat_map(|fault| fault.servers.clone()).collect();
        let first = self.dice.below(among);
        let chosen: Vec<usize> =
            (first..first + among).map(|n| n % among).filter(|n| !impaired.contains(n)).take(count).collect();
        let all = |server: usize| impaired.contains(&server) || chosen.contains(&server);
        let room = impaired.len() + chosen.len() <= IMPAIRED;
        (room && chosen.len() == count && Fleet::is_whole_without(all)).then_some(chosen)
    }
}

fn begin(kind: Kind, servers: &[usize], fleet: &mut Fleet) -> anyhow::Result<()> {
    let hosts: Vec<usize> = servers.iter().copied().map(Fleet::host).collect();
    match kind {
        Kind::Kill => servers.iter().for_each(|&server| fleet.servers[server] = None),
        Kind::Stop => servers.iter().filter_map(|&s| fleet.servers[s].as_ref()).try_for_each(|n| n.signal("STOP"))?,
        Kind::Loss => hosts.iter().try_for_each(|&host| fleet.internet.lose(host, LOSS_PERCENT))?,
        Kind::Cut => fleet.internet.cut_off(&hosts)?,
        Kind::NoBootstrap => fleet.bootstrap = None,
    }
    Ok(())
}

fn end(fault: &Active, fleet: &mut Fleet) -> anyhow::Result<()> {
    let hosts: Vec<usize> = fault.servers.iter().copied().map(Fleet::host).collect();
    match fault.kind {
        Kind::Kill => fault.servers.iter().try_for_each(|&server| fleet.restart(server)),
        Kind::Stop => {
            let nodes = fault.servers.iter().filter_map(|&server| fleet.servers[server].as_ref());
            nodes.into_iter().try_for_each(|node| node.signal("CONT"))
        }
        Kind::Loss | Kind::Cut => fleet.internet.heal(&hosts),
        Kind::NoBootstrap => Ok(()),
    }
}

/// SplitMix64: equal seeds give equal storms as far as time allows.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((bits ^ (bits >> 31)) % end as u64) as usize
    }
}
