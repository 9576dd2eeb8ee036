//! A swarm in simulated time: servers that come, choose, move, leave and crash, and see each other's records late.
//!
//! The decisions are those of real servers ([`Coverage`]); only the network is left out. Same seed, same result.
//!
//! There may be liars: records of one network that claim the first half of the model at a speed that nobody has, and serve nothing.

use std::net::{IpAddr, Ipv4Addr};

use petals_protocol::Span;

use super::{Claim, Coverage};

/// What is played through. Times are in seconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scenario {
    pub(crate) blocks: u32,
    pub(crate) servers: usize,
    /// Servers come within this time; after as long again, they should have settled.
    pub(crate) arrival: f64,
    /// How long servers then come and go, and their mean lifetime meanwhile. Half of them crash.
    pub(crate) churn: f64,
    pub(crate) lifetime: f64,
    /// Without churn afterwards.
    pub(crate) calm: f64,
    /// Mean time between two looks of a server; 0 if nobody ever moves.
    pub(crate) period: f64,
    /// A record is up to so old when it is read.
    pub(crate) age: f64,
    /// Measured rates are off by up to this part, anew in each record.
    pub(crate) noise: f64,
    /// Records of liars, who are there from the first moment to the last.
    pub(crate) liars: usize,
    pub(crate) seed: u64,
}

/// What came of a part of the time.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Phase {
    /// Moves per server and hour, and those of them that were taken back.
    pub(crate) moves: f64,
    pub(crate) taken_back: f64,
    /// Throughput of the worst-served block over what all servers together could do at best: mean and worst.
    pub(crate) mean_quality: f64,
    pub(crate) worst_quality: f64,
    /// Seconds in which some block had no server.
    pub(crate) uncovered: f64,
}

/// The result of a scenario.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Report {
    /// Seconds until every block had a server for the first time.
    pub(crate) first_cover: f64,
    /// From the first full cover to the end of the settling, under churn, and in the second half of the calm time.
    pub(crate) settling: Phase,
    pub(crate) churn: Phase,
    pub(crate) calm: Phase,
}

/// Time between an announced move and its confirmation, as real servers have it.
const SETTLING: f64 = 15.0;
/// Others remember a crashed server for so long.
const RECORD_LIFE: f64 = 120.0;
/// Seconds to load one block.
const LOAD: f64 = 3.0;
/// Seconds until the passes under way on a span that was left are done.
const DRAIN: f64 = 10.0;

/// A record as others read it.
#[derive(Debug, Clone, Copy)]
struct Seen {
    span: Span,
    moving_to: Option<Span>,
    online: bool,
    rate: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Step {
    Join,
    Loaded,
    Look,
    Confirm(Span),
    Switch(Span),
    Gone,
}

#[derive(Debug)]
struct Server {
    speed: f64,
    count: u32,
    span: Option<Span>,
    online: bool,
    /// What it does next, and when.
    next: (f64, Step),
    leaves: f64,
    /// Its records and when they were written; `None` from when nobody knows it any more.
    records: Vec<(f64, Option<Seen>)>,
}

struct Random(u64);

impl Random {
    /// Uniform in 0..1 (splitmix64).
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Log-uniform.
    fn between(&mut self, least: f64, most: f64) -> f64 {
        least * (most / least).powf(self.next())
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.next()).ln()
    }
}

struct World {
    scenario: Scenario,
    random: Random,
    now: f64,
    servers: Vec<Server>,
    truth: Coverage,
    moves: u32,
    taken_back: u32,
}

/// Plays a scenario through.
pub(crate) fn play(scenario: Scenario) -> Report {
    let random = Random(scenario.seed);
    let truth = Coverage::new(scenario.blocks);
    let mut world = World { scenario, random, now: 0.0, servers: Vec::new(), truth, moves: 0, taken_back: 0 };
    for _ in 0..scenario.servers {
        let at = world.random.next() * scenario.arrival;
        world.arrive(at, f64::INFINITY);
    }
    let mut first_cover = f64::INFINITY;
    world.run(scenario.arrival, false, |now, quality| {
        if quality > 0.0 {
            first_cover = first_cover.min(now);
        }
    });
    let settling = world.phase(scenario.arrival, false);
    let now = world.now;
    for server in 0..world.servers.len() {
        world.servers[server].leaves = now + world.random.exponential(scenario.lifetime);
    }
    let churn = world.phase(scenario.churn, true);
    world.servers.iter_mut().for_each(|server| server.leaves = f64::INFINITY);
    world.run(scenario.calm / 2.0, false, |_, _| ());
    let calm = world.phase(scenario.calm / 2.0, false);
    Report { first_cover, settling, churn, calm }
}

impl World {
    fn arrive(&mut self, at: f64, leaves: f64) {
        // From a laptop to a server with several GPUs.
        let count = self.random.between(2.0, f64::from(self.scenario.blocks.min(48))).round() as u32;
        let speed = self.random.between(200.0, 20_000.0);
        let (span, online, records) = (None, false, Vec::new());
        self.servers.push(Server { speed, count, span, online, next: (at, Step::Join), leaves, records });
    }

    fn phase(&mut self, seconds: f64, churn: bool) -> Phase {
        (self.moves, self.taken_back) = (0, 0);
        let (mut sum, mut worst, mut uncovered) = (0.0, f64::INFINITY, 0.0);
        self.run(seconds, churn, |_, quality| {
            sum += quality;
            worst = worst.min(quality);
            uncovered += f64::from(quality == 0.0);
        });
        let hours = seconds / 3600.0;
        let each = |count: u32| f64::from(count) / hours / self.scenario.servers as f64;
        let mean_quality = sum / seconds;
        let (moves, taken_back) = (each(self.moves), each(self.taken_back));
        Phase { moves, taken_back, mean_quality, worst_quality: worst, uncovered }
    }

    /// Lets time pass, second by second.
    fn run(&mut self, seconds: f64, churn: bool, mut each: impl FnMut(f64, f64)) {
        let end = self.now + seconds;
        while self.now < end {
            self.now += 1.0;
            for number in 0..self.servers.len() {
                let server = &self.servers[number];
                if server.next.1 != Step::Gone && server.leaves <= self.now {
                    self.leave(number);
                    if churn {
                        let leaves = self.now + self.random.exponential(self.scenario.lifetime);
                        self.arrive(self.now, leaves);
                    }
                } else if server.next.0 <= self.now {
                    self.step(number, server.next.1);
                }
            }
            self.servers.retain(|server| server.next.1 != Step::Gone || server.next.0 > self.now);
            each(self.now, self.quality());
        }
    }

    /// The worst-served block beside the bound: no placement serves all blocks better than all servers' speed, spread
    /// evenly over them.
    fn quality(&self) -> f64 {
        let speed: f64 = self.servers.iter().filter(|server| server.online).map(|server| server.speed).sum();
        let bound = speed / f64::from(self.scenario.blocks);
        if bound > 0.0 { self.truth.bottleneck() / bound } else { 0.0 }
    }

    fn step(&mut self, number: usize, step: Step) {
        let Server { speed, count, span, .. } = self.servers[number];
        let rate = speed / f64::from(count);
        let later = |world: &mut Self| world.now + world.scenario.period * (0.5 + world.random.next());
        let idle = |world: &mut Self| {
            if world.scenario.period > 0.0 { (later(world), Step::Look) } else { (f64::INFINITY, Step::Look) }
        };
        let next = match (step, span) {
            (Step::Join, _) => {
                let Some(span) = self.view(number, true).worst_window(count) else { return };
                self.servers[number].span = Some(span);
                self.write(number, None);
                (self.now + LOAD * f64::from(count), Step::Loaded)
            }
            (Step::Loaded, Some(span)) => {
                self.servers[number].online = true;
                self.truth.add(span, rate, true);
                self.write(number, None);
                idle(self)
            }
            (Step::Look, Some(here)) => match self.view(number, true).better(here, rate) {
                Some(there) => {
                    self.write(number, Some(there));
                    (self.now + SETTLING, Step::Confirm(there))
                }
                None => {
                    self.write(number, None);
                    idle(self)
                }
            },
            (Step::Confirm(there), Some(here)) => {
                if self.view(number, false).better(here, rate) == Some(there) {
                    let more = there.len() - there.intersect(here).map_or(0, Span::len);
                    (self.now + LOAD * more as f64, Step::Switch(there))
                } else {
                    self.taken_back += 1;
                    self.write(number, None);
                    idle(self)
                }
            }
            (Step::Switch(there), Some(here)) => {
                if self.view(number, true).may_leave(here, there) {
                    self.truth.remove(here, rate, true);
                    self.truth.add(there, rate, true);
                    self.servers[number].span = Some(there);
                    self.moves += 1;
                } else {
                    self.taken_back += 1;
                }
                self.write(number, None);
                let (at, step) = idle(self);
                (at + DRAIN, step)
            }
            _ => return,
        };
        self.servers[number].next = next;
    }

    fn leave(&mut self, number: usize) {
        let crashes = self.random.next() < 0.5;
        let forgotten = self.now + if crashes { RECORD_LIFE } else { 0.0 };
        let server = &mut self.servers[number];
        if let Some(span) = server.span.filter(|_| server.online) {
            self.truth.remove(span, server.speed / f64::from(server.count), true);
        }
        server.online = false;
        server.records.push((forgotten, None));
        server.next = (forgotten + self.scenario.age, Step::Gone);
    }

    fn write(&mut self, number: usize, moving_to: Option<Span>) {
        let error = 1.0 + self.scenario.noise * (2.0 * self.random.next() - 1.0);
        let server = &mut self.servers[number];
        let Some(span) = server.span else { return };
        let rate = error * server.speed / f64::from(server.count);
        let seen = Seen { span, moving_to, online: server.online, rate };
        // Nobody reads what is older than the record that all have.
        let all_have = self.now - self.scenario.age;
        let old = server.records.partition_point(|(at, _)| *at <= all_have);
        server.records.drain(..old.saturating_sub(1));
        server.records.push((self.now, Some(seen)));
    }

    /// What one server sees of the others. `all_go`: whether all who announced a move count where they go, or only those
    /// that need not wait for this one.
    fn view(&mut self, viewer: usize, all_go: bool) -> Coverage {
        let mut claims = Vec::with_capacity(self.servers.len() + self.scenario.liars);
        let Server { speed, count, online, .. } = self.servers[viewer];
        let own = online.then(|| speed / f64::from(count));
        for (number, server) in self.servers.iter().enumerate() {
            let read = self.now - self.scenario.age * self.random.next();
            let known = server.records.partition_point(|(at, _)| *at <= read);
            let record = known.checked_sub(1).and_then(|last| server.records[last].1);
            let Some(Seen { span, moving_to, online, rate }) = record.filter(|_| number != viewer) else { continue };
            let moving_to = moving_to.filter(|_| all_go || number < viewer);
            // Whoever has the blocks answers rightly when asked.
            let holds = online && moving_to.is_none();
            claims.push(Claim { span: moving_to.unwrap_or(span), rate: Some(rate), holds, network: None });
        }
        let lied = Span::new(0, self.scenario.blocks.div_ceil(2)).ok();
        let network = Some(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 0)));
        let lie = |span| Claim { span, rate: Some(f32::MAX.into()), holds: false, network };
        claims.extend(lied.map(lie).into_iter().cycle().take(self.scenario.liars));
        Coverage::of(self.scenario.blocks, own, &claims)
    }
}
