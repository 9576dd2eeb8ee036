//! Long passes on processors, on threads of their own that give way to others.
//!
//! A block of a long pass may take a second on processors, so that it is not enough to let others go between its blocks. The operating system can interrupt it at any
//! moment: where something goes beside long passes, they are computed by threads that have what others leave. As long as nobody else is there, threads have
//! the usual priority, since other programs of the machine would be "others" too.

use std::time::{Duration, Instant};

use rayon::{ThreadPool, ThreadPoolBuilder};

/// For so long after something went beside a long pass the next ones give way from their beginning.
const CONTENDED: Duration = Duration::from_secs(10);

/// Two sets of threads, each made when it is first needed.
#[derive(Debug, Default)]
pub(super) struct Background {
    usual: Option<ThreadPool>,
    /// They get what other threads leave.
    low: Option<ThreadPool>,
    /// When something went beside a pass.
    contended: Option<Instant>,
}

impl Background {
    /// Runs `job`; gives it back if there are no threads.
    pub(super) fn begin<J: FnOnce() + Send + 'static>(&mut self, job: J) -> Result<(), J> {
        let low = self.contended.is_some_and(|at| at.elapsed() < CONTENDED);
        let threads = if low { &mut self.low } else { &mut self.usual };
        if threads.is_none() {
            *threads = pool(low);
        }
        match threads {
            Some(threads) => {
                threads.spawn(job);
                Ok(())
            }
            None => Err(job),
        }
    }

    /// Something goes beside a long pass.
    pub(super) fn is_contended(&mut self) {
        self.contended = Some(Instant::now());
    }
}

/// As many threads as there usually are.
fn pool(low: bool) -> Option<ThreadPool> {
    let pool = ThreadPoolBuilder::new()
        .thread_name(|number| format!("petals-long-{number}"))
        .num_threads(rayon::current_num_threads())
        .start_handler(move |_| {
            // Without success they have as much as others.
            if low && let Err(error) = give_way() {
                tracing::debug!(%error, "a thread keeps its priority");
            }
        });
    pool.build().inspect_err(|error| tracing::warn!(%error, "no threads for long passes: others wait for them")).ok()
}

/// Has the calling thread take only what others leave. (Linux interrupts a thread of the lowest "nice" value only after its slice of some milliseconds, one of
/// this policy at once.)
#[cfg(target_os = "linux")]
fn give_way() -> Result<(), thread_priority::Error> {
    use thread_priority::{
        NormalThreadSchedulePolicy::Idle, ThreadPriority, ThreadSchedulePolicy::Normal, set_thread_priority_and_policy,
        thread_native_id,
    };
    set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, Normal(Idle))
}

#[cfg(all(unix, not(target_os = "linux")))]
fn give_way() -> Result<(), thread_priority::Error> {
    thread_priority::set_current_thread_priority(thread_priority::ThreadPriority::Min)
}

#[cfg(not(unix))]
fn give_way() -> Result<(), std::io::Error> {
    Err(std::io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::sync::mpsc;

    use thread_priority::{NormalThreadSchedulePolicy, ThreadSchedulePolicy, thread_schedule_policy};

    use super::*;

    /// The name of the thread on which a job runs, and whether it gives way.
    fn ran(background: &mut Background) -> (String, bool) {
        let (sender, receiver) = mpsc::sync_channel(1);
        let job = move || {
            let name = std::thread::current().name().unwrap_or_default().to_owned();
            let idle = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
            sender.send((name, thread_schedule_policy().unwrap() == idle)).unwrap();
        };
        assert!(background.begin(job).is_ok());
        receiver.recv().unwrap()
    }

    #[test]
    fn passes_give_way_for_a_while_after_something_went_beside_one() {
        let mut background = Background::default();
        let (name, gives_way) = ran(&mut background);
        assert!(name.starts_with("petals-long-") && !gives_way, "{name}");
        background.is_contended();
        assert!(ran(&mut background).1);
        background.contended = Some(Instant::now() - 2 * CONTENDED);
        assert!(!ran(&mut background).1);
    }
}
