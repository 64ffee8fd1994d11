//! A function's sandbox, and the right to use it for one call.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use common::function::DeploymentSpec;
use common::runtime::Runtime;
use runner::wire::{self, Done, Report, Run, Stream};

use super::docker::Image;
use super::mounts::{Build, Exchange, Stage, is_furnished};
use super::runner_link;
use super::site::{Fault, Sandbox, Site, Wish};
use super::spec::{CONFIG, FUNCTION, Limits, REQUEST, RESULT};
use super::{SandboxArgs, Sandboxes};

/// How much longer than the function the runner may take: it kills, waits for the dead, and reports.
const REPORT_LIMIT: Duration = Duration::from_secs(15);
/// Where programs are, in an image that does not say.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How one call of a function ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// In what way its process ended.
    pub how: How,
    /// What it printed, up to `SANDBOX_OUTPUT_KB`.
    pub stdout: Vec<u8>,
    /// The same of its standard error.
    pub stderr: Vec<u8>,
    /// Whether it printed more.
    pub truncated: bool,
    /// Its largest resident set, in bytes; 0 when it did not start.
    pub peak_memory_bytes: u64,
    /// From the start to the end of the process.
    pub duration: Duration,
    /// What it left in `/result.json`.
    pub result: ResultFile,
}

/// In what way a function's process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// With this exit code.
    Exited(i32),
    /// By this signal.
    Signaled(i32),
    /// It ran into its time limit.
    TimedOut,
    /// The kernel killed in its sandbox for want of memory, and it did not survive that.
    OutOfMemory,
    /// It could not be started; the reason.
    SpawnFailed(String),
}

/// What a function left in `/result.json`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResultFile {
    /// Nothing.
    Empty,
    /// More than may be taken.
    TooLarge,
    /// This.
    Bytes(Vec<u8>),
}

/// The sandbox went away under the call, or the exchange with it failed. Whether the function ran is not known.
#[derive(Debug, thiserror::Error)]
#[error("the sandbox is gone: {0}")]
pub struct Gone(#[source] io::Error);

/// A function in a sandbox.
#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) spec: Arc<DeploymentSpec>,
    sandbox: Sandbox,
    exchange: Exchange,
    /// The run that every call is, encoded.
    frame: Vec<u8>,
    output_cap: usize,
    _stage: Arc<Stage>,
}

impl Function {
    /// Starts a blank sandbox and makes it this deployment's.
    pub(crate) async fn start(
        site: &Arc<Site>,
        args: &SandboxArgs,
        spec: &Arc<DeploymentSpec>,
        runtime: &Runtime,
        image: Image,
        build: &Build,
    ) -> Result<Self, Fault> {
        let stage = site.ground.stage(build)?;
        let output_cap = args.sandbox_output_kb as usize * 1024;
        let run = Run {
            argv: runtime.run_command(&spec.entrypoint).into_iter().map(String::into_bytes).collect(),
            env: environment(&image, &runtime.run.env, &spec.env),
            cwd: FUNCTION.as_bytes().to_vec(),
            timeout_ms: spec.limits.timeout_ms,
            output_cap_bytes: output_cap as u64,
            merged: false,
        };
        let frame = runner_link::encode(&run).map_err(|_| Fault::Environment)?;
        let claim = site.claim()?;
        let exchange = claim.room().open_exchange(args.sandbox_exchange_mb, &config(spec))?;
        let wish = Wish {
            deployment: Some(spec.deployment),
            image,
            limits: Limits {
                memory_mb: spec.limits.memory_mb,
                cpus: args.cpus(args.sandbox_cpus),
                pids: args.sandbox_pids,
                tmp_mb: args.sandbox_tmp_mb,
                file_mb: args.sandbox_tmp_mb.max(args.sandbox_exchange_mb),
            },
            network: site.network(spec.egress).await?,
            mounts: claim.room().binds(),
        };
        let sandbox = claim.occupy(wish).await?;
        sandbox.room().furnish(&stage)?;
        let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", sandbox.link.pid())).map_err(Fault::Link)?;
        if !is_furnished(&mounts, FUNCTION, &[REQUEST, CONFIG, RESULT]) {
            return Err(Fault::Unfurnished);
        }
        Ok(Self { spec: Arc::clone(spec), sandbox, exchange, frame, output_cap, _stage: stage })
    }

    /// Whether it can take a call, as far as one can tell without asking it.
    pub(crate) fn is_ready(&self) -> bool {
        self.sandbox.link.is_idle()
    }

    pub(crate) fn id(&self) -> common::ids::SandboxId {
        self.sandbox.id()
    }

    /// Ends it and waits until it is gone.
    pub(crate) async fn remove(self) {
        self.sandbox.remove().await;
    }

    /// One call; with it, whether the sandbox is as it was before.
    async fn call(&mut self, request: &[u8], result_cap: usize) -> io::Result<(Exit, bool)> {
        self.exchange.ask(request)?;
        self.sandbox.link.send(&self.frame).await?;
        let mut printed = Printed::default();
        let ended = loop {
            match self.sandbox.link.receive().await {
                Ok(Report::Output { stream, bytes }) => printed.add(stream, &bytes, self.output_cap),
                Ok(Report::Done(done)) => break Ok(done),
                Err(error) => break Err(error),
            }
        };
        let out_of_memory = self.sandbox.ran_out_of_memory();
        let (how, done) = match ended {
            Ok(done) => (how(&done, out_of_memory), done),
            // The kernel chose the runner itself.
            Err(_) if out_of_memory => (How::OutOfMemory, NOTHING),
            Err(error) => return Err(error),
        };
        let result = self.exchange.answer(result_cap)?;
        self.exchange.clear()?;
        // What used up the memory may be something that outlives processes.
        let clean = done.clean && !out_of_memory;
        let exit = Exit {
            how,
            stdout: printed.stdout,
            stderr: printed.stderr,
            truncated: done.truncated || printed.cut,
            peak_memory_bytes: done.peak_rss_bytes,
            duration: Duration::from_micros(done.duration_us),
            result,
        };
        Ok((exit, clean))
    }
}

/// What is known of a run whose runner did not live to tell.
const NOTHING: Done =
    Done { how: wire::How::Signaled(9), peak_rss_bytes: 0, duration_us: 0, truncated: false, clean: false };

#[derive(Default)]
struct Printed {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    cut: bool,
}

impl Printed {
    /// The runner keeps to the cap; this holds should it not.
    fn add(&mut self, stream: Stream, bytes: &[u8], cap: usize) {
        let kept = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let room = cap.saturating_sub(kept.len()).min(bytes.len());
        kept.extend_from_slice(&bytes[..room]);
        self.cut |= room < bytes.len();
    }
}

fn how(done: &Done, out_of_memory: bool) -> How {
    match done.how {
        wire::How::TimedOut => How::TimedOut,
        wire::How::Exited(0) => How::Exited(0),
        wire::How::Exited(_) | wire::How::Signaled(_) if out_of_memory => How::OutOfMemory,
        wire::How::Exited(code) => How::Exited(code),
        wire::How::Signaled(signal) => How::Signaled(signal),
        wire::How::SpawnFailed(errno) => How::SpawnFailed(io::Error::from_raw_os_error(errno).to_string()),
    }
}

type Env = std::collections::BTreeMap<String, String>;

/// A process's environment: the image's, then what holds in every sandbox, the runtime's, the function's own.
pub(crate) fn environment(image: &Image, runtime: &Env, own: &Env) -> Vec<Vec<u8>> {
    let mut env = Env::from([("PATH".to_owned(), PATH.to_owned())]);
    env.extend(image.env.iter().filter_map(|pair| pair.split_once('=')).map(|(key, value)| (key.into(), value.into())));
    env.extend([("HOME", "/tmp"), ("LANG", "C.UTF-8")].map(|(key, value)| (key.to_owned(), value.to_owned())));
    env.extend(runtime.clone());
    env.extend(own.clone());
    env.into_iter().map(|(key, value)| format!("{key}={value}").into_bytes()).collect()
}

/// `/.env.config`: a line for each limit and each variable; a value with line ends is quoted.
fn config(spec: &DeploymentSpec) -> Vec<u8> {
    let mut lines =
        format!("FUNCTION_TIMEOUT_MS={}\nFUNCTION_MEMORY_MB={}\n", spec.limits.timeout_ms, spec.limits.memory_mb);
    for (key, value) in &spec.env {
        if value.contains(['\n', '\r']) {
            let quoted = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").replace('\r', "\\r");
            lines += &format!("{key}=\"{quoted}\"\n");
        } else {
            lines += &format!("{key}={value}\n");
        }
    }
    lines.into_bytes()
}

/// The right to use a function's sandbox for one call after another. Dropping it gives the sandbox back, or ends it
/// where a call was broken off or left something behind.
#[derive(Debug)]
pub struct Lease {
    sandboxes: Arc<Sandboxes>,
    /// Taken out by `drop` alone.
    function: Option<Box<Function>>,
    /// Whether the sandbox is as a call may find it.
    sound: bool,
    cold: Option<Duration>,
    queued: Duration,
}

impl Lease {
    pub(crate) fn new(sandboxes: &Arc<Sandboxes>, function: Box<Function>, cold: Option<Duration>) -> Self {
        let sandboxes = Arc::clone(sandboxes);
        Self { sandboxes, function: Some(function), sound: true, cold, queued: Duration::ZERO }
    }

    pub(crate) fn queued_for(mut self, queued: Duration) -> Self {
        self.queued = queued;
        self
    }

    /// How long the start of this sandbox took, if it was started while this call waited and nobody used it before.
    #[must_use]
    pub fn cold(&self) -> Option<Duration> {
        self.cold
    }

    /// How long the call waited, for a start or for its turn.
    #[must_use]
    pub fn queued(&self) -> Duration {
        self.queued
    }

    /// Runs the function once: `request_json` is its `/request.json`, and what it leaves in `/result.json` comes
    /// back if that is at most `result_cap` bytes. It takes at most the function's time limit and 15 seconds.
    ///
    /// # Errors
    /// The sandbox is gone, or the request does not fit into `SANDBOX_EXCHANGE_MB`. The lease is of no more use.
    pub async fn invoke(&mut self, request_json: &[u8], result_cap: usize) -> Result<Exit, Gone> {
        let Some(function) = self.function.as_mut().filter(|_| self.sound) else {
            return Err(Gone(io::ErrorKind::NotConnected.into()));
        };
        // Until the end is known: whoever drops this future half-way leaves a sandbox that nobody may use.
        self.sound = false;
        let limit = Duration::from_millis(function.spec.limits.timeout_ms.into()) + REPORT_LIMIT;
        match tokio::time::timeout(limit, function.call(request_json, result_cap)).await {
            Ok(Ok((exit, clean))) => {
                self.sound = clean;
                Ok(exit)
            }
            Ok(Err(error)) => Err(Gone(error)),
            Err(_) => Err(Gone(io::ErrorKind::TimedOut.into())),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(function) = self.function.take() {
            self.sandboxes.give_back(function, self.sound);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(env: &[&str]) -> Image {
        Image { id: String::new(), env: env.iter().map(|&pair| pair.to_owned()).collect() }
    }

    #[test]
    fn the_nearer_environment_wins() {
        let check = |image_env: &[&str], runtime: &[(&str, &str)], own: &[(&str, &str)], expected: &[&str]| {
            let owned = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect::<Env>();
            let made = environment(&image(image_env), &owned(runtime), &owned(own));
            let made: Vec<_> = made.iter().map(|pair| std::str::from_utf8(pair).unwrap()).collect();
            assert_eq!(made, expected);
        };
        let path = format!("PATH={PATH}");
        check(&[], &[], &[], &["HOME=/tmp", "LANG=C.UTF-8", &path]);
        check(
            &["PATH=/sdk", "HOME=/root", "A=image", "B=image", "C=image"],
            &[("B", "runtime"), ("C", "runtime")],
            &[("C", "own"), ("D", "a=b")],
            &["A=image", "B=runtime", "C=own", "D=a=b", "HOME=/tmp", "LANG=C.UTF-8", "PATH=/sdk"],
        );
    }

    #[test]
    fn only_what_died_of_it_is_out_of_memory() {
        let check = |how_it_ended, oom, expected| {
            assert_eq!(how(&Done { how: how_it_ended, ..NOTHING }, oom), expected);
        };
        check(wire::How::Signaled(9), true, How::OutOfMemory);
        check(wire::How::Exited(137), true, How::OutOfMemory);
        check(wire::How::Exited(0), true, How::Exited(0));
        check(wire::How::TimedOut, true, How::TimedOut);
        check(wire::How::Signaled(9), false, How::Signaled(9));
        check(wire::How::SpawnFailed(2), false, How::SpawnFailed("No such file or directory (os error 2)".into()));
    }

    #[test]
    fn output_is_capped_here_too() {
        let mut printed = Printed::default();
        printed.add(Stream::Stdout, b"abc", 4);
        printed.add(Stream::Stdout, b"def", 4);
        printed.add(Stream::Stderr, b"x", 4);
        assert_eq!((&printed.stdout[..], &printed.stderr[..], printed.cut), (&b"abcd"[..], &b"x"[..], true));
    }
}
