//! Artifacts: there whole, or not at all.

use std::path::Path;

use common::digest::Digest;
use tokio::io::AsyncReadExt as _;

use crate::artifacts::{Artifact, Artifacts};

fn files(folder: &Path) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

async fn contents(artifacts: &Artifacts, artifact: Artifact) -> Option<Vec<u8>> {
    let (mut file, len) = artifacts.read(artifact).await.unwrap()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(bytes.len() as u64, len);
    Some(bytes)
}

#[tokio::test]
async fn an_archive_is_kept_whole_under_its_digest() {
    let root = tempfile::tempdir().unwrap();
    let artifacts = Artifacts::open(root.path().join("artifacts")).unwrap();
    let chunk = vec![7; 100_000];
    let mut incoming = artifacts.begin().await.unwrap();
    for _ in 0..7 {
        incoming.write(&chunk).await.unwrap();
    }
    let digest = incoming.digest();
    assert_eq!((incoming.len(), digest), (700_000, Digest::of(&chunk.repeat(7))));
    incoming.flush().await.unwrap();
    assert_eq!(std::fs::metadata(incoming.path()).unwrap().len(), 700_000);
    assert!(!artifacts.has(Artifact::Archive(digest)).await);
    assert!(contents(&artifacts, Artifact::Archive(digest)).await.is_none());

    incoming.keep(Artifact::Archive(digest)).await.unwrap();
    assert_eq!(contents(&artifacts, Artifact::Archive(digest)).await, Some(chunk.repeat(7)));
    assert!(artifacts.has(Artifact::Archive(digest)).await);
    assert!(!artifacts.has(Artifact::Build(digest)).await);
    assert_eq!(files(&root.path().join("artifacts/incoming")), 0);

    let artifacts = Artifacts::open(root.path().join("artifacts")).unwrap();
    assert!(artifacts.has(Artifact::Archive(digest)).await);
}

#[tokio::test]
async fn what_exists_is_left_as_it_is() {
    let root = tempfile::tempdir().unwrap();
    let artifacts = Artifacts::open(root.path().to_owned()).unwrap();
    let build = Artifact::Build(Digest::of(b"inputs"));
    for bytes in [b"first", b"later"] {
        let mut incoming = artifacts.begin().await.unwrap();
        incoming.write(bytes).await.unwrap();
        incoming.keep(build).await.unwrap();
    }
    assert_eq!(contents(&artifacts, build).await.as_deref(), Some(b"first".as_slice()));
    assert_eq!(files(&root.path().join("incoming")), 0);
}

#[tokio::test]
async fn what_is_dropped_or_misnamed_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let artifacts = Artifacts::open(root.path().to_owned()).unwrap();
    let mut dropped = artifacts.begin().await.unwrap();
    dropped.write(b"half").await.unwrap();
    drop(dropped);
    let mut misnamed = artifacts.begin().await.unwrap();
    misnamed.write(b"one").await.unwrap();
    assert!(misnamed.keep(Artifact::Archive(Digest::of(b"another"))).await.is_err());
    for folder in ["incoming", "archives", "builds"] {
        assert_eq!(files(&root.path().join(folder)), 0, "{folder}");
    }
}

#[tokio::test]
async fn what_a_crash_left_behind_is_removed_at_open() {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(root.path().join("incoming/folder")).unwrap();
    std::fs::write(root.path().join("incoming/half"), "half").unwrap();
    Artifacts::open(root.path().to_owned()).unwrap();
    assert_eq!(files(&root.path().join("incoming")), 0);
}
