//! A program that was started here, on cores of its own, and that ends with its owner or with this process.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

/// How long a program may take to end once it was told to: the platform's own drain, and more.
const ENDS_WITHIN: Duration = Duration::from_secs(60);

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);

/// What is shown of the log of a program that failed, in bytes.
const SHOWN: usize = 8 * 1024;

/// A running program. Dropping it ends it.
pub(crate) struct Child {
    pub(crate) process: std::process::Child,
    name: String,
    log: PathBuf,
}

/// A command on these cores that ends when the thread that starts it ends, however that comes.
pub(crate) fn pinned(cores: &str, program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "taskset", "-c", cores]).arg(program).stdin(Stdio::null());
    command
}

impl Child {
    /// Starts `command`; what it prints goes to `{name}.log` in `folder`.
    pub(crate) fn spawn(mut command: Command, name: &str, folder: &Path) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log)?;
        command.stdout(file.try_clone()?).stderr(file);
        let process = command.spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Self { process, name: name.to_owned(), log })
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Waits until `ready` says so.
    pub(crate) fn wait_until(&mut self, limit: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !ready() {
            if let Some(status) = self.process.try_wait()? {
                bail!("{} ended with {status} before it was ready:\n{}", self.name, self.said());
            }
            ensure!(Instant::now() < deadline, "{} was not ready within {limit:?}:\n{}", self.name, self.said());
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// The end of its log.
    pub(crate) fn said(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(SHOWN)..]).into_owned()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if matches!(self.process.try_wait(), Ok(None)) {
            // The id is still its own, for it was not waited for.
            let _ = Command::new("kill").arg(self.process.id().to_string()).status();
        }
        let deadline = Instant::now() + ENDS_WITHIN;
        while matches!(self.process.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(POLL);
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A command that is ended after so many seconds.
pub(crate) fn bounded(seconds: u32, program: &str) -> Command {
    let mut command = Command::new("timeout");
    command.arg(seconds.to_string()).arg(program);
    command
}

/// Runs a command to its end, which has to be a success.
pub(crate) fn run(command: &mut Command) -> Result<Vec<u8>> {
    let name = format!("{:?}", command.get_program());
    let output = command.output().with_context(|| format!("cannot start {name}"))?;
    ensure!(output.status.success(), "{name}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

/// An address that nobody listens on now.
pub(crate) fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
