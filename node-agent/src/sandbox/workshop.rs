//! Builds: the same sandbox with more time and memory, a writable work directory, and a network only where the
//! recipe needs one. It holds no secret of the platform: what it gets to know is the operator's `BUILD_ENV`.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use runner::wire::{How as Ended, Report, Run};
use tokio::sync::mpsc;

use super::disk::Disk;
use super::docker::{DockerError, Image};
use super::function::environment;
use super::runner_link;
use super::site::{Fault, Sandbox, Wish};
use super::spec::{AUTHORITIES, Bind, Limits, Reach, WORK};
use super::usage::{self, Usage};
use super::{BuildArgs, Sandboxes};

/// How much longer than the build the runner may take: it kills, waits for the dead, and reports.
const REPORT_LIMIT: Duration = Duration::from_secs(15);
/// Most files, folders and links of a build, while it runs and when it is done.
pub const MAX_BUILD_ENTRIES: u32 = 300_000;
/// How often the work directory is measured: the next time comes as much later as the last one took, several times.
const MEASURE: Duration = Duration::from_millis(250);
const MEASURE_SHARE: u32 = 4;
/// Longest line of a log, in bytes; a longer one is cut into several.
const MAX_LINE_BYTES: usize = 8 * 1024;
/// The variables by which openssl, pip, requests, node and npm are told whom to trust.
const AUTHORITY_VARIABLES: [&str; 5] =
    ["SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "npm_config_cafile"];

/// What to build, and how.
#[derive(Clone, Debug)]
pub struct BuildJob {
    /// Images to build in; the first that the Engine has, else the first is pulled.
    pub images: Vec<String>,
    /// The command.
    pub command: Vec<String>,
    /// Added to its environment.
    pub env: BTreeMap<String, String>,
    /// Whether it needs a network.
    pub network: bool,
    /// The host's directory that it finds, writable, at `/build`. All in it is given to the build's user, and what
    /// the build leaves there belongs to that user, with whatever modes it chose.
    pub work: PathBuf,
}

/// How a build ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuildExit {
    /// With this exit code; 0 is a success.
    Exited(i32),
    /// By this signal.
    Signaled(i32),
    /// It ran into `BUILD_TIMEOUT_SECONDS`.
    TimedOut,
    /// It ran into `BUILD_MEMORY_MB`.
    OutOfMemory,
    /// It ran into `BUILD_DISK_MB`.
    DiskFull,
    /// It made more than [`MAX_BUILD_ENTRIES`], or nested them too deeply.
    TooManyFiles,
    /// The image has no such command; the system's error number.
    NotStarted(i32),
}

/// The build could not be run: not the user's fault.
#[derive(Debug, thiserror::Error)]
#[error("the build could not be run: {0}")]
pub struct BuildError(String);

impl BuildExit {
    /// One sentence for the user; `None` for a success.
    #[must_use]
    pub fn failure(&self, args: &BuildArgs) -> Option<String> {
        Some(match self {
            Self::Exited(0) => return None,
            Self::Exited(code) => format!("the build's command exited with {code}"),
            Self::Signaled(signal) => format!("the build's command was ended by signal {signal}"),
            Self::TimedOut => format!("the build took longer than {} s", args.build_timeout_seconds),
            Self::OutOfMemory => format!("the build needed more than {} MiB of memory", args.build_memory_mb),
            Self::DiskFull => format!("the build wrote more than {} MiB", args.build_disk_mb),
            Self::TooManyFiles => {
                format!("the build made more than {MAX_BUILD_ENTRIES} files and folders, or nested them too deeply")
            }
            Self::NotStarted(errno) => {
                format!("the build's command could not be started: {}", io::Error::from_raw_os_error(*errno))
            }
        })
    }
}

impl Sandboxes {
    /// Runs a build in a sandbox of its own, which is gone afterwards, and sends what it prints, line by line, as it
    /// comes; a slow reader slows the build down. It waits its turn among `BUILD_CONCURRENT`. Dropping the future
    /// ends the build.
    ///
    /// # Errors
    /// The platform failed: no image, no container.
    pub async fn build(&self, job: BuildJob, lines: mpsc::Sender<String>) -> Result<BuildExit, BuildError> {
        let _turn = self.builds.acquire().await;
        if self.stop.is_cancelled() {
            return Err(BuildError("the node shuts down".into()));
        }
        let failed = |fault: Fault| BuildError(fault.to_string());
        let image =
            self.site.engine.image(&job.images).await.map_err(|error: DockerError| BuildError(error.to_string()))?;
        let (mut sandbox, frame) = self.open_workshop(&job, image).await.map_err(failed)?;
        let limit = Duration::from_secs(self.args.build.build_timeout_seconds.into()) + REPORT_LIMIT;
        let watched = tokio::time::timeout(limit, self.watch_build(&mut sandbox, &frame, &job.work, lines)).await;
        sandbox.remove().await;
        let exit = watched.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        exit.map_err(|error| match error.kind() {
            io::ErrorKind::StorageFull => BuildError(error.to_string()),
            _ => BuildError(format!("its sandbox is gone: {error}")),
        })
    }

    /// Lays a file system of its own over a build's work directory, as large as a build may be. `None` where that cannot
    /// be had (no mke2fs, no loop devices): then the build is measured as it goes, and may exceed it for a moment.
    pub async fn disk(&self, work: &Path) -> Option<Disk> {
        let bytes = u64::from(self.args.build.build_disk_mb) * 1024 * 1024;
        match Disk::over(work, bytes, MAX_BUILD_ENTRIES.into()).await {
            Ok(disk) => Some(disk),
            Err(error) => {
                tracing::warn!(%error, "a build gets no file system of its own and is only measured");
                None
            }
        }
    }

    async fn open_workshop(&self, job: &BuildJob, image: Image) -> Result<(Sandbox, Vec<u8>), Fault> {
        let args = &self.args.build;
        let claim = self.site.claim()?;
        let (work, uid) = (job.work.clone(), claim.uid());
        let given = tokio::task::spawn_blocking(move || give(&work, uid)).await;
        given.map_err(io::Error::other).and_then(|given| given).map_err(Fault::Work)?;
        let mut mounts = vec![Bind { source: job.work.clone(), target: WORK, reach: Reach::Write }];
        let mut env = BTreeMap::new();
        if job.network {
            if args.build_ca_file.is_file() {
                mounts.push(Bind { source: args.build_ca_file.clone(), target: AUTHORITIES, reach: Reach::Read });
                env.extend(AUTHORITY_VARIABLES.map(|name| (name.to_owned(), AUTHORITIES.to_owned())));
            }
            env.extend(args.build_env.iter().cloned());
        }
        let run = Run {
            argv: job.command.iter().map(|word| word.clone().into_bytes()).collect(),
            env: environment(&image, &env, &job.env),
            cwd: WORK.as_bytes().to_vec(),
            timeout_ms: args.build_timeout_seconds.saturating_mul(1000),
            output_cap_bytes: u64::from(args.build_output_kb) * 1024,
            merged: true,
            call: Vec::new(),
        };
        let frame = runner_link::encode(|frame| run.encode(frame)).map_err(|_| Fault::Environment)?;
        let wish = Wish {
            image,
            limits: Limits {
                memory_mb: args.build_memory_mb,
                cpus: self.args.cpus(args.build_cpus),
                pids: args.build_pids,
                // Compilers and package managers unpack there; it counts as the build's memory.
                tmp_mb: args.build_memory_mb,
                file_mb: args.build_disk_mb,
            },
            network: self.site.network(job.network).await?,
            mounts,
        };
        Ok((claim.occupy(wish).await?, frame))
    }

    async fn watch_build(
        &self,
        sandbox: &mut Sandbox,
        frame: &[u8],
        work: &Path,
        lines: mpsc::Sender<String>,
    ) -> io::Result<BuildExit> {
        let bytes = u64::from(self.args.build.build_disk_mb) * 1024 * 1024;
        let excess = watch_disk(work, Usage { bytes, entries: MAX_BUILD_ENTRIES.into() });
        tokio::pin!(excess);
        let mut log = Log::new(lines);
        sandbox.link.send(frame).await?;
        loop {
            let report = tokio::select! {
                report = sandbox.link.receive() => report,
                excess = &mut excess => return excess,
                () = self.stop.cancelled() => return Err(io::Error::other("the node shuts down")),
            };
            match report {
                Ok(Report::Output { bytes, .. }) => log.add(&bytes).await,
                Ok(Report::Done(done)) => {
                    log.end(done.truncated).await;
                    let out_of_memory = sandbox.ran_out_of_memory();
                    return Ok(match done.how {
                        Ended::TimedOut => BuildExit::TimedOut,
                        Ended::Exited(0) => BuildExit::Exited(0),
                        Ended::Exited(_) | Ended::Signaled(_) if out_of_memory => BuildExit::OutOfMemory,
                        Ended::Exited(code) => BuildExit::Exited(code),
                        Ended::Signaled(signal) => BuildExit::Signaled(signal),
                        Ended::SpawnFailed(errno) => BuildExit::NotStarted(errno),
                    });
                }
                Ok(Report::Connected | Report::Unconnected(_) | Report::Flushed) => {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                Err(_) if sandbox.ran_out_of_memory() => return Ok(BuildExit::OutOfMemory),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Measures until there is too much, then tells how the build ends.
async fn watch_disk(work: &Path, max: Usage) -> io::Result<BuildExit> {
    let work: Arc<Path> = work.into();
    loop {
        let (since, looked_at) = (Instant::now(), Arc::clone(&work));
        let look = move || {
            Ok::<_, io::Error>((
                usage::measure(&looked_at, max)?,
                usage::is_full(looked_at.parent().unwrap_or(&looked_at))?,
            ))
        };
        let (used, full) = tokio::task::spawn_blocking(look).await.map_err(io::Error::other)??;
        if used.entries > max.entries {
            return Ok(BuildExit::TooManyFiles);
        }
        if used.bytes > max.bytes {
            return Ok(BuildExit::DiskFull);
        }
        if full {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the node's disk is nearly full"));
        }
        tokio::time::sleep(MEASURE.max(since.elapsed() * MEASURE_SHARE)).await;
    }
}

/// Cuts what a build prints into lines.
struct Log {
    lines: mpsc::Sender<String>,
    open: Vec<u8>,
}

impl Log {
    fn new(lines: mpsc::Sender<String>) -> Self {
        Self { lines, open: Vec::new() }
    }

    async fn add(&mut self, bytes: &[u8]) {
        for line in cut(&mut self.open, bytes) {
            // A build whose log nobody reads is a build nevertheless.
            let _ = self.lines.send(line).await;
        }
    }

    async fn end(&mut self, truncated: bool) {
        if !self.open.is_empty() {
            let _ = self.lines.send(text(&std::mem::take(&mut self.open))).await;
        }
        if truncated {
            let _ = self.lines.send("[the build printed more than is kept]".to_owned()).await;
        }
    }
}

/// Adds `bytes` to the line that is `open` and takes the lines out that are whole.
fn cut(open: &mut Vec<u8>, bytes: &[u8]) -> Vec<String> {
    let mut whole = Vec::new();
    for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
        let mut piece = piece;
        // The line's end may stand beyond.
        while open.len() + piece.len() > MAX_LINE_BYTES && piece != b"\n" {
            let (head, tail) = piece.split_at(MAX_LINE_BYTES - open.len());
            open.extend_from_slice(head);
            whole.push(text(&std::mem::take(open)));
            piece = tail;
        }
        open.extend_from_slice(piece);
        if open.last() == Some(&b'\n') {
            whole.push(text(&std::mem::take(open)));
        }
    }
    whole
}

fn text(line: &[u8]) -> String {
    String::from_utf8_lossy(line).trim_end_matches(['\n', '\r']).to_owned()
}

/// Makes `uid` the owner of a directory and all in it, links themselves included.
fn give(directory: &Path, uid: u32) -> io::Result<()> {
    std::os::unix::fs::lchown(directory, Some(uid), Some(uid))?;
    let mut open = vec![directory.to_path_buf()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            std::os::unix::fs::lchown(entry.path(), Some(uid), Some(uid))?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut() {
        let check = |pieces: &[&str], expected: &[&str], left: &str| {
            let mut open = Vec::new();
            let lines: Vec<_> = pieces.iter().flat_map(|piece| cut(&mut open, piece.as_bytes())).collect();
            assert_eq!(
                (lines, String::from_utf8(open).unwrap()),
                (expected.iter().map(|&l| l.into()).collect(), left.into())
            );
        };
        check(&["a\nb"], &["a"], "b");
        check(&["a", "b\r\n", "\nc\n"], &["ab", "", "c"], "");
        check(&[], &[], "");
        let long = "x".repeat(MAX_LINE_BYTES);
        check(&[&long, "yz"], &[&long], "yz");
        // A line of just that length is not followed by an empty one.
        check(&[&long, "\n"], &[&long], "");
    }
}
