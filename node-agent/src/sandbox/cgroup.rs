//! A sandbox's control group, as far as the agent reads it: how often the kernel killed in it for want of memory.
//! Only so is "out of memory" told apart from any other SIGKILL.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The counter of one sandbox, held open, since a read of an open file is cheaper than a look-up by path.
#[derive(Debug)]
pub(crate) struct OomCounter {
    file: File,
    seen: u64,
}

impl OomCounter {
    /// The counter of the group that the process `pid` is in.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        let path = counter_file(&groups, &mounts)
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no memory cgroup is mounted"))?;
        let file =
            File::open(&path).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        let mut counter = Self { file, seen: 0 };
        counter.advanced();
        Ok(counter)
    }

    /// Whether the kernel killed since the last time that this was asked. When the group is gone: no.
    pub(crate) fn advanced(&mut self) -> bool {
        let mut text = [0; 1024];
        let read = self.file.read_at(&mut text, 0).unwrap_or(0);
        let Some(count) = std::str::from_utf8(&text[..read]).ok().and_then(kills) else { return false };
        let advanced = count > self.seen;
        self.seen = count;
        advanced
    }
}

/// The line `oom_kill N`, which both versions of cgroups write.
fn kills(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")).and_then(|count| count.trim().parse().ok())
}

/// Where the counter is: `groups` is a process's `/proc/PID/cgroup`, `mounts` our own `mountinfo`.
fn counter_file(groups: &str, mounts: &str) -> Option<PathBuf> {
    let mut unified = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (hierarchy, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        if controllers.split(',').any(|controller| controller == "memory") {
            let root = mount_point(mounts, |kind, options| {
                kind == "cgroup" && options.split(',').any(|option| option == "memory")
            })?;
            return Some(under(&root, path).join("memory.oom_control"));
        }
        if hierarchy == "0" {
            unified = Some(path);
        }
    }
    let root = mount_point(mounts, |kind, _| kind == "cgroup2")?;
    Some(under(&root, unified?).join("memory.events"))
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

    fn check(groups: &str, mounts: &str, expected: Option<&str>) {
        assert_eq!(counter_file(groups, mounts), expected.map(PathBuf::from), "{groups}");
    }

    #[test]
    fn both_versions() {
        check(
            "9:memory:/docker/abc\n8:cpu:/docker/abc\n0::/docker/abc\n",
            V1,
            Some("/sys/fs/cgroup/memory/docker/abc/memory.oom_control"),
        );
        check(
            "0::/system.slice/docker-abc.scope\n",
            V2,
            Some("/sys/fs/cgroup/system.slice/docker-abc.scope/memory.events"),
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
