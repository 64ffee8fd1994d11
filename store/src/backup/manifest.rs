//! What a backup says of itself: at its beginning what it is, at its end what was in it.

use common::digest::Digest;
use serde::{Deserialize, Serialize};

use super::tables::{TABLES, Table};
use crate::artifacts::Artifact;

/// The form of the file. One that a program does not know it refuses.
pub(super) const FORMAT: u32 = 1;

/// `backup.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) format: u32,
    /// The version of the program that made it.
    pub(super) version: String,
    /// Seconds since 1970.
    pub(super) made_at: u64,
    /// The number of the database's last migration.
    pub(super) schema: i64,
    pub(super) tables: Vec<Layout>,
}

/// The columns of a table's rows, in their order.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Layout {
    pub(super) name: String,
    pub(super) columns: Vec<String>,
}

impl Head {
    pub(super) fn new(made_at: u64, schema: i64) -> Self {
        let layout = |table: &Table| Layout {
            name: table.name.to_owned(),
            columns: table.columns.iter().map(|(name, _)| (*name).to_owned()).collect(),
        };
        let tables = TABLES.iter().map(layout).collect();
        Self { format: FORMAT, version: env!("CARGO_PKG_VERSION").to_owned(), made_at, schema, tables }
    }
}

/// `manifest.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// All entries between the first and this one, in their order.
    pub(super) contents: Vec<Contained>,
    /// Archives that versions refer to and that the artifact store did not have.
    pub(super) missing: Vec<Digest>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Contained {
    pub(super) path: String,
    pub(super) bytes: u64,
    pub(super) sha256: Digest,
    /// How many rows it has, if it has rows.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) rows: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(rows: &u64) -> bool {
    *rows == 0
}

/// What lies in a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Head,
    /// Some rows of a table, and the how-manieth entry of that table it is.
    Rows(String, u64),
    Artifact(Artifact),
    Manifest,
}

impl Entry {
    pub(super) fn path(&self) -> String {
        match self {
            Self::Head => "backup.json".to_owned(),
            Self::Rows(table, number) => format!("rows/{table}/{number:06}.json"),
            Self::Artifact(Artifact::Archive(digest)) => format!("archives/{digest}.tar.gz"),
            Self::Artifact(Artifact::Build(digest)) => format!("builds/{digest}.tar.gz"),
            Self::Manifest => "manifest.json".to_owned(),
        }
    }

    pub(super) fn at(path: &str) -> Option<Self> {
        let digest = |name: &str| name.strip_suffix(".tar.gz")?.parse().ok();
        Some(match path.split('/').collect::<Vec<_>>()[..] {
            ["backup.json"] => Self::Head,
            ["manifest.json"] => Self::Manifest,
            ["rows", table, number] => Self::Rows(table.to_owned(), number.strip_suffix(".json")?.parse().ok()?),
            ["archives", name] => Self::Artifact(Artifact::Archive(digest(name)?)),
            ["builds", name] => Self::Artifact(Artifact::Build(digest(name)?)),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_says_what_it_is() {
        let digest = Digest::of(b"x");
        for entry in [
            Entry::Head,
            Entry::Manifest,
            Entry::Rows("users".into(), 7),
            Entry::Rows("users".into(), 12_345_678),
            Entry::Artifact(Artifact::Archive(digest)),
            Entry::Artifact(Artifact::Build(digest)),
        ] {
            assert_eq!(Entry::at(&entry.path()), Some(entry));
        }
        for path in ["", "rows/users", "rows/users/x.json", "archives/x.tar.gz", "../backup.json", "/backup.json"] {
            assert_eq!(Entry::at(path), None, "{path}");
        }
    }
}
