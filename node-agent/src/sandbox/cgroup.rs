//! A sandbox's control group, as far as the agent uses it by itself: how often the kernel killed in it for want of
//! memory (only so is "out of memory" told apart from any other SIGKILL), what it uses, what it may use, and whether its
//! processes run or stand still. A file of the group costs microseconds where the Engine takes a tenth of a second.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Most that TCP holds in buffers for the connections of a sandbox, in bytes, where that is not counted as its memory.
const TCP_BYTES: u64 = 32 * 1024 * 1024;

/// The group of one sandbox.
#[derive(Debug)]
pub(crate) struct Group {
    memory: Directory,
    /// Held open, since a read of an open file is cheaper than a look-up by path.
    events: File,
    seen: u64,
}

/// What lets a group's processes run and stand still.
#[derive(Debug)]
pub(crate) struct Freezer {
    /// Held open: a thaw is on the way of a call.
    file: File,
    /// Where its processes are listed.
    processes: PathBuf,
    words: Words,
}

/// What is written to the freezer's file.
#[derive(Clone, Copy, Debug)]
struct Words {
    frozen: &'static [u8],
    thawed: &'static [u8],
}

/// The directory with a controller's files of a group, by the version of control groups.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Directory {
    V1(PathBuf),
    V2(PathBuf),
}

impl Group {
    /// The group that the process `pid` is in; before anything else runs in it.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        let memory = directory(pid, "memory")?;
        let path = memory.file("memory.oom_control", "memory.events");
        let events = File::open(&path).map_err(|error| named(&path, error))?;
        let mut group = Self { memory, events, seen: 0 };
        group.ran_out_of_memory();
        if let Err(error) = group.memory.limit_tcp() {
            tracing::warn!(%error, "the buffers of a sandbox's connections are not limited");
        }
        Ok(group)
    }

    /// Whether the kernel killed for want of memory since the last time that this was asked. When the group is gone:
    /// no.
    pub(crate) fn ran_out_of_memory(&mut self) -> bool {
        let mut text = [0; 1024];
        let read = self.events.read_at(&mut text, 0).unwrap_or(0);
        let Some(count) = std::str::from_utf8(&text[..read]).ok().and_then(kills) else { return false };
        let advanced = count > self.seen;
        self.seen = count;
        advanced
    }

    /// The memory that it uses, in bytes.
    pub(crate) fn memory_used(&self) -> io::Result<u64> {
        let path = self.memory.file("memory.usage_in_bytes", "memory.current");
        std::fs::read_to_string(&path)?.trim().parse().map_err(io::Error::other)
    }

    /// Lets it use `bytes` of memory, and no swap.
    pub(crate) fn limit_memory(&self, bytes: u64) -> io::Result<()> {
        let limit = self.memory.file("memory.limit_in_bytes", "memory.max");
        let set = |path: &Path| std::fs::write(path, bytes.to_string()).map_err(|error| named(path, error));
        let Directory::V1(_) = &self.memory else { return set(&limit) };
        // Memory and swap together, which may never be less than memory alone: one of the two orders is allowed.
        let with_swap = self.memory.file("memory.memsw.limit_in_bytes", "");
        if !with_swap.exists() {
            return set(&limit);
        }
        match set(&limit) {
            Ok(()) => set(&with_swap),
            Err(_) => set(&with_swap).and_then(|()| set(&limit)),
        }
    }
}

impl Freezer {
    /// The freezer of the group that the process `pid` is in, if this process may use it.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        let found = directory(pid, "freezer")?;
        if found == directory(std::process::id(), "freezer")? {
            return Err(io::Error::other("a sandbox has no freezer of its own"));
        }
        let words = match &found {
            Directory::V1(_) => Words { frozen: b"FROZEN", thawed: b"THAWED" },
            Directory::V2(_) => Words { frozen: b"1", thawed: b"0" },
        };
        let path = found.file("freezer.state", "cgroup.freeze");
        let file = File::options().write(true).open(&path).map_err(|error| named(&path, error))?;
        Ok(Self { file, processes: found.file("cgroup.procs", "cgroup.procs"), words })
    }

    /// Lets no process of the group run from now on. Those that are in the kernel just now stop a moment later, which
    /// nobody waits for: a thaw reaches them all the same.
    pub(crate) fn freeze(&self) -> io::Result<()> {
        self.file.write_all_at(self.words.frozen, 0)
    }

    /// How many processes there are; of a group that cannot be read, none.
    pub(crate) fn processes(&self) -> usize {
        std::fs::read_to_string(&self.processes).map_or(0, |list| list.lines().count())
    }

    /// Lets all run. The kernel has woken each of them when this is done, so there is no state to wait for.
    pub(crate) fn thaw(&self) -> io::Result<()> {
        self.file.write_all_at(self.words.thawed, 0)
    }
}

impl Directory {
    fn file(&self, v1: &str, v2: &str) -> PathBuf {
        match self {
            Self::V1(directory) => directory.join(v1),
            Self::V2(directory) => directory.join(v2),
        }
    }

    /// Limits the buffers of connections that are made from now on. The first version of control groups counts them
    /// apart from the memory, and only where they have a limit of their own; the second counts them as memory.
    fn limit_tcp(&self) -> io::Result<()> {
        let Self::V1(directory) = self else { return Ok(()) };
        let limit = directory.join("memory.kmem.tcp.limit_in_bytes");
        // Not every kernel has it.
        if !limit.exists() {
            return Ok(());
        }
        std::fs::write(&limit, TCP_BYTES.to_string()).map_err(|error| named(&limit, error))
    }
}

/// Where the files of `controller` are for the group of the process `pid`.
fn directory(pid: u32, controller: &str) -> io::Result<Directory> {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    directory_of(&groups, &mounts, controller)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no {controller} cgroup is mounted")))
}

fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// The line `oom_kill N`, which both versions of cgroups write.
fn kills(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")).and_then(|count| count.trim().parse().ok())
}

/// Where a controller's files of a group are: `groups` is a process's `/proc/PID/cgroup`, `mounts` our own `mountinfo`.
fn directory_of(groups: &str, mounts: &str, wanted: &str) -> Option<Directory> {
    let mut unified = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (hierarchy, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        if controllers.split(',').any(|controller| controller == wanted) {
            let root = mount_point(mounts, |kind, options| {
                kind == "cgroup" && options.split(',').any(|option| option == wanted)
            })?;
            return Some(Directory::V1(under(&root, path)));
        }
        if hierarchy == "0" {
            unified = Some(path);
        }
    }
    let root = mount_point(mounts, |kind, _| kind == "cgroup2")?;
    Some(Directory::V2(under(&root, unified?)))
}

/// The first mount whose file system and super options `fits`.
fn mount_point(mounts: &str, fits: impl Fn(&str, &str) -> bool) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split(' ');
        let (kind, _source, options) = (after.next()?, after.next()?, after.next()?);
        fits(kind, options).then(|| before.split(' ').nth(4).map(PathBuf::from))?
    })
}

fn under(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "25 24 0:22 / /sys/fs/cgroup tmpfs rw - tmpfs tmpfs rw,mode=755\n\
        30 25 0:26 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
        32 25 0:28 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
        33 25 0:29 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer\n\
        37 25 0:33 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
    const V2: &str = "30 25 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";

    fn check(groups: &str, mounts: &str, controller: &str, expected: Option<Directory>) {
        assert_eq!(directory_of(groups, mounts, controller), expected, "{groups}");
    }

    #[test]
    fn both_versions() {
        let groups = "9:memory:/docker/abc\n8:freezer:/docker/abc\n0::/docker/abc\n";
        check(groups, V1, "memory", Some(Directory::V1("/sys/fs/cgroup/memory/docker/abc".into())));
        check(groups, V1, "freezer", Some(Directory::V1("/sys/fs/cgroup/freezer/docker/abc".into())));
        let groups = "0::/system.slice/docker-abc.scope\n";
        let unified = Directory::V2("/sys/fs/cgroup/system.slice/docker-abc.scope".into());
        check(groups, V2, "memory", Some(unified.clone()));
        check(groups, V2, "freezer", Some(unified));
        // No hierarchy of its own: there it is a part of the unified one.
        check("9:memory:/a\n0::/a\n", V1, "freezer", Some(Directory::V2("/sys/fs/cgroup/unified/a".into())));
        check("", V2, "memory", None);
        check("9:memory:/x\n", V2, "memory", None);
        check("nonsense", V1, "memory", None);
    }

    #[test]
    fn buffers_are_limited_where_they_are_no_memory() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("memory.kmem.tcp.limit_in_bytes");
        let check = |group: Directory, expected: Option<&str>| {
            group.limit_tcp().unwrap();
            assert_eq!(std::fs::read_to_string(&path).ok().as_deref(), expected);
        };
        check(Directory::V1(directory.path().into()), None);
        std::fs::write(&path, "unlimited").unwrap();
        check(Directory::V2(directory.path().into()), Some("unlimited"));
        check(Directory::V1(directory.path().into()), Some("33554432"));
    }

    #[test]
    fn counts() {
        assert_eq!(kills("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), Some(3));
        assert_eq!(kills("low 0\nhigh 0\nmax 7\noom 2\noom_kill 1\noom_group_kill 0\n"), Some(1));
        assert_eq!(kills(""), None);
    }
}
