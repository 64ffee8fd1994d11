//! A function in a sandbox: how a blank one becomes a deployment's, and what a call of it is.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use common::function::{Contract, DeploymentSpec};
use common::ids::SandboxId;
use common::runtime::{Runtime, Spare};
use runner::wire::{self, Done, MAX_CALL_BYTES, Report, Run, Stream};

use super::SandboxArgs;
use super::blank::{Blank, keep};
use super::docker::Image;
use super::frost::Keeps;
use super::lease::{Exit, How, server};
use super::mount_table::is_furnished;
use super::mounts::{Exchange, Stage};
use super::runner_link;
use super::site::{Fault, Sandbox};
use super::spec::{CONFIG, FUNCTION, REQUEST, RESULT};

/// Least memory of a function that has a fork server: that takes about 6 MB, which one that has little needs itself.
const FORK_SERVER_LEAST_MB: u32 = 48;
/// Where programs are, in an image that does not say.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A call that is over, but for its result, which still lies where the function wrote it.
#[derive(Debug)]
pub(crate) struct Finished {
    how: How,
    done: Done,
    printed: Printed,
    /// Whether nothing is left of it.
    clean: bool,
    result_bytes: usize,
}

impl Finished {
    /// How much of the result is read, where at most `cap` bytes may be.
    pub(crate) fn result_bytes(&self, cap: usize) -> usize {
        if self.result_bytes > cap { 0 } else { self.result_bytes }
    }
}

/// A function in a sandbox.
#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) spec: Arc<DeploymentSpec>,
    pub(super) sandbox: Sandbox,
    exchange: Exchange,
    /// The run that every call is, or the server, encoded.
    pub(super) frame: Vec<u8>,
    output_cap: usize,
    /// Whether processes are ready before their calls.
    has_spare: bool,
    _stage: Arc<Stage>,
}

impl Function {
    /// Makes a blank sandbox this deployment's, which it stays to its end.
    pub(crate) async fn furnish(
        blank: Blank,
        args: &SandboxArgs,
        spec: &Arc<DeploymentSpec>,
        runtime: &Runtime,
        stage: Arc<Stage>,
    ) -> Result<Self, Fault> {
        let Blank { mut sandbox, exchange, image, .. } = blank;
        let output_cap = args.sandbox_output_kb as usize * 1024;
        let argv = runtime.run_command(&spec.entrypoint);
        // A server is one process for all calls, so none is ready before one.
        let spare = runtime.run.spare.as_ref().filter(|_| spec.contract == Contract::File);
        let call = spare.and_then(|spare| call(spare, &argv, &runtime.run.env, &spec.env));
        let run = Run {
            argv: argv.into_iter().map(String::into_bytes).collect(),
            env: environment(&image, &runtime.run.env, &spec.env),
            cwd: FUNCTION.as_bytes().to_vec(),
            timeout_ms: spec.limits.timeout_ms,
            output_cap_bytes: output_cap as u64,
            merged: false,
            call: call.unwrap_or_default(),
        };
        let has_spare = !run.call.is_empty();
        let frame = runner_link::encode(|frame| match spec.contract {
            Contract::File => run.encode(frame),
            Contract::Http { .. } => server(run).encode(frame),
        });
        let frame = frame.map_err(|_| Fault::Environment)?;
        if let Some(other) = other_spare(runtime, &image, has_spare, spec.limits.memory_mb)? {
            sandbox.link.send(&other).await.map_err(Fault::Link)?;
        }
        sandbox.limit_memory(spec.limits.memory_mb).map_err(Fault::Memory)?;
        exchange.configure(&config(spec)).map_err(Fault::Link)?;
        sandbox.room().furnish(&stage)?;
        let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", sandbox.link.pid())).map_err(Fault::Link)?;
        if !is_furnished(&mounts, FUNCTION, &[REQUEST, CONFIG, RESULT]) {
            return Err(Fault::Unfurnished);
        }
        sandbox.ice().rest(Keeps::Nothing);
        Ok(Self { spec: Arc::clone(spec), sandbox, exchange, frame, output_cap, has_spare, _stage: stage })
    }

    /// Whether it can take a call, as far as one can tell without asking it.
    pub(crate) fn is_ready(&self) -> bool {
        self.sandbox.link.is_idle()
    }

    pub(crate) fn id(&self) -> SandboxId {
        self.sandbox.id()
    }

    /// Ends it and waits until it is gone.
    pub(crate) async fn remove(self) {
        self.sandbox.remove().await;
    }

    /// One call, up to its result.
    pub(crate) async fn call(&mut self, request: &[u8]) -> io::Result<Finished> {
        self.sandbox.ice().wake();
        if self.has_spare {
            // What its spare died of since the last call is not this one's doing.
            self.sandbox.ran_out_of_memory();
        }
        self.exchange.ask(request)?;
        self.sandbox.link.send(&self.frame).await?;
        let mut printed = Printed::default();
        let ended = loop {
            match self.sandbox.link.receive().await {
                Ok(Report::Output { stream, bytes }) => printed.add(stream, &bytes, self.output_cap),
                Ok(Report::Done(done)) => break Ok(done),
                // Only a server's runner has these to say.
                Ok(Report::Connected | Report::Unconnected(_) | Report::Flushed) => {
                    break Err(io::ErrorKind::InvalidData.into());
                }
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
        let result_bytes = self.exchange.answered()?;
        // What used up the memory may be something that outlives processes.
        let clean = done.clean && !out_of_memory;
        Ok(Finished { how, done, printed, clean, result_bytes })
    }

    /// Takes the result of a call, if it is at most `cap` bytes; with it, whether the sandbox is as it was before.
    pub(crate) fn settle(&mut self, finished: Finished, cap: usize) -> io::Result<(Exit, bool)> {
        let Finished { how, done, printed, clean, result_bytes } = finished;
        let result = self.exchange.answer(result_bytes, cap)?;
        self.exchange.clear()?;
        self.sandbox.ice().rest(Keeps::Nothing);
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

#[derive(Debug, Default)]
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

pub(super) fn how(done: &Done, out_of_memory: bool) -> How {
    match done.how {
        wire::How::TimedOut => How::TimedOut,
        wire::How::Exited(0) => How::Exited(0),
        wire::How::Exited(_) | wire::How::Signaled(_) if out_of_memory => How::OutOfMemory,
        wire::How::Exited(code) => How::Exited(code),
        wire::How::Signaled(signal) => How::Signaled(signal),
        wire::How::SpawnFailed(errno) => How::SpawnFailed(io::Error::from_raw_os_error(errno).to_string()),
    }
}

/// What the runner is to keep ready instead of what a blank one does.
fn other_spare(runtime: &Runtime, image: &Image, has_spare: bool, memory_mb: u32) -> Result<Option<Vec<u8>>, Fault> {
    let order = match &runtime.run.spare {
        Some(_) if !has_spare => {
            runner_link::encode(|frame| wire::Spare::default().encode(frame)).map_err(Fault::Link)?
        }
        Some(spare) if spare.fork && memory_mb < FORK_SERVER_LEAST_MB => keep(spare, &runtime.run.env, image, false)?,
        _ => return Ok(None),
    };
    Ok(Some(order))
}

pub(super) type Env = BTreeMap<String, String>;

/// A process's environment: the image's, then what holds in every sandbox, the runtime's, the function's own.
pub(crate) fn environment(image: &Image, runtime: &Env, own: &Env) -> Vec<Vec<u8>> {
    let mut env = Env::from([("PATH".to_owned(), PATH.to_owned())]);
    env.extend(image.env.iter().filter_map(|pair| pair.split_once('=')).map(|(key, value)| (key.into(), value.into())));
    env.extend([("HOME", "/tmp"), ("LANG", "C.UTF-8")].map(|(key, value)| (key.to_owned(), value.to_owned())));
    env.extend(runtime.clone());
    env.extend(own.clone());
    env.into_iter().map(|(key, value)| format!("{key}={value}").into_bytes()).collect()
}

/// What a spare process is told of its call; `None` where it cannot become a process of this function.
fn call(spare: &Spare, argv: &[String], runtime: &Env, own: &Env) -> Option<Vec<u8>> {
    let (_, mut env) = spare.split_env(runtime);
    env.extend(own.clone());
    let call = serde_json::json!({"argv": argv.get(1..)?, "cwd": FUNCTION, "env": env}).to_string().into_bytes();
    Some(call).filter(|call| spare.fits(own) && call.len() <= MAX_CALL_BYTES)
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
