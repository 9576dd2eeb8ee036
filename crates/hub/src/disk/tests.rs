use std::cell::RefCell;
use std::fs::FileTimes;
use std::time::Duration;

use super::*;
use crate::cache::{Folder, hold, make_parent};
use crate::reference::ModelName;

const COMMIT: &str = "0123456789012345678901234567890123456789";

/// A content of `size` bytes that was used `days` ago, with its link.
fn put(cache: &Path, model: &str, file: &str, size: usize, days: u64) -> PathBuf {
    let folder = Folder::new(cache, &ModelName::parse(model).unwrap());
    let blob = folder.blob(&format!("e{file}"));
    make_parent(&blob).unwrap();
    fs::write(&blob, vec![0; size]).unwrap();
    let used = SystemTime::now() - Duration::from_secs(days * 86_400);
    fs::File::options().write(true).open(&blob).unwrap().set_times(FileTimes::new().set_accessed(used)).unwrap();
    folder.note_commit("main", COMMIT).unwrap();
    folder.link(COMMIT, file, &format!("e{file}")).unwrap();
    blob
}

fn room(cache: &Path, most: u64, bytes: u64, stay: &[&PathBuf]) -> Result<Vec<Progress>, HubError> {
    let said = RefCell::new(Vec::new());
    let stay = stay.iter().map(|path| (*path).clone()).collect();
    let need = Need { model: "org/new", bytes, stay: &stay };
    make_room(cache, most, &need, |progress| said.borrow_mut().push(progress))?;
    Ok(said.into_inner())
}

#[test]
fn what_was_not_used_for_longest_goes_first_and_no_more_than_needed() {
    let root = tempfile::tempdir().unwrap();
    let cache = root.path();
    let old = put(cache, "org/old", "a", 100, 9);
    let older = put(cache, "org/old", "b", 50, 20);
    let new = put(cache, "org/new", "c", 100, 1);
    assert_eq!(room(cache, 350, 100, &[]).unwrap(), []);
    assert!(old.exists() && older.exists());
    let said = room(cache, 300, 100, &[]).unwrap();
    assert_eq!(said, [Progress::Removed { model: "org/old".to_owned(), bytes: 50 }]);
    assert!(old.exists() && !older.exists() && new.exists());
    let snapshot = cache.join("models--org--old/snapshots").join(COMMIT);
    assert!(!snapshot.join("b").is_symlink() && snapshot.join("a").exists(), "links go with their contents");
    room(cache, 200, 100, &[]).unwrap();
    assert!(!cache.join("models--org--old").exists(), "a model of which nothing is left goes whole");
    assert!(new.exists());
}

#[test]
fn what_is_used_or_coming_stays_and_then_there_may_be_no_room() {
    let root = tempfile::tempdir().unwrap();
    let cache = root.path();
    let held = put(cache, "org/held", "a", 100, 30);
    let wanted = put(cache, "org/new", "b", 100, 40);
    let free = put(cache, "org/free", "c", 100, 1);
    let lock = hold(&held).unwrap();
    room(cache, 300, 100, &[&wanted]).unwrap();
    assert!(held.exists() && wanted.exists() && !free.exists());
    let error = room(cache, 200, 100, &[&wanted]).unwrap_err().to_string();
    assert!(error.contains("--max-disk") && error.contains("of which 200 are in use"), "{error}");
    assert!(held.exists() && wanted.exists());
    drop(lock);
    room(cache, 200, 100, &[&wanted]).unwrap();
    assert!(!held.exists() && wanted.exists());
}

#[test]
fn parts_go_unless_somebody_fetches_them_and_data_sets_stay() {
    let root = tempfile::tempdir().unwrap();
    let cache = root.path();
    let folder = Folder::new(cache, &ModelName::parse("org/part").unwrap());
    let part = folder.incomplete("abc");
    make_parent(&part).unwrap();
    fs::write(&part, [0; 100]).unwrap();
    let data = cache.join("datasets--org--data/blobs/abc");
    make_parent(&data).unwrap();
    fs::write(&data, [0; 1000]).unwrap();
    let fetching = folder.lock("abc").unwrap();
    assert!(fetching.is_some() && room(cache, 100, 50, &[]).is_err());
    drop(fetching);
    room(cache, 100, 50, &[]).unwrap();
    assert!(!part.exists() && data.exists());
}
