use super::*;

#[cfg(unix)]
fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_created_identity_is_read_back_and_private() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/identity.key");
    let created = Identity::load_or_create(&path).unwrap();
    assert_eq!(Identity::load_or_create(&path).unwrap().peer_id(), created.peer_id());
    #[cfg(unix)]
    assert_eq!(mode(&path), 0o600);
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn simultaneous_creation_gives_one_identity() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("identity.key");
    let ids: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| Identity::load_or_create(&path).unwrap())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap().peer_id()).collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]));
}

#[cfg(unix)]
#[test]
fn an_identity_that_others_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("identity.key");
    Identity::load_or_create(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let error = Identity::load_or_create(&path).unwrap_err();
    assert!(matches!(error, IdentityError::Permissions { mode: 0o640, .. }), "{error}");
    assert!(error.to_string().contains("chmod 600"));
}

#[test]
fn another_file_is_not_an_identity() {
    let folder = tempfile::tempdir().unwrap();
    for content in [Vec::new(), b"hello".to_vec(), vec![7; 1 << 20]] {
        let mut file = tempfile::NamedTempFile::new_in(folder.path()).unwrap();
        file.write_all(&content).unwrap();
        assert!(matches!(Identity::load_or_create(file.path()), Err(IdentityError::NotAKey { .. })));
    }
    assert!(matches!(
        Identity::load_or_create(folder.path()),
        Err(IdentityError::Permissions { .. } | IdentityError::Read { .. })
    ));
}

#[test]
fn debug_output_does_not_show_the_secret() {
    let identity = Identity::generate();
    assert_eq!(format!("{identity:?}"), format!("Identity({:?})", identity.peer_id()));
}
