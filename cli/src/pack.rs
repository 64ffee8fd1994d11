//! Packing a folder as an archive. The same files make the same bytes, so that the server finds the build that it
//! has: names in order, no owners, no times.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek as _, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use common::manifest;
use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{Builder, EntryType, Header};

use crate::failure;
use crate::ignore::{self, Ignore};

/// A packed folder, at its beginning, and its size in bytes. The file has no name: it is gone when it is closed.
pub(crate) struct Packed {
    pub(crate) file: File,
    pub(crate) bytes: u64,
    pub(crate) files: usize,
}

/// What a folder may hold. Servers take less, and say how much; this is for who named another folder than he meant.
#[derive(Clone, Copy)]
struct Most {
    /// Files, folders and links.
    entries: usize,
    bytes: u64,
}

const MOST: Most = Most { entries: 100_000, bytes: 2 * 1024 * 1024 * 1024 };

/// Packs `folder` but for `.git` and what its `.dartcloudignore` names.
///
/// # Errors
/// The folder is none, or no function's, or cannot be read, or holds what cannot be deployed (a socket, a device).
pub(crate) fn pack(folder: &Path) -> anyhow::Result<Packed> {
    if !folder.is_dir() {
        return Err(failure::wrong(format!("{} is not a folder: name the one to deploy", folder.display())));
    }
    let home = std::env::var_os("HOME").and_then(|home| fs::canonicalize(home).ok());
    if is_everything(folder, home.as_deref()) {
        let (folder, manifest) = (folder.display(), manifest::FILE);
        return Err(failure::wrong(format!(
            "{folder} holds more than a function: name the folder with the code, or put a {manifest} into this one"
        )));
    }
    let ignore = match fs::read_to_string(folder.join(ignore::FILE)) {
        Ok(text) => Ignore::parse(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ignore::default(),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", ignore::FILE)),
    };
    let file = tempfile::tempfile().context("cannot make a temporary file")?;
    let mut builder = Builder::new(GzEncoder::new(BufWriter::new(file), Compression::default()));
    let mut files = 0;
    for path in listing(folder, &ignore, MOST)? {
        files += 1;
        let name = path.strip_prefix(folder).context("a path outside of the folder")?;
        add(&mut builder, &path, name).with_context(|| format!("cannot pack {}", path.display()))?;
    }
    let mut file = builder.into_inner()?.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.flush()?;
    let bytes = file.stream_position()?;
    file.rewind()?;
    Ok(Packed { file, bytes, files })
}

/// Whether `folder` is the whole machine, or all that its user has: keys and passwords would go along. One with a
/// manifest is meant.
fn is_everything(folder: &Path, home: Option<&Path>) -> bool {
    let is_all = folder.parent().is_none() || home == Some(folder);
    is_all && !folder.join(manifest::FILE).exists()
}

/// The files and links of `folder`, in order. Folders come with what is in them; empty ones do not.
fn listing(folder: &Path, ignore: &Ignore, most: Most) -> anyhow::Result<Vec<PathBuf>> {
    let (mut seen, mut bytes) = (0, 0);
    let mut found = Vec::new();
    let mut ahead = vec![folder.to_path_buf()];
    while let Some(next) = ahead.pop() {
        let entries = fs::read_dir(&next).with_context(|| format!("cannot read {}", next.display()))?;
        for entry in entries {
            let entry = entry?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            let name =
                path.strip_prefix(folder).unwrap_or(&path).to_str().ok_or_else(|| {
                    failure::wrong(format!("{} has a name that is not UTF-8: rename it", path.display()))
                })?;
            if ignore.covers(name, kind.is_dir()) {
                continue;
            }
            seen += 1;
            if kind.is_dir() {
                ahead.push(path);
            } else {
                bytes += entry.metadata().with_context(|| format!("cannot read {}", path.display()))?.len();
                found.push(path);
            }
            if seen > most.entries || bytes > most.bytes {
                return Err(failure::wrong(format!(
                    "{} is too large for a function: name the folder with the code, or list what is not needed in {}",
                    folder.display(),
                    ignore::FILE
                )));
            }
        }
    }
    found.sort();
    Ok(found)
}

fn add(builder: &mut Builder<impl Write>, path: &Path, name: &Path) -> anyhow::Result<()> {
    let kind = fs::symlink_metadata(path)?;
    let mut header = Header::new_gnu();
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    if kind.is_symlink() {
        header.set_entry_type(EntryType::Symlink);
        header.set_mode(0o777);
        header.set_size(0);
        return Ok(builder.append_link(&mut header, name, fs::read_link(path)?)?);
    }
    if !kind.is_file() {
        return Err(failure::wrong(format!("it is not a file, a folder or a link: list it in {}", ignore::FILE)));
    }
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let executable = metadata.permissions().mode() & 0o111 != 0;
    header.set_entry_type(EntryType::Regular);
    header.set_mode(if executable { 0o755 } else { 0o644 });
    header.set_size(metadata.len());
    let mut data = Exactly { file, left: metadata.len() };
    Ok(builder.append_data(&mut header, name, &mut data)?)
}

/// A file of the size that was announced for it, whatever is done to it meanwhile.
struct Exactly {
    file: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(into.len());
        let read = self.file.read(&mut into[..most])?;
        if read == 0 && most > 0 {
            return Err(io::Error::other("it shrank while it was packed: try again"));
        }
        self.left -= read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use common::archive;

    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in files {
            let path = folder.path().join(name.trim_end_matches('*'));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, name).unwrap();
            let mode = if name.ends_with('*') { 0o700 } else { 0o600 };
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        folder
    }

    fn bytes(folder: &Path) -> Vec<u8> {
        let mut packed = pack(folder).unwrap();
        let mut bytes = Vec::new();
        packed.file.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, packed.bytes);
        bytes
    }

    #[test]
    fn what_is_packed_is_taken() {
        let deep = format!("{}/{}", "d".repeat(120), "f".repeat(120));
        let folder = folder(&["main.py", "bin/run*", ".git/HEAD", "a/x.pyc", "venv/lib.py", &deep]);
        fs::write(folder.path().join(ignore::FILE), "*.pyc\nvenv/\n").unwrap();
        symlink("../main.py", folder.path().join("bin/link")).unwrap();
        let contents = archive::check(&bytes(folder.path())[..], &archive::Caps::default()).unwrap();
        assert_eq!(contents.root, None);
        for (path, executable, expected) in [
            ("main.py", false, true),
            ("main.py", true, false),
            ("bin/run", true, true),
            ("bin/link", false, true),
            (&deep, false, true),
            (".git/HEAD", false, false),
            ("a/x.pyc", false, false),
            ("venv/lib.py", false, false),
        ] {
            assert_eq!(contents.exists(path, executable), expected, "{path}");
        }
    }

    #[test]
    fn equal_folders_are_equal_archives() {
        let names = ["main.py", "lib/b.py", "lib/a.py", "run*"];
        let (one, mut two) = (folder(&names), names);
        two.reverse();
        assert_eq!(bytes(one.path()), bytes(folder(&two).path()));
    }

    #[test]
    fn what_is_no_function_is_not_packed() {
        let folder = folder(&["main.py", "lib/a.py"]);
        let folder = folder.path();
        let check = |entries, bytes, fits| {
            let listed = listing(folder, &Ignore::default(), Most { entries, bytes });
            assert_eq!(listed.is_ok(), fits, "{entries} entries, {bytes} bytes");
        };
        check(3, 15, true);
        check(2, 15, false);
        check(3, 14, false);
        assert!(is_everything(Path::new("/"), None) && is_everything(folder, Some(folder)));
        assert!(!is_everything(folder, None) && !is_everything(&folder.join("lib"), Some(folder)));
        fs::write(folder.join(manifest::FILE), "").unwrap();
        assert!(!is_everything(folder, Some(folder)));
    }

    #[test]
    fn what_cannot_be_packed_says_why() {
        let refused = |path: &Path| format!("{:#}", pack(path).err().unwrap());
        let folder = folder(&["main.py"]);
        assert!(refused(&folder.path().join("missing")).contains("is not a folder"));
        assert!(refused(&folder.path().join("main.py")).contains("is not a folder"));
        let _socket = std::os::unix::net::UnixListener::bind(folder.path().join("socket")).unwrap();
        assert!(refused(folder.path()).contains(".dartcloudignore"));
    }
}
