//! Where compiled kernels are kept between starts.

use std::path::{Path, PathBuf};

use super::Device;

impl Device {
    /// Keeps kernels that are compiled for GPUs, and which of them are fast on this machine's, below `directory`, so that the next start need not find that out again. To
    /// be called before blocks are loaded; later it has no effect.
    pub fn keep_kernels(directory: &Path) {
        // What this program's kernels are is nowhere but in the program.
        let build = std::env::current_exe().and_then(std::fs::read).map(|program| hash(&program));
        let Ok(build) = build else { return };
        petals_kernels::keep_kernels(
            &directory.join(format!("tuned-{}", hash(gpus().as_bytes()))),
            &compiled(directory, &build),
        );
    }
}

/// The folder of a build's kernels. Those of other builds, which nobody will ask for again, are removed when they are a month old.
fn compiled(directory: &Path, build: &str) -> PathBuf {
    const MONTH: std::time::Duration = std::time::Duration::from_secs(30 * 24 * 3600);
    let own = directory.join(format!("compiled-{build}"));
    let others = std::fs::read_dir(directory).into_iter().flatten().flatten().filter(|entry| {
        let is_compiled = entry.file_name().to_string_lossy().starts_with("compiled-");
        let age = entry.metadata().and_then(|data| data.modified()).ok().and_then(|time| time.elapsed().ok());
        is_compiled && entry.path() != own && age.is_some_and(|age| age > MONTH)
    });
    for other in others {
        // Kept a while longer if it cannot be removed.
        let _ = std::fs::remove_dir_all(other.path());
    }
    own
}

/// The names of the GPUs, which decide about what is fast.
fn gpus() -> String {
    let mut names = Vec::new();
    #[cfg(feature = "cuda")]
    names.extend(
        (0..super::probe::device_count().unwrap_or_default()).filter_map(|index| super::cards::card(index)?.hardware),
    );
    #[cfg(feature = "vulkan")]
    names.extend(super::vulkan::all().iter().map(|adapter| adapter.name().to_owned()));
    names.join(", ")
}

fn hash(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex()[..16].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_of_other_builds_are_removed_when_they_are_old() {
        let directory = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let path = directory.path().join(name);
            std::fs::create_dir(&path).unwrap();
            path
        };
        let (old, new, tuned) = (make("compiled-old"), make("compiled-new"), make("tuned-any"));
        let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(40 * 24 * 3600);
        for path in [&old, &tuned] {
            std::fs::File::open(path).unwrap().set_modified(long_ago).unwrap();
        }
        let own = compiled(directory.path(), "own");
        assert!(!old.exists() && new.exists() && tuned.exists());
        assert_eq!(own, directory.path().join("compiled-own"));
    }
}
