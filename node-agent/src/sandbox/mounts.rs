//! What sandboxes have of the host's file system, and how a build gets into one that already runs.
//!
//! `sandboxes/` is a mount of its own, and shared: what is mounted in the directory of a sandbox later appears in
//! its container, too. Where the data directory is a shared mount already (an agent that runs in a container has it from
//! the host so), `sandboxes/` is left in it: the Engine would not see a mount of ours. `stages/` is private: each build
//! is bound there once, read-only, without setuid and devices, and a mount made from that one keeps these flags, which a
//! later remount would not carry into the container.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use common::ids::SandboxId;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use super::ResultFile;
use super::mount_table::{is_shared_mount, mount_points};
use super::spec::{Bind, CONFIG, FUNCTION, REQUEST, RESULT, Reach, SPARE};

/// A build that a sandbox uses; whoever keeps builds counts these.
pub type Build = Arc<dyn AsRef<Path> + Send + Sync>;

/// The host's side of a sandbox could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The agent lacks the right.
    #[error("the agent may not mount at {}: run it as root, or give it CAP_SYS_ADMIN", path.display())]
    NotPermitted {
        /// Where.
        path: PathBuf,
    },
    /// Something else.
    #[error("cannot {what} {}: {cause}", path.display())]
    Failed {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
}

/// The two directories that all sandboxes of a node share.
#[derive(Debug)]
pub(crate) struct Ground {
    sandboxes: PathBuf,
    stages: PathBuf,
    staged: Mutex<HashMap<PathBuf, Weak<Stage>>>,
}

/// A build, bound read-only once for all sandboxes that use it; unbound when the last lets go.
pub(crate) struct Stage {
    path: PathBuf,
    _build: Build,
}

/// The host's directory of one sandbox.
#[derive(Debug)]
pub(crate) struct Room {
    path: PathBuf,
}

/// The files through which a sandbox is asked and answers. They are written in place, since the container has these
/// inodes and no others.
#[derive(Debug)]
pub(crate) struct Exchange {
    config: File,
    request: File,
    result: File,
}

impl Ground {
    /// Takes over `sandboxes/` and `stages/` under `data_dir`, and clears away what an earlier agent left there.
    pub(crate) fn open(data_dir: &Path) -> Result<Self, MountError> {
        fs::create_dir_all(data_dir).map_err(failed("create", data_dir))?;
        let data_dir = data_dir.canonicalize().map_err(failed("find", data_dir))?;
        let (sandboxes, stages) = (data_dir.join("sandboxes"), data_dir.join("stages"));
        let table = fs::read("/proc/self/mountinfo").map_err(failed("read the mounts of", &data_dir))?;
        let is_shared = is_shared_mount(&table, &data_dir);
        for (path, propagation) in
            [(&sandboxes, MountPropagationFlags::SHARED), (&stages, MountPropagationFlags::PRIVATE)]
        {
            clear_away(path)?;
            fs::create_dir_all(path).map_err(failed("create", path))?;
            fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(failed("restrict", path))?;
            if is_shared && propagation == MountPropagationFlags::SHARED {
                continue;
            }
            rustix::mount::mount_bind(path, path).map_err(refused("bind", path))?;
            // Private first: the directory above may be shared with mounts that are none of ours.
            for propagation in [MountPropagationFlags::PRIVATE, propagation] {
                rustix::mount::mount_change(path, propagation).map_err(refused("change", path))?;
            }
        }
        Ok(Self { sandboxes, stages, staged: Mutex::default() })
    }

    /// `build` as it may be bound into sandboxes.
    pub(crate) fn stage(&self, build: &Build) -> Result<Arc<Stage>, MountError> {
        let source = (**build).as_ref().to_path_buf();
        let mut staged = self.staged.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stage) = staged.get(&source).and_then(Weak::upgrade) {
            return Ok(stage);
        }
        let path = self.stages.join(uuid::Uuid::now_v7().to_string());
        fs::create_dir(&path).map_err(failed("create", &path))?;
        rustix::mount::mount_bind(&source, &path).map_err(refused("bind", &source))?;
        let stage = Arc::new(Stage { path, _build: Arc::clone(build) });
        let path = &stage.path;
        rustix::mount::mount_change(path, MountPropagationFlags::PRIVATE).map_err(refused("change", path))?;
        let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount_remount(path, flags, c"").map_err(refused("remount", path))?;
        staged.retain(|_, stage| stage.strong_count() > 0);
        staged.insert(source, Arc::downgrade(&stage));
        Ok(stage)
    }

    /// The directory of the sandbox `id`, which [`Room::make`] makes.
    pub(crate) fn room(&self, id: SandboxId) -> Room {
        Room { path: self.sandboxes.join(id.to_string()) }
    }

    /// Gives both directories up.
    pub(crate) fn close(&self) -> Result<(), MountError> {
        clear_away(&self.sandboxes)?;
        clear_away(&self.stages)
    }
}

impl std::fmt::Debug for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stage({})", self.path.display())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Nobody is left to tell; the next start clears away what stays.
        let _ = unmount(&self.path).and_then(|()| gone(fs::remove_dir(&self.path), &self.path));
    }
}

impl Room {
    /// Makes the directory.
    pub(crate) fn make(&self) -> Result<(), MountError> {
        for path in [self.path.clone(), self.link(), self.function(), self.exchange()] {
            fs::create_dir(&path).map_err(failed("create", &path))?;
            // Whatever the agent's umask says: the sandbox's user looks into these.
            fs::set_permissions(&path, Permissions::from_mode(0o755)).map_err(failed("open up", &path))?;
        }
        Ok(())
    }

    /// Where the agent's socket is.
    pub(crate) fn link(&self) -> PathBuf {
        self.path.join("link")
    }

    fn function(&self) -> PathBuf {
        self.path.join("function")
    }

    fn exchange(&self) -> PathBuf {
        self.path.join("exchange")
    }

    /// What a function's container gets of this directory.
    pub(crate) fn binds(&self) -> Vec<Bind> {
        let file = |target: &'static str, reach| Bind { source: self.exchange().join(&target[1..]), target, reach };
        vec![
            Bind { source: self.function(), target: FUNCTION, reach: Reach::Later },
            file(REQUEST, Reach::Read),
            file(CONFIG, Reach::Read),
            file(RESULT, Reach::Write),
        ]
    }

    /// Puts the program of spare processes where the sandbox finds it.
    pub(crate) fn place_spare(&self, script: &str) -> Result<(), MountError> {
        let path = self.link().join(SPARE);
        fs::write(&path, script).map_err(failed("write", &path))?;
        fs::set_permissions(&path, Permissions::from_mode(0o644)).map_err(failed("open up", &path))
    }

    /// Makes the files of the exchange, on a file system of `megabytes` of their own.
    pub(crate) fn open_exchange(&self, megabytes: u32) -> Result<Exchange, MountError> {
        let path = self.exchange();
        let options =
            std::ffi::CString::new(format!("size={megabytes}m,nr_inodes=16,mode=0755")).expect("numbers hold no NUL");
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        rustix::mount::mount("tmpfs", &path, "tmpfs", flags, options.as_c_str()).map_err(refused("mount", &path))?;
        let create = |target: &str, mode| {
            let path = path.join(&target[1..]);
            let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
            let file = file.map_err(failed("create", &path))?;
            file.set_permissions(Permissions::from_mode(mode)).map_err(failed("open up", &path))?;
            Ok(file)
        };
        // The result belongs to root, so that the function can write it and not lock anybody out of it.
        Ok(Exchange {
            config: create(CONFIG, 0o644)?,
            request: create(REQUEST, 0o644)?,
            result: create(RESULT, 0o666)?,
        })
    }

    /// Mounts a build at `/function`, in the container as well.
    pub(crate) fn furnish(&self, stage: &Stage) -> Result<(), MountError> {
        let function = self.function();
        rustix::mount::mount_bind(&stage.path, &function).map_err(refused("bind", &function))
    }

    /// Removes the directory and what is mounted in it; one that is not there is fine.
    pub(crate) fn remove(&self) -> Result<(), MountError> {
        for path in [self.function(), self.exchange()] {
            unmount(&path)?;
            // Never by way of its contents: if the mount were still there, they would be a build's.
            gone(fs::remove_dir(&path), &path)?;
        }
        let link = self.link();
        gone(fs::remove_dir_all(&link), &link)?;
        gone(fs::remove_dir(&self.path), &self.path)
    }
}

impl Exchange {
    /// Puts the deployment's limits and environment where the function reads them. Once: nothing was there before.
    pub(crate) fn configure(&self, config: &[u8]) -> io::Result<()> {
        self.config.write_all_at(config, 0)
    }

    /// Puts the request where the function reads it.
    pub(crate) fn ask(&self, request: &[u8]) -> io::Result<()> {
        self.request.write_all_at(request, 0)
    }

    /// How many bytes the function answered.
    pub(crate) fn answered(&self) -> io::Result<usize> {
        Ok(usize::try_from(self.result.metadata()?.len()).unwrap_or(usize::MAX))
    }

    /// What the function answered, which was so long, if that is at most `cap` bytes.
    pub(crate) fn answer(&self, length: usize, cap: usize) -> io::Result<ResultFile> {
        if length == 0 {
            return Ok(ResultFile::Empty);
        }
        if length > cap {
            return Ok(ResultFile::TooLarge);
        }
        let mut bytes = vec![0; length];
        self.result.read_exact_at(&mut bytes, 0)?;
        Ok(ResultFile::Bytes(bytes))
    }

    /// Empties both files.
    pub(crate) fn clear(&self) -> io::Result<()> {
        self.request.set_len(0)?;
        self.result.set_len(0)
    }
}

/// Unmounts everything at and under `path` and removes what is under it.
fn clear_away(path: &Path) -> Result<(), MountError> {
    for _ in 0..MAX_STACKED {
        let table = fs::read("/proc/self/mountinfo").map_err(failed("read the mounts of", path))?;
        let mounted = mount_points(&table, path);
        if mounted.is_empty() {
            return match fs::read_dir(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(failed("read", path)(error)),
                Ok(entries) => {
                    for entry in entries.flatten() {
                        gone(fs::remove_dir_all(entry.path()), &entry.path())?;
                    }
                    Ok(())
                }
            };
        }
        for mount in mounted.iter().rev() {
            unmount(mount)?;
        }
    }
    let cause = io::Error::new(io::ErrorKind::ResourceBusy, "there are always more mounts");
    Err(MountError::Failed { what: "clear", path: path.to_path_buf(), cause })
}

/// How many agents may have died with mounts one over the other.
const MAX_STACKED: usize = 64;

/// Lazily, since a container may still have it; what is no mount point is fine.
fn unmount(path: &Path) -> Result<(), MountError> {
    match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        other => other.map_err(refused("unmount", path)),
    }
}

fn gone(removed: io::Result<()>, path: &Path) -> Result<(), MountError> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(failed("remove", path)),
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> MountError {
    let path = path.to_path_buf();
    move |cause| MountError::Failed { what, path, cause }
}

fn refused(what: &'static str, path: &Path) -> impl FnOnce(rustix::io::Errno) -> MountError {
    let path = path.to_path_buf();
    move |errno| match errno {
        rustix::io::Errno::PERM => MountError::NotPermitted { path },
        errno => MountError::Failed { what, path, cause: errno.into() },
    }
}
