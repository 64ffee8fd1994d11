//! A backup that was read to its end before anything is done with it.

use std::path::Path;

use common::digest::{Digest, Hasher};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::fs::File;

use super::file::{self, Reader};
use super::manifest::{Entry, FORMAT, Head, Layout, Manifest};
use super::tables::{AUTHORITY, Column, Table};
use super::{BackupError, DatabaseLocation, Progress, Summary, connections, finish, open_target};
use crate::artifacts::Artifacts;
use crate::fleet::Authority;

/// A backup that was read to its end and found whole.
pub struct Backup {
    file: File,
    head: Head,
    summary: Summary,
    /// The fleet's authority, with its key as it was sealed.
    authority: Option<Authority>,
}

impl Backup {
    /// Reads all of `path` and checks it.
    ///
    /// # Errors
    /// It is damaged, cut off, or of a newer version.
    pub async fn open(path: &Path, progress: &Progress) -> Result<Self, BackupError> {
        let mut file = file::open(path).await?;
        let mut reader = Reader::new(&mut file).await?;
        let text = first(&mut reader).await?;
        let head = head(&text)?;
        let mut authority = None;
        let mut seen = vec![(Entry::Head.path(), text.len() as u64, Digest::of(text.as_bytes()))];
        let manifest: Manifest = loop {
            let (entry, len) = reader.next().await?.ok_or_else(|| BackupError::damaged("it has no manifest"))?;
            match &entry {
                Entry::Manifest => break parse(&reader.text().await?, "its manifest")?,
                Entry::Rows(table, _) if table == AUTHORITY => {
                    let text = reader.text().await?;
                    authority = sealed(&text, &head)?;
                    seen.push((entry.path(), len, Digest::of(text.as_bytes())));
                }
                _ => {
                    let mut hasher = Hasher::default();
                    while let Some(bytes) = reader.next_bytes().await? {
                        hasher.update(&bytes);
                        progress.add(0, bytes.len() as u64);
                    }
                    seen.push((entry.path(), len, hasher.finish()));
                }
            }
        };
        if reader.next().await?.is_some() {
            return Err(BackupError::damaged("its end"));
        }
        reader.end().await?;
        let summary = check(&seen, manifest)?;
        Ok(Self { file, head, summary, authority })
    }

    /// What is in it.
    #[must_use]
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// When it was made, in seconds since 1970.
    #[must_use]
    pub fn made_at(&self) -> u64 {
        self.head.made_at
    }

    /// The fleet's authority, sealed under the `JWT_SECRET` of the platform that this is a backup of.
    #[must_use]
    pub fn authority(&self) -> Option<&Authority> {
        self.authority.as_ref()
    }

    /// Leaves the authority out, so that the platform makes another one and every node joins again.
    pub fn forget_authority(&mut self) {
        self.authority = None;
        self.summary.rows.remove(AUTHORITY);
    }

    /// Puts everything into `to` and `artifacts`: artifacts first, which harm nobody, then the rows, all or none. With
    /// `replace` what the database holds is deleted. No gateway may run.
    ///
    /// # Errors
    /// The database is not empty, or something cannot be read or written. Then no row was changed.
    pub async fn restore(
        &mut self,
        to: &DatabaseLocation,
        artifacts: &Artifacts,
        replace: bool,
        progress: &Progress,
    ) -> Result<(), BackupError> {
        to.check()?;
        let mut target = open_target(to, replace).await?;
        self.restore_artifacts(artifacts, progress).await?;
        let mut reader = Reader::new(&mut self.file).await?;
        while let Some((entry, _)) = reader.next().await? {
            let Entry::Rows(name, _) = entry else { continue };
            if name == AUTHORITY && self.authority.is_none() {
                continue;
            }
            let (table, columns) = layout(&self.head, &name)?;
            let sql = table.insert(target.dialect(), &columns);
            let rows = target.insert(table.home, &sql, &reader.text().await?).await?;
            progress.add(rows, 0);
        }
        finish(target, &self.summary).await
    }

    async fn restore_artifacts(&mut self, artifacts: &Artifacts, progress: &Progress) -> Result<(), BackupError> {
        let mut reader = Reader::new(&mut self.file).await?;
        while let Some((entry, _)) = reader.next().await? {
            let Entry::Artifact(artifact) = entry else { continue };
            let failed = || BackupError::writing(Path::new(&Entry::Artifact(artifact).path()));
            if artifacts.has(artifact).await.map_err(failed())? {
                continue;
            }
            let mut incoming = artifacts.begin().await.map_err(failed())?;
            while let Some(bytes) = reader.next_bytes().await? {
                incoming.write(&bytes).await.map_err(failed())?;
                progress.add(0, bytes.len() as u64);
            }
            incoming.keep(artifact).await.map_err(failed())?;
        }
        Ok(())
    }
}

/// What every version can say of itself.
#[derive(Deserialize)]
struct AnyHead {
    format: u32,
    version: String,
    schema: i64,
}

const FIRST: &str = "its first entry";

async fn first(reader: &mut Reader<'_>) -> Result<String, BackupError> {
    match reader.next().await? {
        Some((Entry::Head, _)) => reader.text().await,
        _ => Err(BackupError::damaged(FIRST)),
    }
}

/// What the backup is, if this program understands it.
fn head(text: &str) -> Result<Head, BackupError> {
    let any: AnyHead = parse(text, FIRST)?;
    if any.format > FORMAT || any.schema > connections::schema() {
        return Err(BackupError::Newer(any.version));
    }
    let head: Head = parse(text, FIRST)?;
    for table in &head.tables {
        layout(&head, &table.name)?;
    }
    Ok(head)
}

/// A table of the backup and its columns, as this program knows them.
fn layout(head: &Head, name: &str) -> Result<(&'static Table, Vec<Column>), BackupError> {
    let unknown = || BackupError::damaged(format!("an unknown table `{name}` or column of it"));
    let Layout { columns, .. } = head.tables.iter().find(|table| table.name == name).ok_or_else(unknown)?;
    let table = Table::named(name).ok_or_else(unknown)?;
    let columns: Option<Vec<_>> = columns.iter().map(|column| table.column(column)).collect();
    Ok((table, columns.ok_or_else(unknown)?))
}

/// The authority out of the one row of its table.
fn sealed(rows: &str, head: &Head) -> Result<Option<Authority>, BackupError> {
    let what = "the fleet's authority";
    let rows: Vec<Vec<Value>> = parse(rows, what)?;
    let Some(row) = rows.first() else { return Ok(None) };
    let (_, columns) = layout(head, AUTHORITY)?;
    let bytes = |name| {
        let at = columns.iter().position(|column| column.0 == name)?;
        of_hex(row.get(at)?.as_str()?)
    };
    let authority = bytes("certificate")
        .zip(bytes("sealed_key"))
        .map(|(certificate, sealed_key)| Authority { certificate, sealed_key });
    authority.map(Some).ok_or_else(|| BackupError::damaged(what))
}

/// Holds what was read to what the manifest says; how much there is of what.
fn check(seen: &[(String, u64, Digest)], manifest: Manifest) -> Result<Summary, BackupError> {
    if seen.len() != manifest.contents.len() {
        return Err(BackupError::damaged("entries are missing"));
    }
    let mut summary = Summary { missing: manifest.missing, ..Summary::default() };
    for ((path, len, digest), entry) in seen.iter().zip(&manifest.contents) {
        if (path, *len, *digest) != (&entry.path, entry.bytes, entry.sha256) {
            return Err(BackupError::damaged(format!("{path} is not what was written")));
        }
        match Entry::at(path) {
            Some(Entry::Rows(table, _)) => {
                let table = Table::named(&table).ok_or_else(|| BackupError::damaged(path.clone()))?;
                *summary.rows.entry(table.name).or_default() += entry.rows;
            }
            Some(Entry::Artifact(_)) => summary.artifacts += 1,
            _ => {}
        }
    }
    Ok(summary)
}

fn of_hex(text: &str) -> Option<Vec<u8>> {
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    text.as_bytes().chunks(2).map(byte).collect()
}

fn parse<T: DeserializeOwned>(text: &str, what: &str) -> Result<T, BackupError> {
    serde_json::from_str(text).map_err(|_| BackupError::damaged(what))
}
