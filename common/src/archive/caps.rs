//! How large an archive may be, in every direction that costs something.

use crate::settings::MIB;

/// The limits of an archive. The defaults let an ordinary project with its dependencies through.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Caps {
    /// Largest archive as it is uploaded, in MiB.
    #[arg(long, env = "MAX_ARCHIVE_MB", default_value_t = DEFAULT.max_archive_mb, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_archive_mb: u32,
    /// Largest archive unpacked, in MiB.
    #[arg(long, env = "ARCHIVE_MAX_UNPACKED_MB", default_value_t = DEFAULT.archive_max_unpacked_mb, value_parser = clap::value_parser!(u32).range(1..))]
    pub archive_max_unpacked_mb: u32,
    /// How many times its compressed size an archive may unpack to; the first 10 MiB are free.
    #[arg(long, env = "ARCHIVE_MAX_RATIO", default_value_t = DEFAULT.archive_max_ratio, value_parser = clap::value_parser!(u32).range(1..))]
    pub archive_max_ratio: u32,
    /// Most files, folders and links of an archive.
    #[arg(long, env = "ARCHIVE_MAX_ENTRIES", default_value_t = DEFAULT.archive_max_entries, value_parser = clap::value_parser!(u32).range(1..))]
    pub archive_max_entries: u32,
    /// Longest path in an archive, in bytes; one name in it is at most 255 bytes.
    #[arg(long, env = "ARCHIVE_MAX_PATH_BYTES", default_value_t = DEFAULT.archive_max_path_bytes, value_parser = clap::value_parser!(u32).range(1..=4000))]
    pub archive_max_path_bytes: u32,
    /// Most names in one path of an archive.
    #[arg(long, env = "ARCHIVE_MAX_DEPTH", default_value_t = DEFAULT.archive_max_depth, value_parser = clap::value_parser!(u32).range(1..))]
    pub archive_max_depth: u32,
    /// Largest extended header (pax attributes, GNU long name) of one entry, in KiB.
    #[arg(long, env = "ARCHIVE_MAX_HEADER_KB", default_value_t = DEFAULT.archive_max_header_kb, value_parser = clap::value_parser!(u32).range(1..))]
    pub archive_max_header_kb: u32,
}

impl Caps {
    /// Largest archive as it is uploaded, in bytes.
    #[must_use]
    pub fn archive_bytes(&self) -> u64 {
        u64::from(self.max_archive_mb) * MIB as u64
    }

    pub(super) fn unpacked_bytes(&self) -> u64 {
        u64::from(self.archive_max_unpacked_mb) * MIB as u64
    }

    pub(super) fn header_bytes(&self) -> u64 {
        u64::from(self.archive_max_header_kb) * 1024
    }
}

impl Default for Caps {
    fn default() -> Self {
        DEFAULT
    }
}

const DEFAULT: Caps = Caps {
    max_archive_mb: 50,
    archive_max_unpacked_mb: 512,
    archive_max_ratio: 100,
    archive_max_entries: 20_000,
    archive_max_path_bytes: 512,
    archive_max_depth: 64,
    archive_max_header_kb: 256,
};
