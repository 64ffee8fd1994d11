//! The control of the file contract: `bare.c` writes, spawns, waits and reads, on this machine or, for a language whose
//! interpreter is the image's, in one long-lived container whose own cost is paid before.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::child::{bounded, pinned};
use crate::program::Program;
use crate::stage::Stage;

/// How long one order may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// How long it may take to end after its input has ended.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

/// The loop, waiting for orders. Dropping it ends it.
pub(crate) struct Bare {
    process: Child,
    orders: Option<ChildStdin>,
    /// What it prints, line by line.
    answers: Receiver<String>,
    /// The container that it is in.
    container: Option<String>,
}

impl Bare {
    /// On this machine, on these cores, with a program that takes its two files as arguments.
    pub(crate) fn here(stage: &Stage, cores: &str, program: &Path) -> Result<Self> {
        let (looper, exchange) = (looper(stage)?, stage.memory()?);
        let mut command = pinned(cores, &looper);
        command.arg(exchange.join("request.json")).arg(exchange.join("result.json"));
        command.arg(program).args(["{request}", "{result}"]);
        Self::start(command, None)
    }

    /// In a container of the program's own image, without limits, network or seccomp.
    pub(crate) fn in_container(stage: &Stage, program: &Program) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("dc-bench-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let looper = looper(stage)?;
        let mut command = pinned(&stage.cores.all, Path::new("docker"));
        command.args(["run", "-i", "--rm", "--name", &name, "--security-opt", "seccomp=unconfined"]);
        command.arg("-v").arg(format!("{}:/bare:ro", looper.display()));
        container_arguments(&mut command, program, &stage.memory()?)?;
        command.args([&program.image, "/bare", "/request.json", "/result.json"]).args(&program.command);
        Self::start(command, Some(name))
    }

    fn start(mut command: Command, container: Option<String>) -> Result<Self> {
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let orders = process.stdin.take();
        let printed = BufReader::new(process.stdout.take().context("it was piped")?);
        let (give, answers) = channel();
        // It ends with the loop's output, or when nobody listens any more.
        std::thread::spawn(move || {
            printed.lines().map_while(std::io::Result::ok).try_for_each(|line| give.send(line)).ok();
        });
        Ok(Self { process, orders, answers, container })
    }

    /// Calls one after the other with a pause before each.
    pub(crate) fn calls(&mut self, count: usize, pause: Duration) -> Result<Vec<u64>> {
        let (times, done) = self.order(&format!("calls {count} {}", pause.as_micros()))?;
        ensure!(done == count as u64 && times.len() == count, "the bare loop made {done} calls of {count}");
        Ok(times)
    }

    /// Calls a second on so many threads.
    pub(crate) fn per_second(&mut self, time: Duration, threads: usize) -> Result<f64> {
        let start = Instant::now();
        let (_, done) = self.order(&format!("seconds {} {threads}", time.as_millis()))?;
        Ok(done as f64 / start.elapsed().as_secs_f64())
    }

    fn order(&mut self, order: &str) -> Result<(Vec<u64>, u64)> {
        let orders = self.orders.as_mut().context("it has ended")?;
        writeln!(orders, "{order}")?;
        orders.flush()?;
        let mut times = Vec::new();
        loop {
            let line = self.answers.recv_timeout(PATIENCE).context("the bare loop ended, or hangs: see above")?;
            match line.strip_prefix("done ") {
                Some(done) => return Ok((times, done.parse()?)),
                None => times.push(line.parse().with_context(|| line.clone())?),
            }
        }
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        drop(self.orders.take());
        let deadline = Instant::now() + ENDS_WITHIN;
        while matches!(self.process.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        if let (Ok(None), Some(container)) = (self.process.try_wait(), &self.container) {
            let _ = bounded(ENDS_WITHIN.as_secs() as u32, "docker").args(["rm", "-f", container]).output();
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn looper(stage: &Stage) -> Result<PathBuf> {
    let program = stage.folder()?.join("bare");
    stage.compile(include_str!("../bare.c"), &program)?;
    Ok(program)
}

/// What a program needs of a container that is not a sandbox: no network, its folder, its environment, and exchange
/// files in memory.
pub(crate) fn container_arguments(command: &mut Command, program: &Program, exchange: &Path) -> Result<()> {
    command.args(["--network", "none", "--tmpfs", "/tmp", "-w", "/function"]);
    for bind in binds(program, exchange)? {
        command.arg("-v").arg(bind);
    }
    for variable in &program.env {
        command.arg("-e").arg(variable);
    }
    Ok(())
}

/// The binds of such a container; `exchange` gets a request and an empty result.
pub(crate) fn binds(program: &Program, exchange: &Path) -> Result<Vec<String>> {
    let (request, result) = (exchange.join("request.json"), exchange.join("result.json"));
    std::fs::write(&request, br#"{"body":{"name":"Ada"}}"#)?;
    std::fs::write(&result, b"")?;
    Ok(vec![
        format!("{}:/function:ro", program.folder.display()),
        format!("{}:/request.json", request.display()),
        format!("{}:/result.json", result.display()),
    ])
}
