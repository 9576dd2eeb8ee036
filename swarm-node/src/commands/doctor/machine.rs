//! What the system allows a node: open files, threads, address space, room on the disk.

use std::path::Path;
use std::time::Duration;

use sysinfo::System;
use tokio::sync::oneshot;

use crate::commands::events::{Check, size};

/// Open files that a busy server needs: connections, and the shards of a checkpoint.
const WANTED_FILES: usize = 4096;
/// Fewer than these do not last for a handful of clients.
const LEAST_FILES: usize = 256;
/// Threads and processes of a user that leave room for a node: its workers, one thread for each core twice over, and what else runs.
const WANTED_THREADS: u64 = 1024;
/// Fewer than these do not last for a start on a large machine.
const LEAST_THREADS: u64 = 128;
/// Free space that logs, keys and measurements need, beside what is to come of a model.
const WANTED_DISK: u64 = 1 << 30;

/// What the limits of this process mean for a node. Those of threads and of the address space are told by Linux alone.
pub(super) fn limits() -> Vec<Check> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok();
    let mut checks = vec![open_files(System::open_files_limit())];
    checks.extend(limits.as_deref().and_then(threads));
    checks.extend(limits.as_deref().and_then(address_space));
    checks
}

/// The soft limit of a name, `None` if there is none.
fn soft_limit(limits: &str, name: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

fn open_files(limit: Option<usize>) -> Check {
    const NAME: &str = "open files";
    const REMEDY: &str =
        "raise the limit before starting the node, for example `ulimit -n 65536` or LimitNOFILE= of systemd";
    match limit {
        None => Check::warn(NAME, "the limit cannot be read here", format!("a server wants {WANTED_FILES}")),
        Some(limit) if limit < LEAST_FILES => Check::fail(NAME, format!("at most {limit}"), REMEDY),
        Some(limit) if limit < WANTED_FILES => Check::warn(NAME, format!("at most {limit}"), REMEDY),
        Some(limit) => Check::ok(NAME, format!("at most {limit}")),
    }
}

/// Said only if there are few: most systems allow thousands.
fn threads(limits: &str) -> Option<Check> {
    const NAME: &str = "threads";
    const REMEDY: &str =
        "raise the limit, for example `ulimit -u 4096`, TasksMax= of systemd or --pids-limit of docker";
    let limit = soft_limit(limits, "Max processes")?;
    let detail = format!("at most {limit} of this user");
    match limit {
        0..LEAST_THREADS => Some(Check::fail(NAME, detail, REMEDY)),
        LEAST_THREADS..WANTED_THREADS => Some(Check::warn(NAME, detail, REMEDY)),
        _ => None,
    }
}

/// Weights are mapped, so that a limit of the address space is one of the model's size.
fn address_space(limits: &str) -> Option<Check> {
    let limit = soft_limit(limits, "Max address space")?;
    let remedy = "files of weights are mapped and count whether or not they are in memory: lift the limit, for example `ulimit -v unlimited`";
    Some(Check::warn("address space", format!("at most {}", size(limit)), remedy))
}

/// What is free for this user where a path lies, in bytes. A server of files that does not answer keeps a thread, and not the program.
pub(super) async fn free_disk(path: &Path) -> Option<u64> {
    let (path, (tell, told)) = (path.to_owned(), oneshot::channel());
    std::thread::spawn(move || tell.send(fs4::available_space(path)));
    tokio::time::timeout(Duration::from_secs(5), told).await.ok()?.ok()?.ok()
}

/// Whether what is free is enough, with `to_come` bytes of weights that are not here yet.
pub(super) fn disk(free: Option<u64>, to_come: u64) -> Check {
    const NAME: &str = "disk";
    match free {
        None => Check::warn(NAME, "what is free cannot be told here", "see that a few GiB are"),
        Some(free) if free < to_come => Check::warn(
            NAME,
            format!("{} free, and the whole model would take {} more", size(free), size(to_come)),
            "serve a part of the blocks, of which alone the files are fetched, free some space, or have HF_HOME on another disk",
        ),
        Some(free) if free - to_come < WANTED_DISK => {
            Check::warn(NAME, format!("{} free", size(free)), "free some space: logs and measurements are written")
        }
        Some(free) => Check::ok(NAME, format!("{} free", size(free))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::events::CheckStatus;

    fn limit(name: &str, soft: &str) -> String {
        format!(
            "Limit                     Soft Limit           Hard Limit           Units\n{name}            {soft}  999999  x\n"
        )
    }

    #[test]
    fn limits_are_read_and_judged() {
        let status = |limit| open_files(Some(limit)).status;
        assert_eq!(
            [100, 1024, 65536, usize::MAX].map(status),
            [CheckStatus::Fail, CheckStatus::Warn, CheckStatus::Ok, CheckStatus::Ok]
        );
        assert_eq!(open_files(None).status, CheckStatus::Warn);
        assert!(System::open_files_limit().is_some_and(|limit| limit > 0));

        let status = |soft: &str| threads(&limit("Max processes", soft)).map(|check| check.status);
        assert_eq!([status("64"), status("500")], [Some(CheckStatus::Fail), Some(CheckStatus::Warn)]);
        assert_eq!([status("30000"), status("unlimited")], [None, None]);
        let space = address_space(&limit("Max address space", "8589934592")).unwrap();
        assert!(space.to_string().contains("8.00 GiB"), "{space}");
        assert!(address_space(&limit("Max address space", "unlimited")).is_none());
    }

    #[tokio::test]
    async fn free_disk_is_that_of_the_place_that_is_named() {
        let folder = tempfile::tempdir().unwrap();
        assert!(free_disk(folder.path()).await.is_some_and(|free| free > 0));
        assert_eq!(free_disk(&folder.path().join("nothing")).await, None);
    }

    #[test]
    fn what_is_still_to_come_counts_against_the_disk() {
        assert_eq!((disk(None, 0).status, disk(Some(1), 0).status), (CheckStatus::Warn, CheckStatus::Warn));
        assert_eq!(disk(Some(20 << 30), 10 << 30).status, CheckStatus::Ok);
        let full = disk(Some(20 << 30), 100 << 30);
        assert!(full.status == CheckStatus::Warn && full.to_string().contains("HF_HOME"), "{full}");
    }
}
