//! Long passes on processors, on threads of their own that give way to others.
//!
//! A block of a long pass may take a second on processors, so that it is not enough to let others go between its blocks. The operating system can interrupt it at any
//! moment: as soon as something goes beside a long pass, the pass's threads get the lowest priority. That cannot be taken back without privileges, so as long as nobody else
//! is there passes run on threads with the usual one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::lock::lock;

/// For so long after something went beside a pass the next ones begin at the lowest priority.
const CONTENDED: Duration = Duration::from_secs(1);

/// Two sets of threads, as soon as they are needed: at the usual priority and at the lowest one.
#[derive(Debug, Default)]
pub(super) struct Background {
    usual: Option<Threads>,
    low: Option<Threads>,
    /// Whether the pass that was begun last is on the latter.
    is_low: bool,
    /// When something went beside a pass.
    contended: Option<Instant>,
}

#[derive(Debug)]
struct Threads {
    pool: ThreadPool,
    priority: Arc<Priority>,
}

/// The threads of a pool as the operating system knows them, and whether they are at the lowest priority.
#[derive(Debug, Default)]
struct Priority {
    is_low: AtomicBool,
    threads: Mutex<Vec<Thread>>,
}

impl Background {
    /// Runs `job`; gives it back if there are no threads.
    pub(super) fn begin<J: FnOnce() + Send + 'static>(&mut self, job: J) -> Result<(), J> {
        let contended = self.contended.is_some_and(|at| at.elapsed() < CONTENDED);
        self.is_low = contended && self.low.is_some();
        let threads = if self.is_low { &mut self.low } else { &mut self.usual };
        if threads.is_none() {
            *threads = Threads::new();
        }
        match threads {
            Some(threads) => {
                threads.pool.spawn(job);
                Ok(())
            }
            None => Err(job),
        }
    }

    /// Has the pass that was begun last give way to what other threads compute.
    pub(super) fn give_way(&mut self) {
        self.contended = Some(Instant::now());
        if !self.is_low
            && let Some(threads) = self.usual.take()
        {
            threads.priority.lower();
            (self.low, self.is_low) = (Some(threads), true);
        }
    }
}

impl Threads {
    /// As many as there usually are.
    fn new() -> Option<Self> {
        let priority = Arc::new(Priority::default());
        let of_threads = priority.clone();
        let pool = ThreadPoolBuilder::new()
            .thread_name(|number| format!("petals-long-{number}"))
            .num_threads(rayon::current_num_threads())
            .start_handler(move |_| of_threads.add());
        match pool.build() {
            Ok(pool) => Some(Self { pool, priority }),
            Err(error) => {
                tracing::warn!(%error, "no threads for long passes: others will wait for them");
                None
            }
        }
    }
}

impl Priority {
    /// The thread that calls this is one of them.
    fn add(&self) {
        let mut threads = lock(&self.threads);
        if self.is_low.load(Ordering::Relaxed) {
            this_thread().lower();
        }
        threads.push(this_thread());
    }

    fn lower(&self) {
        let threads = lock(&self.threads);
        self.is_low.store(true, Ordering::Relaxed);
        threads.iter().for_each(Thread::lower);
    }
}

/// A thread of this process.
#[cfg(target_os = "linux")]
#[derive(Debug)]
struct Thread(rustix::thread::Pid);

#[cfg(target_os = "linux")]
fn this_thread() -> Thread {
    Thread(rustix::thread::gettid())
}

#[cfg(target_os = "linux")]
impl Thread {
    /// To Linux a thread's id is as good as a process's here. Without success it goes on as before, and others have half of the time instead of nearly all.
    fn lower(&self) {
        /// What `nice` gives at most.
        const LOWEST: i32 = 19;
        if let Err(error) = rustix::process::setpriority_process(Some(self.0), LOWEST) {
            tracing::debug!(%error, "a thread keeps its priority");
        }
    }
}

/// Where threads' priorities are not known: others have half of the time.
#[cfg(not(target_os = "linux"))]
#[derive(Debug)]
struct Thread;

#[cfg(not(target_os = "linux"))]
fn this_thread() -> Thread {
    Thread
}

#[cfg(not(target_os = "linux"))]
impl Thread {
    fn lower(&self) {}
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// The name of the thread on which a job runs, and its priority.
    #[cfg(target_os = "linux")]
    fn ran(background: &mut Background) -> (String, i32) {
        let (sender, receiver) = mpsc::channel();
        let job = move || {
            let name = std::thread::current().name().unwrap_or_default().to_owned();
            let priority = rustix::process::getpriority_process(Some(rustix::thread::gettid())).unwrap();
            sender.send((name, priority)).unwrap();
        };
        assert!(background.begin(job).is_ok());
        receiver.recv().unwrap()
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn who_gives_way_once_does_so_until_nobody_else_is_there() {
        let mut background = Background::default();
        let own = rustix::process::getpriority_process(Some(rustix::thread::gettid())).unwrap();
        let (name, usual) = ran(&mut background);
        assert!(name.starts_with("petals-long-") && usual == own, "{name}: {usual}");
        background.give_way();
        assert_eq!(ran(&mut background).1, 19);
        background.give_way();
        assert_eq!(ran(&mut background).1, 19, "it was low already");
        background.contended = Some(Instant::now() - 2 * CONTENDED);
        assert_eq!(ran(&mut background).1, own, "threads of their own, at the usual priority");
        assert!(background.low.is_some(), "for the next time");
    }
}
