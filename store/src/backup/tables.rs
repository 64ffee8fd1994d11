//! Every table with its columns, and the SQL that turns rows into JSON and back, in either database's words. What is
//! not named here is not backed up, so a test compares this with what the migrations make.

/// Where a table lives in Postgres; in SQLite all are in one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Home {
    Main,
    /// FUNCTION_DB.
    FunctionData,
}

/// What a column holds, and how that is written down: ids and bytes in hex, JSON as the text that it is, times as
/// `2026-01-31 23:59:59.123`, numbers and booleans as JSON has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Id,
    Bytes,
    Text,
    Json,
    Number,
    Boolean,
    Time,
}

use Kind::{Boolean, Bytes, Id, Json, Number, Text, Time};

pub(super) type Column = (&'static str, Kind);

#[derive(Debug)]
pub(super) struct Table {
    pub(super) name: &'static str,
    pub(super) home: Home,
    pub(super) columns: &'static [Column],
    /// What its rows are told apart by.
    key: &'static str,
}

/// The fleet's authority, and the one before while it is trusted; their keys are sealed.
pub(super) const AUTHORITY: &str = "fleet_authority";

/// What is of the moment, and in no backup.
#[cfg(test)]
pub(super) const PASSING: [&str; 3] = ["changes", "claims", "node_links"];

/// All of them, in an order in which each finds what it refers to, but for `functions.active_version`.
pub(super) const TABLES: &[Table] = &[
    main(
        "users",
        "id",
        &[
            ("id", Id),
            ("email", Text),
            ("email_key", Text),
            ("handle", Text),
            ("password_hash", Text),
            ("operator", Boolean),
            ("created_at", Time),
            ("updated_at", Time),
        ],
    ),
    main(
        "refresh_tokens",
        "hash",
        &[
            ("hash", Bytes),
            ("family", Id),
            ("user_id", Id),
            ("expires_at", Time),
            ("spent_at", Time),
            ("created_at", Time),
        ],
    ),
    main("ended_sessions", "session_id", &[("session_id", Id), ("until", Time)]),
    main(
        AUTHORITY,
        "one",
        &[
            ("one", Boolean),
            ("certificate", Bytes),
            ("sealed_key", Bytes),
            ("former_certificate", Bytes),
            ("former_sealed_key", Bytes),
            ("created_at", Time),
        ],
    ),
    main(
        "join_tokens",
        "hash",
        &[("hash", Bytes), ("made_by", Id), ("expires_at", Time), ("used_at", Time), ("created_at", Time)],
    ),
    main(
        "nodes",
        "id",
        &[
            ("id", Id),
            ("name", Text),
            ("labels", Text),
            ("given_labels", Text),
            ("duty", Text),
            ("certificate_serial", Text),
            ("certificate_expires_at", Time),
            ("certificate_authority", Bytes),
            ("last_seen_at", Time),
            ("created_at", Time),
            ("updated_at", Time),
        ],
    ),
    main(
        "functions",
        "id",
        &[
            ("id", Id),
            ("owner_id", Id),
            ("name", Text),
            ("active_version", Number),
            ("created_at", Time),
            ("updated_at", Time),
            ("deleted_at", Time),
        ],
    ),
    main(
        "function_deployments",
        "id",
        &[
            ("id", Id),
            ("function_id", Id),
            ("version", Number),
            ("status", Text),
            ("runtime", Text),
            ("entrypoint", Text),
            ("archive", Text),
            ("archive_root", Text),
            ("access", Text),
            ("timeout_ms", Number),
            ("memory_mb", Number),
            ("concurrency", Number),
            ("env", Json),
            ("egress", Boolean),
            ("build_ms", Number),
            ("failure", Text),
            ("created_at", Time),
            ("updated_at", Time),
            ("contract", Text),
            ("idle_timeout_ms", Number),
            ("min_warm", Number),
            ("stale_while_cold_ms", Number),
            ("gateway_id", Id),
            ("node_selector", Text),
        ],
    ),
    main(
        "function_logs",
        "id",
        &[
            ("id", Id),
            ("function_id", Id),
            ("deployment_id", Id),
            ("source", Text),
            ("message", Text),
            ("created_at", Time),
        ],
    ),
    Table {
        name: "function_data",
        home: Home::FunctionData,
        columns: &[("function_id", Id), ("key", Text), ("value", Json), ("created_at", Time), ("updated_at", Time)],
        key: "function_id, key",
    },
    main(
        "function_invocations",
        "id",
        &[
            ("id", Id),
            ("function_id", Id),
            ("status", Text),
            ("duration_ms", Number),
            ("error", Text),
            ("logs", Json),
            ("request_info", Json),
            ("result", Text),
            ("success", Boolean),
            ("created_at", Time),
            ("deployment_id", Id),
            ("node_id", Id),
            ("outcome", Text),
            ("cold", Boolean),
            ("peak_memory_bytes", Number),
            ("gate_us", Number),
            ("auth_us", Number),
            ("queue_us", Number),
            ("cold_us", Number),
            ("fn_us", Number),
            ("total_us", Number),
            ("cold_cause", Text),
        ],
    ),
];

const fn main(name: &'static str, key: &'static str, columns: &'static [Column]) -> Table {
    Table { name, home: Home::Main, columns, key }
}

/// Whose SQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    Sqlite,
    Postgres,
}

impl Table {
    /// The table of this name.
    pub(super) fn named(name: &str) -> Option<&'static Self> {
        TABLES.iter().find(|table| table.name == name)
    }

    pub(super) fn column(&self, name: &str) -> Option<Column> {
        self.columns.iter().copied().find(|(known, _)| *known == name)
    }

    /// Each row as the text of a JSON array of its columns.
    pub(super) fn select(&self, dialect: Dialect) -> String {
        let values = list(self.columns.iter().map(|column| dialect.out(*column)));
        let Self { name, key, .. } = self;
        match dialect {
            Dialect::Sqlite => format!("SELECT json_array({values}) FROM {name} ORDER BY {key}"),
            Dialect::Postgres => format!("SELECT json_build_array({values})::text FROM {name} ORDER BY {key}"),
        }
    }

    /// Inserts such rows, an array of them as the parameter; of each, `columns` in their order.
    pub(super) fn insert(&self, dialect: Dialect, columns: &[Column]) -> String {
        let names = list(columns.iter().map(|(name, _)| (*name).to_owned()));
        let values = list(columns.iter().enumerate().map(|(at, (_, kind))| dialect.back(at, *kind)));
        let rows = match dialect {
            Dialect::Sqlite => "json_each($1)",
            Dialect::Postgres => "jsonb_array_elements($1::jsonb) AS row (value)",
        };
        format!("INSERT INTO {} ({names}) SELECT {values} FROM {rows}", self.name)
    }
}

impl Dialect {
    fn out(self, (name, kind): Column) -> String {
        match (self, kind) {
            // SQLite's hex() makes a text of NULL, too.
            (Self::Sqlite, Id | Bytes) => format!("CASE WHEN {name} IS NOT NULL THEN lower(hex({name})) END"),
            (Self::Sqlite, Boolean) => {
                format!("json(CASE {name} WHEN TRUE THEN 'true' WHEN FALSE THEN 'false' ELSE 'null' END)")
            }
            (Self::Postgres, Id) => format!("replace({name}::text, '-', '')"),
            (Self::Postgres, Bytes) => format!("encode({name}, 'hex')"),
            (Self::Postgres, Json) => format!("{name}::text"),
            (Self::Postgres, Time) => format!("to_char({name}, 'YYYY-MM-DD HH24:MI:SS.US')"),
            _ => name.to_owned(),
        }
    }

    fn back(self, at: usize, kind: Kind) -> String {
        match (self, kind) {
            (Self::Sqlite, Id | Bytes) => format!("unhex(value ->> {at})"),
            (Self::Postgres, Id) => format!("(value ->> {at})::uuid"),
            (Self::Postgres, Bytes) => format!("decode(value ->> {at}, 'hex')"),
            (Self::Postgres, Json) => format!("(value ->> {at})::jsonb"),
            (Self::Postgres, Number) => format!("(value ->> {at})::bigint"),
            (Self::Postgres, Boolean) => format!("(value ->> {at})::boolean"),
            (Self::Postgres, Time) => format!("(value ->> {at})::timestamp"),
            _ => format!("value ->> {at}"),
        }
    }
}

fn list(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(", ")
}
