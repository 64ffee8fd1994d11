//! A file system of a build's own, in a file: whatever the build writes, removes and still holds open, or nests, it
//! takes no more of the node's disk than that file may, and is gone with it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::mount::{UnmountFlags, unmount};

use super::command;
use super::mount_table::mount_points;

/// How long the making may take; it copies an unpacked archive.
const MAKE_LIMIT: Duration = Duration::from_secs(60);
/// How long the mount may take.
const MOUNT_LIMIT: Duration = Duration::from_secs(10);
/// Bytes that ext4 keeps for each inode.
const INODE_BYTES: u64 = 256;
/// What ext4 needs beside, at least, in bytes; and the share of the data that its own tables may be.
const OWN_BYTES: u64 = 16 * 1024 * 1024;
const OWN_SHARE: u64 = 16;

/// A file system over a directory. Dropping it takes it away, with all that was written to it.
#[derive(Debug)]
pub struct Disk {
    mounted: PathBuf,
    image: PathBuf,
}

impl Disk {
    /// Lays one over `work`, with all that is in there, and room for this much.
    pub(super) async fn over(work: &Path, bytes: u64, entries: u64) -> io::Result<Self> {
        let disk = Self { mounted: work.to_path_buf(), image: work.with_extension("disk") };
        // Sparse: it takes what is written.
        let size = bytes + bytes / OWN_SHARE + entries * INODE_BYTES + OWN_BYTES;
        File::create_new(&disk.image)?.set_len(size)?;
        let (work, image) = (utf8(&disk.mounted)?, utf8(&disk.image)?);
        let inodes = entries.to_string();
        let words = ["-q", "-t", "ext4", "-F", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard", "-m", "0"];
        let words = [&words[..], &["-N", &inodes, "-d", work, image]].concat();
        command::run("mke2fs", &words, "", MAKE_LIMIT).await?;
        let options = "loop,nosuid,nodev,noinit_itable";
        command::run("mount", &["-t", "ext4", "-o", options, image, work], "", MOUNT_LIMIT).await?;
        // Only ext4's own: one of the archive's with something in it stays.
        let _ = fs::remove_dir(disk.mounted.join("lost+found"));
        Ok(disk)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Nobody is left to tell; the next start removes what stays. A mount that failed is none to take away.
        let _ = unmount(&self.mounted, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        let _ = fs::remove_file(&self.image);
    }
}

/// Takes away the file systems that an earlier agent left under `directory`. What is mounted on `directory` itself is the
/// operator's own disk.
///
/// # Errors
/// The mounts cannot be read or taken away.
pub fn release(directory: &Path) -> io::Result<()> {
    let Ok(directory) = directory.canonicalize() else { return Ok(()) };
    let mounted = mount_points(&fs::read("/proc/self/mountinfo")?, &directory);
    for mounted in mounted.iter().rev().filter(|mounted| **mounted != directory) {
        unmount(mounted, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
    }
    Ok(())
}

fn utf8(path: &Path) -> io::Result<&str> {
    path.to_str().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "DATA_DIR is not UTF-8"))
}
