//! What a directory takes of the disk while a build goes on changing it. The walk is by descriptors and never by
//! paths: a folder that becomes a link between two looks would lead root out of the directory.

use std::io;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, statat, statvfs};

/// Deepest nesting that is measured, in folders; each level holds a descriptor.
const MAX_DEPTH: usize = 200;
/// A file system with less space than this, in bytes, is taken for full, so that all else on the node goes on.
const LEAST_FREE_BYTES: u64 = 256 * 1024 * 1024;
/// The same for its inodes, where it counts them.
const LEAST_FREE_INODES: u64 = 10_000;

/// Bytes on disk, and files, folders and links.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) bytes: u64,
    pub(super) entries: u64,
}

/// What a directory takes, unless that is more than `max` of either: then the walk ends there. What is gone again
/// when it is looked at counts as nothing; folders that are nested too deeply count as too many.
pub(super) fn measure(directory: &Path, max: Usage) -> io::Result<Usage> {
    let mut usage = Usage::default();
    let folder = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut open = vec![Dir::new(openat(CWD, directory, folder, Mode::empty())?)?];
    loop {
        let depth = open.len();
        let Some(dir) = open.last_mut() else { break };
        let Some(Ok(entry)) = dir.read() else {
            open.pop();
            continue;
        };
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let Ok(found) = statat(dir.fd()?, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        usage.entries += 1;
        usage.bytes += u64::try_from(found.st_blocks).unwrap_or(0) * 512;
        if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
            if depth == MAX_DEPTH {
                usage.entries = u64::MAX;
                break;
            } else if let Ok(inner) = openat(dir.fd()?, name, folder, Mode::empty()).and_then(Dir::new) {
                open.push(inner);
            }
        }
        if usage.bytes > max.bytes || usage.entries > max.entries {
            break;
        }
    }
    Ok(usage)
}

/// Whether the file system of a directory is nearly full. A build can also fill it with what no walk finds: files
/// that it has removed and still writes to.
pub(super) fn is_full(directory: &Path) -> io::Result<bool> {
    let space = statvfs(directory)?;
    let inodes_count = space.f_files > 0;
    Ok(space.f_bavail * space.f_frsize < LEAST_FREE_BYTES || inodes_count && space.f_favail < LEAST_FREE_INODES)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const ALL: Usage = Usage { bytes: u64::MAX, entries: u64::MAX };

    #[test]
    fn links_are_counted_and_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::create_dir(root.join("a")).unwrap();
        fs::write(root.join("a/full"), vec![1; 100_000]).unwrap();
        fs::write(root.join("a/empty"), "").unwrap();
        std::os::unix::fs::symlink("/", root.join("a/link")).unwrap();
        let usage = measure(root, ALL).unwrap();
        assert_eq!(usage.entries, 4);
        assert!((100_000..200_000).contains(&usage.bytes), "{usage:?}");
        // Nor is the directory itself, once it is a link.
        std::os::unix::fs::symlink(root, root.join("a/self")).unwrap();
        assert!(measure(&root.join("a/self"), ALL).is_err());
    }

    #[test]
    fn the_walk_ends_at_the_limit() {
        let directory = tempfile::tempdir().unwrap();
        for name in 0..100 {
            fs::write(directory.path().join(name.to_string()), "").unwrap();
        }
        assert_eq!(measure(directory.path(), Usage { entries: 10, ..ALL }).unwrap().entries, 11);
        let deep = directory.path().join(vec!["d"; MAX_DEPTH - 1].join("/"));
        fs::create_dir_all(&deep).unwrap();
        assert_eq!(measure(directory.path(), ALL).unwrap().entries, 100 + MAX_DEPTH as u64 - 1);
        fs::create_dir(deep.join("d")).unwrap();
        assert_eq!(measure(directory.path(), ALL).unwrap().entries, u64::MAX);
    }
}
