//! A running platform: the real programs on free ports and a data directory of their own.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;

use crate::client::Client;

/// How long a program may take to become ready, or to end.
const START_DEADLINE: Duration = Duration::from_secs(90);

/// The programs that were built for this run; `script/test` says where.
pub(crate) fn program(name: &str) -> PathBuf {
    let directory = std::env::var_os("DARTCLOUD_BIN_DIR")
        .expect("DARTCLOUD_BIN_DIR is not set: run the suite by `script/test e2e`, which builds the programs");
    Path::new(&directory).join(name)
}

/// Which programs make a platform.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// `dartcloud dev`: everything in one process.
    Dev,
    /// `dartcloud-gateway` and `dartcloud-node-agent` over a Unix socket.
    TwoProcesses,
    /// `dartcloud-gateway` alone: nodes join it.
    Gateway,
}

/// A platform that runs until it is dropped.
pub(crate) struct Platform {
    form: Form,
    port: u16,
    ops_ports: [u16; 2],
    settings: Vec<(String, String)>,
    running: Vec<Program>,
    data_dir: TempDir,
    /// The authority of its public listener's certificate, if that speaks TLS.
    authority: Option<reqwest::Certificate>,
}

impl Platform {
    /// Starts one with these settings over the suite's own.
    pub(crate) async fn start(form: Form, settings: &[(&str, &str)]) -> Result<Self> {
        Self::start_behind(None, form, settings).await
    }

    /// The same, where settings name a certificate of this authority.
    pub(crate) async fn start_behind(
        authority: Option<reqwest::Certificate>,
        form: Form,
        settings: &[(&str, &str)],
    ) -> Result<Self> {
        let [port, ops, agent_ops] = free_ports()?;
        let mut platform = Self {
            form,
            port,
            ops_ports: [ops, agent_ops],
            settings: settings.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
            running: Vec::new(),
            data_dir: tempfile::Builder::new().prefix("dc-").tempdir()?,
            authority,
        };
        platform.launch().await?;
        Ok(platform)
    }

    /// A setting for the next launch.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.settings.push((name.to_owned(), value.to_owned()));
    }

    /// Starts the programs again, on the same data and ports.
    pub(crate) async fn launch(&mut self) -> Result<()> {
        ensure!(self.running.is_empty(), "it runs already");
        let programs: &[(&str, &[&str])] = match self.form {
            Form::Dev => &[("dartcloud", &["dev"])],
            Form::TwoProcesses => &[("dartcloud-gateway", &[]), ("dartcloud-node-agent", &[])],
            Form::Gateway => &[("dartcloud-gateway", &[])],
        };
        for (index, (name, arguments)) in programs.iter().enumerate() {
            let started = self.spawn(index, name, arguments, &[])?;
            self.running.push(started);
        }
        self.wait_ready().await
    }

    /// Starts a program that has the ops listener of this number.
    fn spawn(&self, index: usize, name: &str, arguments: &[&str], settings: &[(&str, &str)]) -> Result<Program> {
        let mut command = Command::new("setpriv");
        // The suite's end, however it comes, ends the programs as well.
        command.args(["--pdeathsig", "TERM"]).arg(program(name)).args(arguments);
        command
            .env("PORT", self.port.to_string())
            .env("OPS_ADDR", format!("127.0.0.1:{}", self.ops_ports[index]))
            .env("DATA_DIR", self.data_dir.path())
            .env("RUST_LOG", "info")
            .env("SANDBOX_MEMORY_MB", "4096")
            .env("RATE_LIMIT_LOGIN", "100000")
            .env("RATE_LIMIT_PER_CLIENT", "100000");
        if self.form != Form::Dev {
            command.env("JWT_SECRET", JWT_SECRET);
        }
        for (name, value) in &self.settings {
            command.env(name, value);
        }
        command.envs(settings.iter().copied());
        Program::spawn(command, &self.data_dir.path().join(format!("{name}.log")))
    }

    /// Starts a gateway beside the one that runs, with these settings over its own.
    pub(crate) fn second_gateway(&self, arguments: &[&str], settings: &[(&str, &str)]) -> Result<Program> {
        self.spawn(0, "dartcloud-gateway", arguments, settings)
    }

    /// The gateway's program, which is looked after no longer.
    pub(crate) fn release_gateway(&mut self) -> Program {
        self.running.remove(0)
    }

    /// Another program is the gateway from now on; the one before.
    pub(crate) fn is_succeeded_by(&mut self, gateway: Program) -> Program {
        std::mem::replace(&mut self.running[0], gateway)
    }

    async fn wait_ready(&mut self) -> Result<()> {
        let (url, http) = (format!("{}/api/health/ready", self.url()), self.http().build()?);
        let data_dir = self.data_dir.path().to_owned();
        let running = &mut self.running;
        until("the platform is ready", START_DEADLINE, async || {
            for program in running.iter_mut() {
                if let Some(status) = program.child.try_wait()? {
                    bail!("a program ended with {status} before it was ready");
                }
            }
            let ready = http.get(&url).send().await.is_ok_and(|response| response.status().is_success());
            Ok(ready.then_some(()))
        })
        .await
        .with_context(|| log_of(&data_dir))
    }

    /// A client that has registered as a fresh user.
    pub(crate) async fn user(&self) -> Result<Client> {
        Client::register_by(self.http().build()?, &self.url()).await
    }

    /// An engine for clients, which believes the platform's certificate.
    pub(crate) fn http(&self) -> reqwest::ClientBuilder {
        let builder = reqwest::Client::builder().timeout(Duration::from_secs(180));
        builder.tls_certs_merge(self.authority.clone())
    }

    /// The public listener.
    pub(crate) fn url(&self) -> String {
        let scheme = if self.authority.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    /// The public listener's port.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// What the ops listener of the first program says of its metrics.
    pub(crate) async fn metrics(&self) -> Result<String> {
        Ok(reqwest::get(format!("http://127.0.0.1:{}/metrics", self.ops_ports[0])).await?.text().await?)
    }

    /// The same of the last program, which is or has the agent.
    pub(crate) async fn agent_metrics(&self) -> Result<String> {
        let port = self.ops_ports[self.running.len().saturating_sub(1)];
        Ok(reqwest::get(format!("http://127.0.0.1:{port}/metrics")).await?.text().await?)
    }

    /// Where each program tells of its metrics and takes probes, in the order of their start.
    pub(crate) fn ops_addresses(&self) -> [String; 2] {
        self.ops_ports.map(|port| format!("127.0.0.1:{port}"))
    }

    /// Where everything of it lies.
    pub(crate) fn data_dir(&self) -> &Path {
        self.data_dir.path()
    }

    /// The agent's node id, which its containers bear as a label.
    pub(crate) fn node(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.data_dir.path().join("node-id"))?.trim().to_owned())
    }

    /// The containers that bear this node's label, running or not.
    pub(crate) fn containers(&self) -> Result<Vec<String>> {
        let label = format!("label=dartcloud.node={}", self.node()?);
        let output = Command::new("docker").args(["ps", "-aq", "--no-trunc", "--filter", &label]).output()?;
        ensure!(output.status.success(), "docker ps: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect())
    }

    /// The most memory that each program has had so far, in bytes.
    pub(crate) fn peak_memory(&self) -> Result<Vec<(String, u64)>> {
        let of = |program: &Program| {
            let status = std::fs::read_to_string(format!("/proc/{}/status", program.child.id()))?;
            let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            let peak = field("VmHWM:").and_then(|text| text.strip_suffix(" kB")?.parse::<u64>().ok());
            Ok((field("Name:").unwrap_or_default().to_owned(), peak.context("no VmHWM")? * 1024))
        };
        self.running.iter().map(of).collect()
    }

    /// Ends every program at once, as a power cut would.
    pub(crate) fn kill(&mut self) -> Result<()> {
        // The agent first, so that it does not see the gateway go.
        for program in self.running.iter_mut().rev() {
            program.child.kill()?;
        }
        for mut program in self.running.drain(..) {
            program.child.wait()?;
        }
        Ok(())
    }

    /// Asks every program to end, the agent after the gateway, and waits.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        for mut program in std::mem::take(&mut self.running) {
            program.terminate()?;
            let status = until("a program ends", START_DEADLINE, async || Ok(program.child.try_wait()?)).await;
            let status = status.with_context(|| self.log())?;
            ensure!(status.success(), "ended with {status}:\n{}", self.log());
        }
        Ok(())
    }

    /// What the programs logged, for failures; the last 64 KiB of each.
    pub(crate) fn log(&self) -> String {
        log_of(self.data_dir.path())
    }
}

fn log_of(data_dir: &Path) -> String {
    let mut text = String::new();
    for name in ["dartcloud", "dartcloud-gateway", "dartcloud-node-agent"] {
        let log = std::fs::read(data_dir.join(format!("{name}.log"))).unwrap_or_default();
        text.push_str(&String::from_utf8_lossy(&log[log.len().saturating_sub(64 * 1024)..]));
    }
    text
}

/// Looks at a condition until it holds; the error after `limit` says which.
pub(crate) async fn until<T>(
    what: &str,
    limit: Duration,
    mut probe: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = probe().await? {
            return Ok(value);
        }
        ensure!(Instant::now() < deadline, "not within {limit:?}: {what}");
        tokio::time::sleep(POLL).await;
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        for program in &mut self.running {
            // All at once; each is then waited for.
            let _ = program.terminate();
        }
    }
}

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);

/// The secret of platforms whose programs do not make their own.
pub(crate) const JWT_SECRET: &str = "the-suite-signs-its-tokens-with-this-one-0123456789";

/// A program that runs until it is dropped.
pub(crate) struct Program {
    pub(crate) child: Child,
}

impl Drop for Program {
    fn drop(&mut self) {
        // What is dropped was not asked about its end; its containers are removed with it.
        let _ = self.terminate();
        let deadline = Instant::now() + Duration::from_secs(30);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(POLL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Program {
    /// Spawns from a thread that lives as long as the suite: the parent-death signal belongs to the thread.
    pub(crate) fn spawn(mut command: Command, log: &Path) -> Result<Self> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let (send, receive) = mpsc::channel();
        std::thread::spawn(move || {
            let _ = send.send(command.spawn());
            loop {
                std::thread::park();
            }
        });
        Ok(Self { child: receive.recv()?.context("cannot start a program of the platform")? })
    }

    /// Asks it to end.
    pub(crate) fn terminate(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_none() {
            let killed = Command::new("kill").arg(self.child.id().to_string()).status()?;
            ensure!(killed.success(), "kill failed");
        }
        Ok(())
    }
}

/// Ports that nobody listens on now.
pub(crate) fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut listeners = Vec::new();
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        *port = listener.local_addr()?.port();
        listeners.push(listener);
    }
    Ok(ports)
}
