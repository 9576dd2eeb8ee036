//! The directory that a command writes to, looked at before there is anything to write.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};

use crate::error::CliError;

/// Checks that `out`, given by `flag`, can be written to, or made, and leaves nothing there.
pub(super) fn check_writable(flag: &str, out: &Path) -> Result<(), CliError> {
    let mut there: PathBuf = out.to_owned();
    while !there.exists() {
        // The parent of a bare name is the empty path, which is this directory.
        match there.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => there = parent.to_owned(),
            _ => there = PathBuf::from("."),
        }
    }
    if !there.is_dir() {
        let message = format!("{flag} {}: {} is a file, not a directory", out.display(), there.display());
        return Err(CliError::Usage(message));
    }
    let probe = there.join(format!(".petals-tune-{}", std::process::id()));
    let made = OpenOptions::new().write(true).create_new(true).open(&probe);
    made.map_err(|error| {
        let message = format!("{flag} {}: cannot write into {}: {error}", out.display(), there.display());
        CliError::Usage(message)
    })?;
    // What could be made can be removed; if not, a file of no bytes stays.
    let _ = fs::remove_file(&probe);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_can_be_made_is_writable_and_nothing_is_left() {
        let root = tempfile::tempdir().unwrap();
        check_writable("--out", root.path()).unwrap();
        check_writable("--out", &root.path().join("new/newer")).unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_in_the_way_is_named() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("out");
        fs::write(&file, "x").unwrap();
        for out in [file.clone(), file.join("deeper")] {
            let message = check_writable("--out", &out).unwrap_err().to_string();
            assert!(message.starts_with("--out ") && message.contains("out is a file"), "{message}");
        }
    }
}
