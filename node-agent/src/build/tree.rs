//! Directory trees that a user's command has left: checked for what could lead out of them, made readable, measured
//! and packed. No symbolic link is ever followed.

use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};

/// How large a tree is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Extent {
    /// Bytes of all its files.
    pub(crate) bytes: u64,
    /// Files, folders and links.
    pub(crate) entries: u64,
}

/// What a file system takes for an entry beside its bytes, at most: what is left of its last block, or its own.
const BLOCK_BYTES: u64 = 4096;
/// ext4 is made with one inode for so many bytes.
const INODE_SHARE_BYTES: u64 = 16 * 1024;

impl Extent {
    /// What such a tree takes of a disk: its blocks, and never less than the share of the disk that its entries have of
    /// the inodes. Many small files fill a disk that their bytes would not.
    pub(crate) fn room(self) -> u64 {
        let blocks = self.bytes.saturating_add(self.entries.saturating_mul(BLOCK_BYTES));
        blocks.max(self.entries.saturating_mul(INODE_SHARE_BYTES))
    }
}

/// A tree cannot become a build.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unfit {
    /// For the user: which file, and what is wrong with it.
    #[error("{0}")]
    Content(String),
    /// It could not be read or changed.
    #[error("the build's files cannot be read or changed")]
    Io(#[from] io::Error),
}

/// Where the build is after its command ended: `work` itself, or the folder `output` in it, which must be one.
pub(crate) fn output(work: &Path, output: Option<&str>) -> Result<PathBuf, Unfit> {
    let Some(output) = output else { return Ok(work.to_owned()) };
    let mut path = work.to_owned();
    for component in Path::new(output).components() {
        let Component::Normal(name) = component else {
            return Err(Unfit::Content(format!("the runtime's `output` is not a plain relative path: `{output}`")));
        };
        path.push(name);
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(Unfit::Content(format!("`{output}`, where the build should be, is not a folder"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Unfit::Content(format!("the build left no folder `{output}`")));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(path)
}

/// Makes a tree a build: everybody may read it, nobody's special bits stay, and no link leads out of it.
pub(crate) fn seal(root: &Path, max: Extent) -> Result<Extent, Unfit> {
    let mut extent = Extent::default();
    let mut walk = Walk::up_to(max.entries, root);
    make_folder_readable(root)?;
    while let Some((path, metadata)) = walk.next_entry()? {
        let shown = || path.strip_prefix(root).unwrap_or(&path).display();
        extent.entries += 1;
        let kind = metadata.file_type();
        if kind.is_dir() {
            make_folder_readable(&path)?;
        } else if kind.is_file() {
            extent.bytes += metadata.len();
            let mode = if metadata.permissions().mode() & 0o111 == 0 { 0o644 } else { 0o755 };
            fs::set_permissions(&path, Permissions::from_mode(mode))?;
        } else if kind.is_symlink() {
            let depth = path.strip_prefix(root).unwrap_or(&path).components().count() - 1;
            if leads_out(&fs::read_link(&path)?, depth) {
                return Err(Unfit::Content(format!("`{}` is a link that leads out of the build", shown())));
            }
        } else {
            return Err(Unfit::Content(format!("`{}` is neither a file nor a folder nor a link", shown())));
        }
        if extent.entries > max.entries || extent.bytes > max.bytes {
            let mib = max.bytes / (1024 * 1024);
            let text = format!("the build is larger than {mib} MiB or has more than {} files", max.entries);
            return Err(Unfit::Content(text));
        }
    }
    Ok(extent)
}

fn make_folder_readable(path: &Path) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(0o755))
}

/// Whether a link in a folder `depth` levels below the root leads out. `..` may stand at the beginning only: after
/// a name it could go through another link.
fn leads_out(target: &Path, depth: usize) -> bool {
    let mut up = 0;
    let mut named = false;
    target.components().any(|component| match component {
        Component::ParentDir => {
            up += 1;
            named || up > depth
        }
        Component::Normal(_) => {
            named = true;
            false
        }
        Component::CurDir => false,
        Component::RootDir | Component::Prefix(_) => true,
    })
}

/// How large a tree is.
pub(crate) fn measure(root: &Path) -> io::Result<Extent> {
    let mut extent = Extent::default();
    let mut walk = Walk::new(root);
    while let Some((_, metadata)) = walk.next_entry()? {
        extent.entries += 1;
        extent.bytes += if metadata.is_file() { metadata.len() } else { 0 };
    }
    Ok(extent)
}

/// Packs a sealed tree as a `tar.gz`: equal trees become equal files, whenever and by whom they were made.
pub(crate) fn pack(root: &Path, into: &Path) -> io::Result<()> {
    let file = io::BufWriter::new(File::create(into)?);
    let mut tar = tar::Builder::new(GzEncoder::new(file, Compression::fast()));
    let mut walk = Walk::new(root);
    while let Some((path, metadata)) = walk.next_entry()? {
        let name = path.strip_prefix(root).map_err(io::Error::other)?;
        let mut header = tar::Header::new_gnu();
        header.set_mode(metadata.permissions().mode() & 0o777);
        header.set_mtime(0);
        header.set_size(0);
        let kind = metadata.file_type();
        if kind.is_dir() {
            header.set_entry_type(tar::EntryType::Directory);
            tar.append_data(&mut header, name, io::empty())?;
        } else if kind.is_symlink() {
            header.set_entry_type(tar::EntryType::Symlink);
            tar.append_link(&mut header, name, fs::read_link(&path)?)?;
        } else {
            header.set_size(metadata.len());
            tar.append_data(&mut header, name, File::open(&path)?)?;
        }
    }
    tar.into_inner()?.finish()?.flush()
}

/// Removes a tree, also where its folders forbid it to their owner.
pub(crate) fn remove(root: &Path) -> io::Result<()> {
    match fs::remove_dir_all(root) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let mut walk = Walk::new(root);
            make_folder_readable(root)?;
            while let Some((path, metadata)) = walk.next_entry()? {
                if metadata.is_dir() {
                    make_folder_readable(&path)?;
                }
            }
            fs::remove_dir_all(root)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Every entry below a folder: each folder before what is in it, names in order.
struct Walk {
    /// Folders to read, and entries to yield; the last comes next.
    stack: Vec<PathBuf>,
    /// The folder that was yielded last: read when it is gone on, so that it can be made readable first.
    entered: Option<PathBuf>,
    /// How many entries more may be read. One beyond is yielded, for whoever counts: a folder of millions of names is
    /// never held.
    left: u64,
}

impl Walk {
    fn new(root: &Path) -> Self {
        Self::up_to(u64::MAX, root)
    }

    fn up_to(max: u64, root: &Path) -> Self {
        Self { stack: Vec::new(), entered: Some(root.to_owned()), left: max }
    }

    fn next_entry(&mut self) -> io::Result<Option<(PathBuf, fs::Metadata)>> {
        if let Some(folder) = self.entered.take() {
            let most = usize::try_from(self.left.saturating_add(1)).unwrap_or(usize::MAX);
            let entries = fs::read_dir(folder)?.take(most).map(|entry| entry.map(|entry| entry.path()));
            let mut entries = entries.collect::<io::Result<Vec<_>>>()?;
            self.left = self.left.saturating_sub(entries.len() as u64);
            entries.sort_unstable_by(|a, b| b.cmp(a));
            self.stack.append(&mut entries);
        }
        let Some(path) = self.stack.pop() else { return Ok(None) };
        let metadata = fs::symlink_metadata(&path)?;
        if metadata.is_dir() {
            self.entered = Some(path.clone());
        }
        Ok(Some((path, metadata)))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use common::archive::Caps;

    use super::*;

    const LARGE: Extent = Extent { bytes: u64::MAX, entries: u64::MAX };

    fn check(make: impl Fn(&Path), expected: Result<(), &str>) {
        let directory = tempfile::tempdir().unwrap();
        make(directory.path());
        match (seal(directory.path(), LARGE), expected) {
            (Ok(_), Ok(())) => {}
            (Err(Unfit::Content(text)), Err(part)) => assert!(text.contains(part), "{text} has no {part}"),
            (got, expected) => panic!("{got:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn what_may_be_in_a_build() {
        let folder = |root: &Path| fs::create_dir(root.join("bin")).unwrap();
        let link = |target: &'static str| {
            move |root: &Path| {
                folder(root);
                symlink(target, root.join("bin/l")).unwrap();
            }
        };
        check(|root| fs::write(root.join("main"), "x").unwrap(), Ok(()));
        check(link("../main"), Ok(()));
        check(link("main"), Ok(()));
        check(link("./a/b"), Ok(()));
        check(link("/etc/passwd"), Err("`bin/l` is a link that leads out"));
        check(link("../../x"), Err("leads out"));
        check(link("a/../../x"), Err("leads out"));
        let socket = |root: &Path| drop(std::os::unix::net::UnixListener::bind(root.join("s")).unwrap());
        check(socket, Err("`s` is neither"));
    }

    #[test]
    fn limits_of_size() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("main"), "12345").unwrap();
        assert!(seal(directory.path(), Extent { bytes: 5, entries: 1 }).is_ok());
        assert!(seal(directory.path(), Extent { bytes: 4, entries: 1 }).is_err());
        assert!(seal(directory.path(), Extent { bytes: 5, entries: 0 }).is_err());
        for name in 0..20 {
            fs::write(directory.path().join(name.to_string()), "").unwrap();
        }
        let mut walk = Walk::up_to(5, directory.path());
        let mut seen = 0;
        while walk.next_entry().unwrap().is_some() {
            seen += 1;
        }
        assert_eq!(seen, 6, "one more than may be, and not all");
    }

    #[test]
    fn what_a_tree_takes_of_a_disk() {
        let check = |bytes, entries, expected| assert_eq!(Extent { bytes, entries }.room(), expected);
        check(0, 0, 0);
        check(1, 1, 16 * 1024);
        check(1_000_000, 1, 1_004_096);
        check(20_000_000, 1000, 20_000_000 + 1000 * 4096);
        check(300_000, 300_000, 300_000 * 16 * 1024);
        check(u64::MAX, u64::MAX, u64::MAX);
    }

    #[test]
    fn output_is_a_real_folder() {
        let directory = tempfile::tempdir().unwrap();
        let work = directory.path();
        fs::create_dir_all(work.join("out/deep")).unwrap();
        fs::write(work.join("file"), "").unwrap();
        symlink("/etc", work.join("link")).unwrap();
        assert_eq!(output(work, None).unwrap(), work);
        assert_eq!(output(work, Some("out/deep")).unwrap(), work.join("out/deep"));
        for bad in ["file", "link", "none", "../x", "/etc"] {
            assert!(matches!(output(work, Some(bad)), Err(Unfit::Content(_))), "{bad}");
        }
    }

    #[test]
    fn packed_and_unpacked_it_is_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        fs::create_dir_all(from.join("a/b")).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(from.join("a/run"), "#!").unwrap();
        fs::set_permissions(from.join("a/run"), Permissions::from_mode(0o4700)).unwrap();
        fs::write(from.join("a").join("n".repeat(200)), "long").unwrap();
        fs::set_permissions(from.join("a/b"), Permissions::from_mode(0o000)).unwrap();
        symlink("a/run", from.join("start")).unwrap();
        let extent = seal(&from, LARGE).unwrap();
        let (first, second) = (directory.path().join("1"), directory.path().join("2"));
        pack(&from, &first).unwrap();
        pack(&from, &second).unwrap();
        assert_eq!(fs::read(&first).unwrap(), fs::read(&second).unwrap());
        common::archive::unpack(File::open(&first).unwrap(), None, &to, &Caps::default()).unwrap();
        assert_eq!(measure(&to).unwrap(), extent);
        assert_eq!(fs::metadata(to.join("start")).unwrap().permissions().mode() & 0o7777, 0o755);
        remove(&to).unwrap();
        assert!(!to.exists());
    }
}
