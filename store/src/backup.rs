//! Backup, restore, and moving from one database to another. All three are the same: the rows of every table, read in
//! one snapshot as JSON that belongs to no database, and written in one transaction. A backup puts a file between the
//! two, and the artifacts into it.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use common::digest::Digest;
use futures_util::TryStreamExt as _;
use futures_util::stream::BoxStream;

use crate::artifacts::{Artifact, Artifacts};
use crate::{Error, StoreArgs, moved};

mod checked;
mod connections;
mod file;
mod manifest;
mod tables;
#[cfg(test)]
mod tests;

pub use checked::Backup;
use connections::Connections;
use file::Writer;
use manifest::{Entry, Head};
use tables::{TABLES, Table};

/// Rows of one entry, and bytes after which it ends earlier. A single row may be larger.
const MAX_ROWS: u64 = 2000;
const MAX_BYTES: usize = 1024 * 1024;

/// Why there is no backup, or nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The database.
    #[error(transparent)]
    Store(#[from] Error),
    /// The file that would be written is there.
    #[error("{0} exists: name another file")]
    Exists(String),
    /// A file or an artifact cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file or an artifact cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is none, or not the one that was written.
    #[error("the backup is damaged ({0}), or is none: take another one")]
    Damaged(String),
    /// Its end is missing.
    #[error("the backup is cut off: copy it again, or take another one")]
    CutOff,
    /// A newer program made it.
    #[error("the backup was made by version {0}, which is newer: restore it with the programs of that version")]
    Newer(String),
    /// There are rows in the database.
    #[error("the database is not empty: name an empty one, or say --replace to delete everything that is in it")]
    NotEmpty,
    /// What was written is not what was read.
    #[error("of {table} there are {found} rows where {expected} were read: nothing was changed")]
    Count {
        /// Which table.
        table: &'static str,
        /// In the database.
        found: u64,
        /// In the source.
        expected: u64,
    },
}

impl BackupError {
    fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged(what.into())
    }

    fn reading(path: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_string();
        |source| Self::Read { path, source }
    }

    fn writing(path: &Path) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.display().to_string();
        |source| Self::Write { path, source }
    }
}

/// How far it is, for whoever waits.
#[derive(Debug, Default)]
pub struct Progress {
    rows: AtomicU64,
    bytes: AtomicU64,
}

impl Progress {
    /// Rows that were read or written.
    pub fn rows(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }

    /// Bytes of archives and builds, or of the backup.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn add(&self, rows: u64, bytes: u64) {
        self.rows.fetch_add(rows, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// What was backed up, restored or copied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Rows by table.
    pub rows: BTreeMap<&'static str, u64>,
    /// Archives and builds.
    pub artifacts: u64,
    /// Archives that versions refer to and that are not there: those versions cannot be built again.
    pub missing: Vec<Digest>,
}

/// A database: its settings, and the directory where SQLite's file lies.
#[derive(Clone, Debug)]
pub struct DatabaseLocation {
    /// Which database.
    pub settings: StoreArgs,
    /// Where SQLite's file is, if it is SQLite.
    pub data_dir: PathBuf,
}

impl DatabaseLocation {
    /// Whether what is there is the database still.
    fn check(&self) -> Result<(), Error> {
        if self.settings.postgres()?.is_some() { Ok(()) } else { moved::check(&self.data_dir) }
    }
}

/// Writes everything that `from` and `artifacts` hold into the file `target`, as it is at this moment. Gateways may run.
///
/// # Errors
/// The file is there already, or something cannot be read or written. Then there is no file.
pub async fn write(
    from: &DatabaseLocation,
    artifacts: &Artifacts,
    target: &Path,
    progress: &Progress,
) -> Result<Summary, BackupError> {
    let made_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    from.check()?;
    let mut writer = Writer::create(target, made_at).await?;
    let mut source = Connections::to_read(&from.settings, &from.data_dir).await?;
    let head = Head::new(made_at, connections::schema());
    writer.append(&Entry::Head, &json(&head), 0).await?;
    let mut summary = Summary::default();
    let mut archives = HashSet::new();
    for table in TABLES {
        let archive = table.columns.iter().position(|column| column.0 == "archive");
        let mut chunks = Chunks::of(&mut source, table);
        let mut number = 0;
        while let Some(chunk) = chunks.next().await? {
            if let Some(column) = archive {
                archives.extend(digests(&chunk.text, column)?);
            }
            writer.append(&Entry::Rows(table.name.to_owned(), number), chunk.text.as_bytes(), chunk.rows).await?;
            *summary.rows.entry(table.name).or_default() += chunk.rows;
            progress.add(chunk.rows, 0);
            number += 1;
        }
    }
    // The snapshot is over: what the versions in it refer to is never changed.
    drop(source);
    let listed: Vec<_> = artifacts
        .list()
        .map_ok(|kept| kept.artifact)
        .try_collect()
        .await
        .map_err(BackupError::reading("the artifact store"))?;
    let builds = listed.into_iter().filter(|artifact| matches!(artifact, Artifact::Build(_)));
    for artifact in archives.into_iter().map(Artifact::Archive).chain(builds) {
        let entry = Entry::Artifact(artifact);
        match (artifacts.read(artifact).await.map_err(BackupError::reading(entry.path()))?, artifact) {
            (Some((file, len)), _) => {
                writer.copy(&entry, file, len).await?;
                summary.artifacts += 1;
                progress.add(0, len);
            }
            (None, Artifact::Archive(digest)) => summary.missing.push(digest),
            // It was there a moment ago, and can be made again.
            (None, Artifact::Build(_)) => {}
        }
    }
    let manifest = serde_json::json!({"contents": writer.contents(), "missing": summary.missing});
    writer.append(&Entry::Manifest, &json(&manifest), 0).await?;
    writer.finish().await?;
    Ok(summary)
}

/// Copies every row of `from` to `to`, all or none. Archives and builds stay where they are. No gateway may run.
///
/// # Errors
/// The database is not empty, or one of them fails. Then no row was changed.
pub async fn copy(
    from: &DatabaseLocation,
    to: &DatabaseLocation,
    replace: bool,
    progress: &Progress,
) -> Result<Summary, BackupError> {
    let mut source = Connections::to_read(&from.settings, &from.data_dir).await?;
    let mut target = open_target(to, replace).await?;
    let mut summary = Summary::default();
    for table in TABLES {
        let sql = table.insert(target.dialect(), table.columns);
        let mut chunks = Chunks::of(&mut source, table);
        while let Some(chunk) = chunks.next().await? {
            target.insert(table.home, &sql, &chunk.text).await?;
            *summary.rows.entry(table.name).or_default() += chunk.rows;
            progress.add(chunk.rows, 0);
        }
    }
    finish(target, &summary).await?;
    note_move(from, to)?;
    Ok(summary)
}

/// Where a database was, nobody is to go on.
fn note_move(from: &DatabaseLocation, to: &DatabaseLocation) -> Result<(), BackupError> {
    let noted = match (from.settings.postgres()?, to.settings.postgres()?) {
        (None, Some(main)) => moved::note(&from.data_dir, &main),
        (_, None) => moved::forget(&to.data_dir),
        (Some(_), Some(_)) => Ok(()),
    };
    noted.map_err(|source| BackupError::Write { path: from.data_dir.display().to_string(), source })
}

async fn open_target(to: &DatabaseLocation, replace: bool) -> Result<Connections, BackupError> {
    let mut target = Connections::to_write(&to.settings, &to.data_dir).await?;
    if replace {
        target.clear().await?;
    } else if !target.is_empty().await? {
        return Err(BackupError::NotEmpty);
    }
    Ok(target)
}

/// Counts, and only then makes it last.
async fn finish(mut target: Connections, summary: &Summary) -> Result<(), BackupError> {
    for table in TABLES {
        let expected = summary.rows.get(table.name).copied().unwrap_or_default();
        let found = target.count(table).await?;
        if found != expected {
            return Err(BackupError::Count { table: table.name, found, expected });
        }
    }
    target.drop_orphans().await?;
    Ok(target.commit().await?)
}

/// Rows of one entry: an array of arrays, a line each.
struct Chunk {
    text: String,
    rows: u64,
}

/// A table's rows, some at a time.
struct Chunks<'c> {
    rows: BoxStream<'c, Result<String, Error>>,
}

impl<'c> Chunks<'c> {
    fn of(source: &'c mut Connections, table: &Table) -> Self {
        Self { rows: source.rows(table) }
    }

    async fn next(&mut self) -> Result<Option<Chunk>, Error> {
        let (mut text, mut rows) = (String::new(), 0);
        while rows < MAX_ROWS && text.len() < MAX_BYTES {
            let Some(row) = self.rows.try_next().await? else { break };
            text.push_str(if rows == 0 { "[\n" } else { ",\n" });
            text.push_str(&row);
            rows += 1;
        }
        text.push_str("\n]\n");
        Ok((rows > 0).then_some(Chunk { text, rows }))
    }
}

/// The digests in a column of some rows.
fn digests(rows: &str, column: usize) -> Result<Vec<Digest>, Error> {
    let rows: Vec<Vec<serde_json::Value>> = serde_json::from_str(rows).map_err(|_| Error::Damaged("version"))?;
    let digest = |row: &Vec<serde_json::Value>| row.get(column)?.as_str()?.parse().ok();
    rows.iter().map(|row| digest(row).ok_or(Error::Damaged("digest"))).collect()
}

fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("its maps have text for keys, and nothing in it can fail")
}
