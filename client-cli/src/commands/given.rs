//! A text that a flag names a file of.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::CliError;

/// Longest text that is read, in bytes: several times what the longest contexts of models hold.
const MOST: u64 = 64 << 20;

/// Reads the file that `flag` names, without a mark of byte order.
pub(super) fn text(flag: &str, path: &Path) -> Result<String, CliError> {
    let refused = |problem: String| CliError::Usage(format!("{flag} {}: {problem}", path.display()));
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MOST + 1).read_to_string(&mut text));
    read.map_err(|error| refused(error.to_string()))?;
    if text.len() as u64 > MOST {
        return Err(refused(format!("longer than {} MiB, which no model has positions for", MOST >> 20)));
    }
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_an_end_or_that_is_no_text_is_refused_with_its_flag() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("t");
        for (bytes, expected) in [(b"\xef\xbb\xbfa b".as_slice(), Ok("a b")), (b"\xff\xfe", Err("--context"))] {
            std::fs::write(&path, bytes).unwrap();
            match (text("--context", &path), expected) {
                (Ok(text), Ok(expected)) => assert_eq!(text, expected),
                (Err(error), Err(word)) => assert!(error.to_string().contains(word), "{error}"),
                (got, _) => panic!("{got:?}"),
            }
        }
        let endless = text("--context", Path::new("/dev/zero")).unwrap_err().to_string();
        assert!(endless.contains("MiB"), "{endless}");
    }
}
