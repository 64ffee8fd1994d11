//! The freezer of a container's control group, used as the agent uses it: one write to one file that is open.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

/// How long processes may take to stand still.
const STILL_WITHIN: Duration = Duration::from_secs(30);

/// The freezer of one container.
pub(crate) struct Freezer {
    switch: File,
    /// Where its state is read, and what it says when all stands still.
    state: (String, &'static str),
    words: [&'static [u8]; 2],
}

impl Freezer {
    /// That of the process `pid`, under both versions of control groups.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let path = |wanted: &str| {
            groups.lines().find_map(|line| {
                let mut parts = line.splitn(3, ':').skip(1);
                let named = parts.next()?.split(',').any(|one| one == wanted);
                parts.next().filter(|_| named)
            })
        };
        let (switch, state, words): (_, _, [&[u8]; 2]) = match path("freezer") {
            Some(path) => {
                let file = format!("/sys/fs/cgroup/freezer{path}/freezer.state");
                (file.clone(), (file, "FROZEN"), [b"FROZEN", b"THAWED"])
            }
            None => {
                let group = format!("/sys/fs/cgroup{}", path("").context("no cgroup")?);
                (format!("{group}/cgroup.freeze"), (format!("{group}/cgroup.events"), "frozen 1"), [b"1", b"0"])
            }
        };
        let switch = File::options().write(true).open(&switch).with_context(|| switch.clone())?;
        Ok(Self { switch, state, words })
    }

    pub(crate) fn freeze(&self) -> Result<()> {
        Ok(self.switch.write_all_at(self.words[0], 0)?)
    }

    pub(crate) fn thaw(&self) -> Result<()> {
        Ok(self.switch.write_all_at(self.words[1], 0)?)
    }

    pub(crate) fn is_frozen(&self) -> Result<bool> {
        Ok(std::fs::read_to_string(&self.state.0)?.contains(self.state.1))
    }

    /// Waits until somebody has frozen it.
    pub(crate) fn wait(&self) -> Result<()> {
        let deadline = Instant::now() + STILL_WITHIN;
        while !self.is_frozen()? {
            ensure!(Instant::now() < deadline, "the sandbox was not frozen within {STILL_WITHIN:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}
