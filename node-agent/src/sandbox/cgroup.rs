//! A sandbox's control group, as far as the agent uses it by itself: how often the kernel killed in it for want of
//! memory (only so is "out of memory" told apart from any other SIGKILL), what it uses, and what it may use. A file of
//! the group costs microseconds where the Engine takes a tenth of a second.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The group of one sandbox.
#[derive(Debug)]
pub(crate) struct Group {
    memory: Memory,
    /// Held open, since a read of an open file is cheaper than a look-up by path.
    events: File,
    seen: u64,
}

/// The directory with the files of a group's memory, by the version of control groups.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Memory {
    V1(PathBuf),
    V2(PathBuf),
}

impl Group {
    /// The group that the process `pid` is in.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        let memory = memory_of(&groups, &mounts)
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no memory cgroup is mounted"))?;
        let path = memory.file("memory.oom_control", "memory.events");
        let events = File::open(&path).map_err(|error| named(&path, error))?;
        let mut group = Self { memory, events, seen: 0 };
        group.ran_out_of_memory();
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
        let Memory::V1(_) = &self.memory else { return set(&limit) };
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

impl Memory {
    fn file(&self, v1: &str, v2: &str) -> PathBuf {
        match self {
            Self::V1(directory) => directory.join(v1),
            Self::V2(directory) => directory.join(v2),
        }
    }
}

fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// The line `oom_kill N`, which both versions of cgroups write.
fn kills(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")).and_then(|count| count.trim().parse().ok())
}

/// Where the memory of a group is: `groups` is a process's `/proc/PID/cgroup`, `mounts` our own `mountinfo`.
fn memory_of(groups: &str, mounts: &str) -> Option<Memory> {
    let mut unified = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (hierarchy, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        if controllers.split(',').any(|controller| controller == "memory") {
            let root = mount_point(mounts, |kind, options| {
                kind == "cgroup" && options.split(',').any(|option| option == "memory")
            })?;
            return Some(Memory::V1(under(&root, path)));
        }
        if hierarchy == "0" {
            unified = Some(path);
        }
    }
    let root = mount_point(mounts, |kind, _| kind == "cgroup2")?;
    Some(Memory::V2(under(&root, unified?)))
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
        37 25 0:33 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
    const V2: &str = "30 25 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";

    fn check(groups: &str, mounts: &str, expected: Option<Memory>) {
        assert_eq!(memory_of(groups, mounts), expected, "{groups}");
    }

    #[test]
    fn both_versions() {
        check(
            "9:memory:/docker/abc\n8:cpu:/docker/abc\n0::/docker/abc\n",
            V1,
            Some(Memory::V1("/sys/fs/cgroup/memory/docker/abc".into())),
        );
        check(
            "0::/system.slice/docker-abc.scope\n",
            V2,
            Some(Memory::V2("/sys/fs/cgroup/system.slice/docker-abc.scope".into())),
        );
        check("", V2, None);
        check("9:memory:/x\n", V2, None);
        check("nonsense", V1, None);
    }

    #[test]
    fn counts() {
        assert_eq!(kills("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), Some(3));
        assert_eq!(kills("low 0\nhigh 0\nmax 7\noom 2\noom_kill 1\noom_group_kill 0\n"), Some(1));
        assert_eq!(kills(""), None);
    }
}
