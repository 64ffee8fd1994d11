//! Artifacts: there whole, or not at all; in a directory, and in a bucket of a real S3 service.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::SystemTime;

use clap::Parser as _;
use common::digest::Digest;
use futures_util::TryStreamExt as _;
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use uuid::Uuid;

use crate::artifacts::{Artifact, ArtifactArgs, Artifacts, ArtifactsError};

/// Makes of each named function a test on either kind of store.
macro_rules! on_either {
    ($($name:ident),+ $(,)?) => {
        mod in_a_directory {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::Shelf::directory()).await;
            })+
        }
        mod in_a_bucket {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::Shelf::bucket()).await;
            })+
        }
    };
}

on_either!(
    an_archive_is_kept_whole_under_its_digest,
    a_large_build_goes_there_and_back,
    of_two_alike_the_archive_stays_and_the_build_is_replaced,
    what_is_dropped_or_misnamed_leaves_nothing,
    what_a_crash_left_behind_is_removed_at_open,
    what_is_listed_can_be_removed,
);

/// A place for artifacts.
struct Shelf {
    root: TempDir,
    args: ArtifactArgs,
}

#[derive(clap::Parser)]
struct Arguments {
    #[command(flatten)]
    artifacts: ArtifactArgs,
}

/// Settings, from these flags alone.
fn args(flags: &[&str]) -> ArtifactArgs {
    Arguments::parse_from(["test"].iter().chain(flags)).artifacts
}

/// The S3 service of this run.
fn service() -> String {
    std::env::var("TEST_S3_URL").expect("TEST_S3_URL is not set: run the suite by `script/test store`, which starts it")
}

fn bucket_args(url: &str, service: &str) -> ArtifactArgs {
    let keys = ["--aws-access-key-id", "test", "--aws-secret-access-key", "test", "--aws-allow-http", "true"];
    args(&[["--artifacts-url", url, "--aws-endpoint-url", service].as_slice(), keys.as_slice()].concat())
}

impl Shelf {
    fn directory() -> Self {
        Self { root: tempfile::tempdir().unwrap(), args: args(&[]) }
    }

    fn bucket() -> Self {
        let (service, name) = (service(), format!("bucket-{}", Uuid::now_v7().simple()));
        let address = service.strip_prefix("http://").unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "PUT /{name} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        Self { root: tempfile::tempdir().unwrap(), args: bucket_args(&format!("s3://{name}/some/prefix"), &service) }
    }

    async fn open(&self) -> Artifacts {
        let artifacts = Artifacts::connect(&self.args, self.root.path().join("functions")).await.unwrap();
        artifacts.ping().await.unwrap();
        artifacts
    }

    /// How many files are being written.
    fn incoming(&self) -> usize {
        std::fs::read_dir(self.root.path().join("functions/incoming")).unwrap().count()
    }
}

async fn put(artifacts: &Artifacts, artifact: Artifact, bytes: &[u8]) -> std::io::Result<()> {
    let mut incoming = artifacts.begin().await.unwrap();
    incoming.write(bytes).await.unwrap();
    incoming.keep(artifact).await
}

async fn contents(artifacts: &Artifacts, artifact: Artifact) -> Option<Vec<u8>> {
    let (mut file, len) = artifacts.read(artifact).await.unwrap()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(bytes.len() as u64, len);
    Some(bytes)
}

async fn listed(artifacts: &Artifacts) -> usize {
    artifacts.list().try_collect::<Vec<_>>().await.unwrap().len()
}

#[tokio::test]
async fn what_the_process_before_writes_stays_until_it_is_gone() {
    let shelf = Shelf::directory();
    let before = shelf.open().await;
    let mut left = before.begin().await.unwrap();
    left.write(b"half of an archive").await.unwrap();
    left.flush().await.unwrap();
    let after = Artifacts::inherit(&shelf.args, shelf.root.path().join("functions")).await.unwrap();
    assert_eq!(shelf.incoming(), 1);
    let since = std::fs::metadata(left.path()).unwrap().modified().unwrap();
    after.clear(since).await.unwrap();
    assert_eq!(shelf.incoming(), 1, "nothing is older");
    after.clear(since + std::time::Duration::from_secs(1)).await.unwrap();
    assert_eq!(shelf.incoming(), 0);
}

async fn an_archive_is_kept_whole_under_its_digest(shelf: Shelf) {
    let artifacts = shelf.open().await;
    let chunk = vec![7; 100_000];
    let mut incoming = artifacts.begin().await.unwrap();
    for _ in 0..7 {
        incoming.write(&chunk).await.unwrap();
    }
    let digest = incoming.digest();
    assert_eq!((incoming.len(), digest), (700_000, Digest::of(&chunk.repeat(7))));
    incoming.flush().await.unwrap();
    assert_eq!(std::fs::metadata(incoming.path()).unwrap().len(), 700_000);
    assert!(!artifacts.has(Artifact::Archive(digest)).await.unwrap());
    assert!(contents(&artifacts, Artifact::Archive(digest)).await.is_none());

    incoming.keep(Artifact::Archive(digest)).await.unwrap();
    assert_eq!(contents(&artifacts, Artifact::Archive(digest)).await, Some(chunk.repeat(7)));
    assert!(artifacts.has(Artifact::Archive(digest)).await.unwrap());
    assert!(!artifacts.has(Artifact::Build(digest)).await.unwrap());
    assert_eq!(shelf.incoming(), 0);
    assert!(shelf.open().await.has(Artifact::Archive(digest)).await.unwrap());
}

async fn a_large_build_goes_there_and_back(shelf: Shelf) {
    let artifacts = shelf.open().await;
    // More than two parts, the last one short, and no part like another.
    let bytes: Vec<u8> = (0..5_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let build = Artifact::Build(Digest::of(b"inputs"));
    put(&artifacts, build, &bytes).await.unwrap();
    assert!(contents(&artifacts, build).await.unwrap() == bytes);
}

async fn of_two_alike_the_archive_stays_and_the_build_is_replaced(shelf: Shelf) {
    let artifacts = shelf.open().await;
    let archive = Artifact::Archive(Digest::of(b"archive"));
    put(&artifacts, archive, b"archive").await.unwrap();
    put(&artifacts, archive, b"archive").await.unwrap();
    assert_eq!(contents(&artifacts, archive).await.as_deref(), Some(b"archive".as_slice()));
    let build = Artifact::Build(Digest::of(b"inputs"));
    put(&artifacts, build, b"rotten").await.unwrap();
    put(&artifacts, build, b"whole").await.unwrap();
    assert_eq!(contents(&artifacts, build).await.as_deref(), Some(b"whole".as_slice()));
    assert_eq!((shelf.incoming(), listed(&artifacts).await), (0, 2));
}

async fn what_is_dropped_or_misnamed_leaves_nothing(shelf: Shelf) {
    let artifacts = shelf.open().await;
    let mut dropped = artifacts.begin().await.unwrap();
    dropped.write(b"half").await.unwrap();
    drop(dropped);
    assert!(put(&artifacts, Artifact::Archive(Digest::of(b"another")), b"one").await.is_err());
    assert_eq!((shelf.incoming(), listed(&artifacts).await), (0, 0));
}

async fn what_a_crash_left_behind_is_removed_at_open(shelf: Shelf) {
    let incoming = shelf.root.path().join("functions/incoming");
    std::fs::create_dir_all(incoming.join("folder")).unwrap();
    std::fs::write(incoming.join("half"), "half").unwrap();
    shelf.open().await;
    assert_eq!(shelf.incoming(), 0);
}

async fn what_is_listed_can_be_removed(shelf: Shelf) {
    let artifacts = shelf.open().await;
    let before = SystemTime::now() - std::time::Duration::from_secs(60);
    let (archive, build) = (Artifact::Archive(Digest::of(b"a")), Artifact::Build(Digest::of(b"inputs")));
    put(&artifacts, archive, b"a").await.unwrap();
    put(&artifacts, build, b"built").await.unwrap();
    let mut found: Vec<_> = artifacts.list().try_collect().await.unwrap();
    found.sort_by_key(|kept| kept.bytes);
    assert_eq!(found.iter().map(|kept| (kept.artifact, kept.bytes)).collect::<Vec<_>>(), [(archive, 1), (build, 5)]);
    assert!(found.iter().all(|kept| kept.since > before));
    artifacts.remove(archive).await.unwrap();
    artifacts.remove(archive).await.unwrap();
    assert!(!artifacts.has(archive).await.unwrap() && contents(&artifacts, archive).await.is_none());
    // Who reads beside its owner sees the same, and takes nothing away.
    let begun = artifacts.begin().await.unwrap();
    let beside = Artifacts::beside(&shelf.args, shelf.root.path().join("functions")).unwrap();
    assert_eq!((listed(&beside).await, shelf.incoming()), (listed(&artifacts).await, 1));
    drop(begun);
    assert_eq!(listed(&artifacts).await, 1);
}

async fn refused(args: &ArtifactArgs) -> ArtifactsError {
    let root = tempfile::tempdir().unwrap();
    Artifacts::connect(args, root.path().to_owned()).await.unwrap_err()
}

#[tokio::test]
async fn a_start_says_what_is_wrong_with_the_bucket() {
    let missing = refused(&bucket_args("s3://never-made/prefix", &service())).await;
    assert!(matches!(missing, ArtifactsError::NoBucket(_)), "{missing:?}");

    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", silent.local_addr().unwrap());
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = silent.accept() {
            let answer = "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            let _ = stream.read(&mut [0; 4096]).and_then(|_| stream.write_all(answer.as_bytes()));
        }
    });
    let forbidden = refused(&bucket_args("s3://bucket", &address)).await;
    assert!(matches!(forbidden, ArtifactsError::Forbidden(_)), "{forbidden:?}");

    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let away = refused(&bucket_args("s3://bucket", &format!("http://{gone}"))).await;
    assert!(matches!(away, ArtifactsError::Service(_)), "{away:?}");
}
