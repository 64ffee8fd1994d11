//! Servers of one test alone, so that it may stop and hang them: PostgreSQL, Redis, a Docker Engine.

use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use crate::platform::{Program, free_ports, until};
use crate::two_processes::psql;

/// How long a server may take to start, or to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a server is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Away {
    /// Its processes have ended, without a chance to write anything down.
    Killed,
    /// They are there, and do nothing.
    Hung,
}

/// A server that can be away.
pub(super) trait Server {
    fn running(&mut self) -> &mut Option<Program>;

    async fn leave(&mut self, how: Away) -> Result<()> {
        match how {
            Away::Killed => ended(self.running(), "-KILL").await,
            Away::Hung => send("-STOP", &[pid(self.running())?]),
        }
    }

    async fn come_back(&mut self, how: Away) -> Result<()>;
}

/// A cluster of PostgreSQL.
pub(super) struct Postgres {
    directory: TempDir,
    programs: PathBuf,
    port: u16,
    running: Option<Program>,
}

impl Postgres {
    pub(super) async fn start() -> Result<Self> {
        let versions =
            std::fs::read_dir("/usr/lib/postgresql").context("PostgreSQL is not installed: script/setup test")?;
        let programs = versions.filter_map(|version| Some(version.ok()?.path().join("bin")));
        let programs = programs.filter(|path| path.join("initdb").exists()).max().context("no initdb")?;
        let directory = tempfile::Builder::new().prefix("dpg-").tempdir()?;
        if let Some((uid, gid)) = unprivileged()? {
            chown(directory.path(), Some(uid), Some(gid))?;
        }
        let [port] = free_ports()?;
        let mut postgres = Self { directory, programs, port, running: None };
        let mut initdb = postgres.command("initdb")?;
        initdb.args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"]);
        let made = initdb.output()?;
        ensure!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        postgres.launch().await?;
        Ok(postgres)
    }

    /// The URL of a fresh database.
    pub(super) fn database(&self, name: &str) -> Result<String> {
        psql(&self.url("postgres"), &format!("CREATE DATABASE {name}"))?;
        Ok(self.url(name))
    }

    fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// One of its programs on its data, as somebody whom it does not refuse. The suite's end ends it as well.
    fn command(&self, program: &str) -> Result<Command> {
        let mut command = Command::new("setpriv");
        if let Some((uid, gid)) = unprivileged()? {
            command.args(["--reuid", &uid.to_string(), "--regid", &gid.to_string(), "--clear-groups"]);
        }
        command.args(["--pdeathsig", "QUIT"]).arg(self.programs.join(program));
        command.arg("-D").arg(self.directory.path().join("data")).current_dir(self.directory.path());
        Ok(command)
    }

    async fn launch(&mut self) -> Result<()> {
        let mut command = self.command("postgres")?;
        command.args(["-p", &self.port.to_string(), "-k"]).arg(self.directory.path());
        // What the server has written outlives the server; the machine does not fail here.
        for setting in ["listen_addresses=127.0.0.1", "fsync=off", "max_connections=100"] {
            command.args(["-c", setting]);
        }
        let log = self.directory.path().join("log");
        self.running = Some(Program::spawn(command, &log)?);
        let url = self.url("postgres");
        let answers = until("PostgreSQL answers", PATIENCE, async || Ok(psql(&url, "SELECT 1").ok())).await;
        answers.map(drop).with_context(|| std::fs::read_to_string(log).unwrap_or_default())
    }
}

impl Server for Postgres {
    fn running(&mut self) -> &mut Option<Program> {
        &mut self.running
    }

    async fn leave(&mut self, how: Away) -> Result<()> {
        match how {
            // An immediate stop writes nothing and says nothing to anybody.
            Away::Killed => ended(&mut self.running, "-QUIT").await,
            // First the one that would start others.
            Away::Hung => {
                let server = pid(&self.running)?;
                send("-STOP", &[server])?;
                send("-STOP", &children(server)?)
            }
        }
    }

    async fn come_back(&mut self, how: Away) -> Result<()> {
        match how {
            Away::Killed => self.launch().await,
            Away::Hung => {
                let server = pid(&self.running)?;
                send("-CONT", &children(server)?)?;
                send("-CONT", &[server])
            }
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // A test that failed may have left it hung, and clients that it would wait for.
        if let Ok(server) = pid(&self.running) {
            let _ = children(server).and_then(|all| send("-CONT", &all));
            let _ = send("-CONT", &[server]);
            let _ = send("-QUIT", &[server]);
        }
    }
}

/// A Redis that keeps nothing.
pub(super) struct Redis {
    directory: TempDir,
    port: u16,
    running: Option<Program>,
}

impl Redis {
    pub(super) fn start() -> Result<Self> {
        let [port] = free_ports()?;
        let mut redis = Self { directory: tempfile::tempdir()?, port, running: None };
        redis.launch()?;
        Ok(redis)
    }

    pub(super) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    fn launch(&mut self) -> Result<()> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "redis-server", "--bind", "127.0.0.1", "--port", &self.port.to_string()]);
        command.args(["--save", "", "--appendonly", "no", "--dir"]).arg(self.directory.path());
        self.running = Some(Program::spawn(command, &self.directory.path().join("log"))?);
        Ok(())
    }
}

impl Server for Redis {
    fn running(&mut self) -> &mut Option<Program> {
        &mut self.running
    }

    async fn come_back(&mut self, how: Away) -> Result<()> {
        match how {
            Away::Killed => self.launch(),
            Away::Hung => send("-CONT", &[pid(&self.running)?]),
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = pid(&self.running).and_then(|server| send("-KILL", &[server]));
    }
}

/// A Docker Engine with a containerd, images and containers of its own, which outlive it.
pub(super) struct Engine {
    directory: TempDir,
    running: Option<Program>,
}

impl Engine {
    /// One that has this image of the machine's Engine.
    pub(super) async fn start(image: &str) -> Result<Self> {
        let mut engine = Self { directory: tempfile::Builder::new().prefix("de-").tempdir()?, running: None };
        engine.launch().await?;
        let mut saved = Command::new("docker").args(["save", image]).stdout(Stdio::piped()).spawn()?;
        let image = saved.stdout.take().context("no output")?;
        let loaded = Command::new("docker").args(["-H", &engine.host(), "load"]).stdin(image).output()?;
        ensure!(saved.wait()?.success() && loaded.status.success(), "{}", String::from_utf8_lossy(&loaded.stderr));
        Ok(engine)
    }

    pub(super) fn host(&self) -> String {
        format!("unix://{}", self.directory.path().join("sock").display())
    }

    /// The containers that it has, running or not.
    pub(super) fn containers(&self) -> Result<Vec<String>> {
        let listed = Command::new("docker").args(["-H", &self.host(), "ps", "-aq", "--no-trunc"]).output()?;
        ensure!(listed.status.success(), "docker ps: {}", String::from_utf8_lossy(&listed.stderr));
        Ok(String::from_utf8(listed.stdout)?.lines().map(str::to_owned).collect())
    }

    async fn launch(&mut self) -> Result<()> {
        let within = |name: &str| self.directory.path().join(name);
        let mut command = Command::new("setpriv");
        // In a network of its own: an Engine without a bridge removes the one of the machine.
        command.args(["--pdeathsig", "TERM", "unshare", "--net"]);
        command.args(["dockerd", "--host", &self.host(), "--live-restore"]);
        command.args(["--bridge=none", "--iptables=false"]);
        for (option, name) in [("--data-root", "data"), ("--exec-root", "exec"), ("--pidfile", "pid")] {
            command.arg(option).arg(within(name));
        }
        // The one that was killed left its number, which may be another's by now.
        let _ = std::fs::remove_file(within("pid"));
        let log = within("log");
        self.running = Some(Program::spawn(command, &log)?);
        let answers = until("the Engine answers", PATIENCE, async || Ok(self.containers().ok())).await;
        answers.map(drop).with_context(|| std::fs::read_to_string(log).unwrap_or_default())
    }
}

impl Server for Engine {
    fn running(&mut self) -> &mut Option<Program> {
        &mut self.running
    }

    async fn come_back(&mut self, how: Away) -> Result<()> {
        match how {
            Away::Killed => self.launch().await,
            Away::Hung => send("-CONT", &[pid(&self.running)?]),
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = pid(&self.running).and_then(|server| send("-CONT", &[server]));
        // Containers outlive it otherwise.
        let left = self.containers().unwrap_or_default();
        if !left.is_empty() {
            let _ = Command::new("docker").args(["-H", &self.host(), "rm", "-f"]).args(left).output();
        }
        drop(self.running.take());
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
        let paths = mounts.lines().rev().filter_map(|line| line.split(' ').nth(1));
        for mount in paths.filter(|path| Path::new(path).starts_with(self.directory.path())) {
            let _ = Command::new("umount").args(["-l", mount]).status();
        }
    }
}

fn pid(running: &Option<Program>) -> Result<u32> {
    Ok(running.as_ref().context("it does not run")?.child.id())
}

/// Ends a server by a signal, and waits.
async fn ended(running: &mut Option<Program>, signal: &str) -> Result<()> {
    let mut program = running.take().context("it does not run")?;
    send(signal, &[program.child.id()])?;
    until("the server ends", PATIENCE, async || Ok(program.child.try_wait()?)).await.map(drop)
}

fn send(signal: &str, to: &[u32]) -> Result<()> {
    let sent = Command::new("kill").arg(signal).args(to.iter().map(u32::to_string)).output()?;
    ensure!(sent.status.success(), "kill {signal}: {}", String::from_utf8_lossy(&sent.stderr));
    Ok(())
}

/// The processes that this one started.
fn children(parent: u32) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // The name, in brackets, may hold anything; state and parent come after it. One that ended meanwhile is none.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        if fields.split_whitespace().nth(1).and_then(|text| text.parse().ok()) == Some(parent) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Where this is root, which PostgreSQL refuses to be: the user and the group of somebody else.
fn unprivileged() -> Result<Option<(u32, u32)>> {
    if std::fs::metadata("/proc/self")?.uid() != 0 {
        return Ok(None);
    }
    let users = std::fs::read_to_string("/etc/passwd")?;
    let ids = |name: &str| {
        let mut fields = users.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?.split(':').skip(1);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    Ok(Some(ids("postgres").or_else(|| ids("nobody")).context("no user but root")?))
}
