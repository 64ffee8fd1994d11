//! Backups between both databases and back, and those that must not be restored.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use chrono::Utc;
use common::ids::{NodeId, SessionId};
use common::invocation::Outcome;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use tempfile::TempDir;

use super::tables::{Kind, PASSING};
use super::*;
use crate::fleet::{Authority, CertificateFacts, Joining, NewNode};
use crate::tests::bench::{Bench, FreshDatabase, close, record};
use crate::tests::on_both;
use crate::{LogLine, RefreshToken};

on_both!(
    every_table_is_backed_up,
    everything_comes_back,
    a_database_in_use_is_not_overwritten,
    a_failed_one_changes_nothing
);

fn place(rooms: &FreshDatabase) -> DatabaseLocation {
    DatabaseLocation { settings: rooms.args.clone(), data_dir: rooms.data_dir.path().to_owned() }
}

/// A directory with an artifact store and room for a backup.
struct Shelf {
    directory: TempDir,
    artifacts: Artifacts,
}

impl Shelf {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let artifacts = Artifacts::open(directory.path().join("functions")).unwrap();
        Self { directory, artifacts }
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("backup.tar.gz")
    }

    async fn keep(&self, artifact: impl FnOnce(Digest) -> Artifact, bytes: &[u8]) -> Artifact {
        let mut incoming = self.artifacts.begin().await.unwrap();
        incoming.write(bytes).await.unwrap();
        let artifact = artifact(Digest::of(bytes));
        incoming.keep(artifact).await.unwrap();
        artifact
    }

    async fn back_up(&self, bench: &Bench) -> Summary {
        write(&place(&bench.place), &self.artifacts, &self.file(), &Progress::default()).await.unwrap()
    }
}

async fn restore(file: &Path, shelf: &Shelf, rooms: &FreshDatabase, replace: bool) -> Result<Summary, BackupError> {
    let mut backup = Backup::open(file, &Progress::default()).await?;
    backup.restore(&place(rooms), &shelf.artifacts, replace, &Progress::default()).await?;
    Ok(backup.summary().clone())
}

/// Something in every table, with what is awkward in either database.
async fn fill(bench: &Bench) {
    let ada = bench.user("ada@example.org").await;
    let bob = bench.user("bob@Bücher\"'\\\u{1f980}").await;
    let (hash, made_by) = (Digest::of(b"token"), bob.id);
    let (session, expires_at) = (SessionId::new(), Utc::now() + chrono::Duration::days(1));
    let token = RefreshToken { hash, session, user: ada.id, expires_at };
    bench.store.add_refresh_token(token).await.unwrap();
    let left = RefreshToken { hash: Digest::of(b"left"), session: SessionId::new(), ..token };
    bench.store.add_refresh_token(left).await.unwrap();
    assert!(bench.store.revoke_refresh_token(left.hash, 3600).await.unwrap());
    let function = bench.serving(ada.id, "hello").await;
    let line = LogLine { source: "build", message: "zwei\nZeilen\t\u{7f}\0".to_owned() };
    bench.store.append_log(function.active.as_ref().unwrap().spec.deployment, &[line]).await.unwrap();
    let mut records: Vec<_> = [Outcome::Success, Outcome::TimedOut].map(|outcome| record(&function, outcome)).into();
    records[0].logs.container.as_mut().unwrap().stdout = "\\u0000 \0 \"quoted\" \u{2028}".to_owned();
    records.extend((0..MAX_ROWS + 1).map(|_| record(&function, Outcome::Crashed)));
    bench.store.insert_records(&records).await.unwrap();
    let authority = Authority { certificate: vec![0, 1, 255], sealed_key: vec![7; 50] };
    bench.store.found_authority(authority).await.unwrap();
    let next = Authority { certificate: vec![2, 0, 255], sealed_key: vec![8; 50] };
    assert!(bench.store.rotate_authority(&[0, 1, 255], next).await.unwrap());
    bench.store.add_join_token(hash, made_by, 60).await.unwrap();
    let certificate = CertificateFacts { serial: "0a".to_owned(), expires_at: Utc::now() };
    let node = NewNode { id: NodeId::new(), name: "one".to_owned(), certificate, authority: hash };
    assert_eq!(bench.store.join_node(hash, node).await.unwrap(), Joining::Joined);
    bench.store.node_linked(NodeId::new(), "two", &"zone=a".parse().unwrap()).await.unwrap();
    let value = json!({"a": [1, 2.5, null, true], "ü": "\"\\ \n"}).to_string();
    let insert = "INSERT INTO function_data (function_id, key, value) VALUES ($1, 'key', ";
    if bench.is_postgres() {
        let mut connection = bench.function_db().await;
        let sql = sqlx::query(AssertSqlSafe(format!("{insert}$2::jsonb)")));
        sql.bind(function.id.uuid()).bind(value).execute(&mut connection).await.unwrap();
        close(connection).await;
    } else {
        let sql = sqlx::query(AssertSqlSafe(format!("{insert}$2)")));
        sql.bind(function.id.uuid()).bind(value).execute(&mut bench.file().await).await.unwrap();
    }
}

/// All rows of a database by table, in a form in which those of both databases are the same.
async fn everything(place: &DatabaseLocation) -> BTreeMap<&'static str, Vec<Vec<Value>>> {
    let mut source = Connections::to_read(&place.settings, &place.data_dir).await.unwrap();
    let mut all = BTreeMap::new();
    for table in TABLES {
        let rows: Vec<String> = source.rows(table).try_collect().await.unwrap();
        let same = |row: &String| {
            let row: Vec<Value> = serde_json::from_str(row).unwrap();
            row.into_iter().zip(table.columns).map(|(value, (_, kind))| same(value, *kind)).collect()
        };
        all.insert(table.name, rows.iter().map(same).collect());
    }
    all
}

fn same(value: Value, kind: Kind) -> Value {
    match (kind, value) {
        (Kind::Json, Value::String(text)) => serde_json::from_str(&text).unwrap(),
        // One keeps six digits of a second, the other as many as there are.
        (Kind::Time, Value::String(text)) if text.contains('.') => {
            text.trim_end_matches('0').trim_end_matches('.').into()
        }
        (_, value) => value,
    }
}

async fn every_table_is_backed_up(bench: &Bench) {
    let known: BTreeSet<_> = TABLES
        .iter()
        .flat_map(|table| table.columns.iter().map(|(column, _)| format!("{}.{column}", table.name)))
        .collect();
    let found: Vec<String> = if bench.is_postgres() {
        let sql = "SELECT table_name || '.' || column_name FROM information_schema.columns
            WHERE table_schema = 'public' AND table_name <> '_sqlx_migrations'";
        let mut main = bench.place.main().await;
        let mut found: Vec<String> = sqlx::query_scalar(sql).fetch_all(&mut main).await.unwrap();
        found.extend(sqlx::query_scalar::<_, String>(sql).fetch_all(&mut bench.function_db().await).await.unwrap());
        found
    } else {
        let sql = "SELECT t.name || '.' || c.name FROM sqlite_master t, pragma_table_info(t.name) c
            WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite_%' AND t.name <> '_sqlx_migrations'";
        sqlx::query_scalar(sql).fetch_all(&mut bench.file().await).await.unwrap()
    };
    let passes = |column: &String| PASSING.iter().any(|table| column.split('.').next() == Some(table));
    let found = found.into_iter().filter(|column| !passes(column)).collect();
    assert_eq!(known, found, "name in backup/tables.rs what a migration adds");
    assert_eq!(crate::sqlite::schema(), crate::postgres::schema(), "a migration is there for one database only");
}

async fn everything_comes_back(bench: &Bench) {
    fill(bench).await;
    let shelf = Shelf::new();
    // The archive that the version was made of, as the bench names it, and one that nothing refers to any more.
    let kept = [shelf.keep(Artifact::Archive, b"hello").await, shelf.keep(Artifact::Build, &[7; 1_000_000]).await];
    shelf.keep(Artifact::Archive, b"of a function that was deleted").await;
    let summary = shelf.back_up(bench).await;
    assert_eq!((summary.rows["function_invocations"], summary.artifacts), (MAX_ROWS + 3, 2), "{summary:?}");
    assert!(TABLES.iter().all(|table| summary.rows[table.name] > 0), "{summary:?}");
    let again = write(&place(&bench.place), &shelf.artifacts, &shelf.file(), &Progress::default()).await;
    assert!(matches!(again, Err(BackupError::Exists(_))), "{again:?}");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(shelf.file()).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);

    let before = everything(&place(&bench.place)).await;
    for rooms in [FreshDatabase::sqlite(), FreshDatabase::postgres().await] {
        let other = Shelf::new();
        assert_eq!(restore(&shelf.file(), &other, &rooms, false).await.unwrap(), summary);
        assert_eq!(everything(&place(&rooms)).await, before);
        for artifact in kept {
            assert!(other.artifacts.has(artifact).await.unwrap());
        }
        assert_eq!(other.artifacts.list().count().await, 2);
        // Once more, over it.
        assert!(matches!(restore(&shelf.file(), &other, &rooms, false).await, Err(BackupError::NotEmpty)));
        restore(&shelf.file(), &other, &rooms, true).await.unwrap();
        assert_eq!(everything(&place(&rooms)).await, before);
        // And on to another database without a file.
        let last = FreshDatabase::sqlite();
        copy(&place(&rooms), &place(&last), false, &Progress::default()).await.unwrap();
        assert_eq!(everything(&place(&last)).await, before);
        // What came out can be used, and its rules are those of before.
        let store = rooms.open().await;
        let user = store.user_by_email("ADA@example.org").await.unwrap().unwrap();
        let function = store.function(user.id, "hello").await.unwrap().unwrap();
        assert_eq!(function.active.unwrap().spec.version, 1);
        store.delete_function(user.id, function.id).await.unwrap();
        rooms.drop().await;
    }
}

async fn a_database_in_use_is_not_overwritten(bench: &Bench) {
    bench.user("ada@example.org").await;
    let shelf = Shelf::new();
    shelf.back_up(bench).await;
    bench.user("bob@example.org").await;
    let before = everything(&place(&bench.place)).await;
    let refused = restore(&shelf.file(), &shelf, &bench.place, false).await;
    assert!(matches!(refused, Err(BackupError::NotEmpty)), "{refused:?}");
    assert_eq!(everything(&place(&bench.place)).await, before);
    restore(&shelf.file(), &shelf, &bench.place, true).await.unwrap();
    assert!(bench.store.user_by_email("bob@example.org").await.unwrap().is_none());
}

/// A backup that is whole, of one user and one function, and that claims so many of both.
async fn forge(target: &Path, user: &Value, function: &Value, claimed: u64) {
    let mut writer = Writer::create(target, 0).await.unwrap();
    writer.append(&Entry::Head, &json(&Head::new(0, connections::schema())), 0).await.unwrap();
    for (table, row) in [("users", user), ("functions", function)] {
        writer.append(&Entry::Rows(table.to_owned(), 0), json!([row]).to_string().as_bytes(), claimed).await.unwrap();
    }
    let manifest = json!({"contents": writer.contents(), "missing": []});
    writer.append(&Entry::Manifest, manifest.to_string().as_bytes(), 0).await.unwrap();
    writer.finish().await.unwrap();
}

async fn a_failed_one_changes_nothing(bench: &Bench) {
    let (shelf, now) = (Shelf::new(), "2026-01-31 23:59:59");
    let (id, other) = ("0".repeat(31) + "1", "0".repeat(31) + "2");
    let user = json!([id, "a@b", "a@b", "a", "hash", true, now, now]);
    let function = |owner: &str, version: Value| json!([id, owner, "hello", version, now, now, null]);
    let cases = [
        ("fine", function(&id, Value::Null), 1),
        ("nobody's", function(&other, Value::Null), 1),
        ("without its version", function(&id, json!(3)), 1),
        ("too few", function(&id, Value::Null), 2),
    ];
    for (what, function, claimed) in cases {
        let file = shelf.directory.path().join(what);
        forge(&file, &user, &function, claimed).await;
        bench.user("before@example.org").await;
        let before = everything(&place(&bench.place)).await;
        let restored = restore(&file, &shelf, &bench.place, true).await;
        assert_eq!(restored.is_ok(), what == "fine", "{what}: {restored:?}");
        if what != "fine" {
            assert_eq!(everything(&place(&bench.place)).await, before, "{what}");
        }
        restore(&shelf.directory.path().join("fine"), &shelf, &bench.place, true).await.unwrap();
        assert_eq!(everything(&place(&bench.place)).await["users"].len(), 1, "{what}");
    }
}

#[tokio::test]
async fn what_is_damaged_is_refused() {
    let (bench, shelf) = (Bench::sqlite().await, Shelf::new());
    fill(&bench).await;
    shelf.keep(Artifact::Build, &(0..200_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>()).await;
    shelf.back_up(&bench).await;
    let good = std::fs::read(shelf.file()).unwrap();
    let file = shelf.directory.path().join("damaged");
    let check = async |bytes: &[u8], what: &str| {
        std::fs::write(&file, bytes).unwrap();
        let opened = Backup::open(&file, &Progress::default()).await.map(drop);
        assert!(matches!(opened, Err(BackupError::Damaged(_) | BackupError::CutOff)), "{what}: {opened:?}");
    };
    for part in 0..40 {
        let at = good.len() * part / 40;
        check(&good[..at], &format!("cut off at {at}")).await;
        let mut flipped = good.clone();
        // The first bytes of gzip hold a time and flags that nothing depends on.
        let at = at.max(12);
        flipped[at] ^= 0x10;
        check(&flipped, &format!("another byte at {at}")).await;
    }
    check(&good[..good.len() - 1], "cut off at its last byte").await;
    check(&[&good[..], b"more"].concat(), "with more behind it").await;
    check(b"", "empty").await;
    check(b"this is no backup", "no backup").await;
}

#[tokio::test]
async fn what_is_newer_is_refused() {
    let shelf = Shelf::new();
    let check = async |name: &str, change: fn(&mut Head), newer: bool| {
        let file = shelf.directory.path().join(name);
        let mut head = Head::new(0, connections::schema());
        change(&mut head);
        let mut writer = Writer::create(&file, 0).await.unwrap();
        writer.append(&Entry::Head, &json(&head), 0).await.unwrap();
        writer.finish().await.unwrap();
        let opened = Backup::open(&file, &Progress::default()).await.map(drop);
        assert_eq!(matches!(opened, Err(BackupError::Newer(_))), newer, "{name}: {opened:?}");
        assert!(opened.is_err(), "{name} has no manifest");
    };
    check("this", |_| {}, false).await;
    check("format", |head| head.format += 1, true).await;
    check("schema", |head| head.schema += 1, true).await;
    check("column", |head| head.tables[0].columns.push("color".into()), false).await;
}

#[tokio::test]
async fn what_is_not_there_is_said() {
    let (nowhere, shelf) = (tempfile::tempdir().unwrap(), Shelf::new());
    let place = DatabaseLocation { settings: StoreArgs::default(), data_dir: nowhere.path().to_owned() };
    let written = write(&place, &shelf.artifacts, &shelf.file(), &Progress::default()).await;
    assert!(written.as_ref().is_err_and(|error| error.to_string().contains("DATA_DIR")), "{written:?}");
    // Nothing is left of what was begun, and nothing was made to be read.
    assert_eq!(std::fs::read_dir(shelf.directory.path()).unwrap().count(), 1);
    assert_eq!(std::fs::read_dir(nowhere.path()).unwrap().count(), 0);
    let opened = Backup::open(&shelf.file(), &Progress::default()).await.map(drop);
    assert!(matches!(opened, Err(BackupError::Read { .. })), "{opened:?}");
}

#[tokio::test]
async fn an_archive_that_is_missing_is_named() {
    let (bench, shelf) = (Bench::sqlite().await, Shelf::new());
    let ada = bench.user("ada@example.org").await;
    bench.serving(ada.id, "hello").await;
    assert_eq!(shelf.back_up(&bench).await.missing, [Digest::of(b"hello")]);
    let backup = Backup::open(&shelf.file(), &Progress::default()).await.unwrap();
    assert_eq!(backup.summary().missing, [Digest::of(b"hello")]);
}

#[tokio::test]
async fn the_authority_can_be_left_out() {
    let (bench, shelf) = (Bench::sqlite().await, Shelf::new());
    fill(&bench).await;
    shelf.back_up(&bench).await;
    let rooms = FreshDatabase::sqlite();
    let mut backup = Backup::open(&shelf.file(), &Progress::default()).await.unwrap();
    assert_eq!(backup.authority().unwrap().certificate, [2, 0, 255]);
    backup.forget_authority();
    backup.restore(&place(&rooms), &shelf.artifacts, false, &Progress::default()).await.unwrap();
    let store = rooms.open().await;
    assert!(store.authorities().await.unwrap().is_none() && store.nodes().await.unwrap().len() == 2);
}
