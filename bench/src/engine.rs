//! The control of cold starts: Docker itself, by its command line and by its raw API; and what the Engine says of our
//! sandboxes.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::bare::{binds, container_arguments};
use crate::child::{bounded, run};
use crate::http1::{self, Address, Connection};
use crate::platform::JSON;
use crate::program::Program;
use crate::stage::Stage;

/// How long one container may live, and a question to the Engine may take, in seconds.
const LIVES: u32 = 60;
const ANSWERS: u32 = 30;

/// `docker run --rm --network none` of this program, from the start of the command to its end.
pub(crate) fn docker_run(stage: &Stage, program: &Program) -> Result<Duration> {
    let exchange = stage.memory()?;
    let mut command = bounded(LIVES, "docker");
    command.args(["run", "--rm"]);
    container_arguments(&mut command, program, &exchange)?;
    command.arg(&program.image).args(&program.command);
    let start = Instant::now();
    run(&mut command)?;
    let time = start.elapsed();
    has_result(&exchange)?;
    Ok(time)
}

fn has_result(exchange: &Path) -> Result<()> {
    let result = std::fs::read_to_string(exchange.join("result.json"))?;
    ensure!(result.contains("\"body\""), "the program wrote no result: {result}");
    Ok(())
}

/// The raw calls that a container costs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawCalls {
    /// create, start, wait.
    pub(crate) until_done: Duration,
    /// These and remove.
    pub(crate) all: Duration,
}

/// The Engine's API on its socket.
pub(crate) struct Engine {
    connection: Connection,
}

impl Engine {
    pub(crate) fn connect() -> Result<Self> {
        let host = std::env::var("DOCKER_HOST").unwrap_or_else(|_| "unix:///var/run/docker.sock".to_owned());
        let path = host.strip_prefix("unix://").context("the raw calls need an Engine on a Unix socket")?;
        Ok(Self { connection: Connection::open(&Address::Unix(PathBuf::from(path)))? })
    }

    /// create, start, wait, remove, of this program.
    pub(crate) fn run(&mut self, stage: &Stage, program: &Program) -> Result<RawCalls> {
        let exchange = stage.memory()?;
        let settings = json!({
            "Image": program.image,
            "Cmd": program.command,
            "Env": program.env,
            "WorkingDir": "/function",
            "HostConfig": {"NetworkMode": "none", "Binds": binds(program, &exchange)?, "Tmpfs": {"/tmp": ""}},
        });
        let start = Instant::now();
        let created = self.ask("POST", "/containers/create", settings.to_string().as_bytes(), 201)?;
        let id = created["Id"].as_str().context("no id")?.to_owned();
        let ran = self.start_and_wait(&id);
        let until_done = start.elapsed();
        // Also what failed is removed.
        self.ask("DELETE", &format!("/containers/{id}?force=1"), b"", 204)?;
        let all = start.elapsed();
        ran?;
        has_result(&exchange)?;
        Ok(RawCalls { until_done, all })
    }

    /// pause, unpause.
    pub(crate) fn pause_and_unpause(&mut self, id: &str) -> Result<()> {
        self.ask("POST", &format!("/containers/{id}/pause"), b"", 204)?;
        self.ask("POST", &format!("/containers/{id}/unpause"), b"", 204).map(drop)
    }

    fn start_and_wait(&mut self, id: &str) -> Result<()> {
        self.ask("POST", &format!("/containers/{id}/start"), b"", 204)?;
        let ended = self.ask("POST", &format!("/containers/{id}/wait"), b"", 200)?;
        ensure!(ended["StatusCode"] == 0, "the container failed: {ended}");
        Ok(())
    }

    fn ask(&mut self, method: &str, path: &str, body: &[u8], status: u16) -> Result<serde_json::Value> {
        let request = http1::request(method, &format!("/v1.41{path}"), &[JSON], body);
        self.connection.ask(&request)?.expect(&[status]).with_context(|| path.to_owned())
    }
}

/// The process ids of the running containers that bear this label.
pub(crate) fn container_pids(label: &str) -> Result<Vec<u32>> {
    let ids = containers(label)?;
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let output = run(bounded(ANSWERS, "docker").args(["inspect", "--format", "{{.State.Pid}}"]).args(ids))?;
    String::from_utf8(output)?.lines().map(|pid| Ok(pid.trim().parse()?)).collect()
}

/// The ids of the running containers that bear this label.
pub(crate) fn containers(label: &str) -> Result<Vec<String>> {
    let output = run(bounded(ANSWERS, "docker").args(["ps", "-q", "--filter", &format!("label={label}")]))?;
    Ok(String::from_utf8(output)?.lines().map(str::to_owned).collect())
}
