//! Ours: the gateway, and an agent or what stands in for one, as programs of their own with a data directory of their
//! own, and one user who deploys and calls.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::child::{Child, free_address, pinned};
use crate::http1::{self, Address, Connection};
use crate::load::Aim;
use crate::machine::Cores;
use crate::program::Program;
use crate::stage::Stage;

/// How long a program may take to be ready.
const READY_WITHIN: Duration = Duration::from_secs(90);

/// How long the pool is watched for a change before it counts as at rest, how often, and at most.
const AT_REST: Duration = Duration::from_millis(1500);
const LOOK: Duration = Duration::from_millis(50);
const RESTS_WITHIN: Duration = Duration::from_secs(300);

/// The agent's count of blank sandboxes.
const BLANKS: &str = "dartcloud_sandbox_count{state=\"blank\"} ";

/// Signs the tokens of this run's platforms.
pub(crate) const JWT_SECRET: &str = "the-benchmark-signs-its-tokens-with-this-0123456789";

/// So much is let in that no limit is ever hit; each is still looked at.
const LIMITS: [(&str, &str); 2] = [("RATE_LIMIT_PER_CLIENT", "1000000"), ("RATE_LIMIT_LOGIN", "1000000")];

/// What a function is called with.
pub(crate) const BODY: &[u8] = br#"{"name":"Ada"}"#;

/// A platform that runs until it is dropped.
pub(crate) struct Platform {
    // In the order in which they end.
    nodes: Vec<Child>,
    gateway: Child,
    pub(crate) address: Address,
    /// Where the stand-in answers without a gateway.
    pub(crate) upstream: Option<Upstream>,
    pub(crate) data_dir: PathBuf,
    /// Where the node's metrics are.
    ops: Address,
    token: String,
    handle: String,
}

/// The stand-in's own sockets.
pub(crate) struct Upstream {
    pub(crate) socket: PathBuf,
    pub(crate) address: SocketAddr,
}

/// The user's e-mail; his handle is what stands before the `@`.
pub(crate) const EMAIL: &str = "ada@example.com";
const PASSWORD: &str = "correct horse battery";

impl Platform {
    /// Gateway and agent on all cores, with these settings over the defaults.
    pub(crate) fn whole(stage: &Stage, settings: &[(&str, &str)]) -> Result<Self> {
        Self::on_cores(stage, &stage.cores.all, settings)
    }

    /// Gateway and agent on these cores. Sandboxes are the Engine's, which puts them on any.
    pub(crate) fn on_cores(stage: &Stage, cores: &str, settings: &[(&str, &str)]) -> Result<Self> {
        let data_dir = stage.folder()?;
        let (gateway, address) = gateway(stage, cores, &data_dir, settings)?;
        let ops = free_address()?;
        let mut agent = program(stage, cores, "dartcloud-node-agent", &data_dir, ops, settings);
        agent.env("RUNNER_PATH", stage.program("dartcloud-runner"));
        let node = Child::spawn(agent, "agent", &data_dir)?;
        Self::ready(gateway, vec![node], address, None, data_dir, ops)
    }

    /// A gateway that so many machines join, each with a data directory of its own and these settings; and how long each
    /// took to be linked.
    pub(crate) fn joined(stage: &Stage, machines: usize, settings: &[(&str, &str)]) -> Result<(Self, Vec<Duration>)> {
        let data_dir = stage.folder()?;
        let door = free_address()?.to_string();
        let (gateway, address) = gateway(stage, &stage.cores.all, &data_dir, &[("NODE_ADDR", &door)])?;
        let mut platform = Self::ready(gateway, Vec::new(), address, None, data_dir, free_address()?)?;
        let mut took = Vec::new();
        for number in 1..=machines {
            let invited = platform.control("POST", "/api/nodes/tokens")?;
            let line = invited["command"].as_str().context("no command")?.to_owned();
            let folder = stage.folder()?;
            let mut join = program(stage, &stage.cores.all, "dartcloud", &folder, free_address()?, settings);
            // The line is that of a program which is on the path elsewhere.
            join.args(line.split_whitespace().skip(1)).env("NODE_NAME", number.to_string());
            join.env("RUNNER_PATH", stage.program("dartcloud-runner"));
            let begun = Instant::now();
            let mut node = Child::spawn(join, "agent", &folder)?;
            node.wait_until(READY_WITHIN, || platform.linked().is_ok_and(|linked| linked == number))?;
            took.push(begun.elapsed());
            platform.nodes.push(node);
        }
        Ok((platform, took))
    }

    /// How many nodes are linked.
    fn linked(&self) -> Result<usize> {
        let nodes = self.control("GET", "/api/nodes")?;
        Ok(nodes["nodes"].as_array().context("no nodes")?.iter().filter(|node| node["state"] == "linked").count())
    }

    /// A call of the control API by the operator, without a body.
    fn control(&self, method: &str, path: &str) -> Result<Value> {
        let request = http1::request(method, path, &[&self.authorization(), JSON], b"{}");
        Connection::open(&self.address)?.ask(&request)?.expect(&[200, 201]).with_context(|| path.to_owned())
    }

    /// The edge alone: a gateway with one thread on the server's core, and a stand-in node among the load.
    pub(crate) fn edge(stage: &Stage, data_dir: PathBuf) -> Result<Self> {
        let Cores { server, load, .. } = &stage.cores;
        let (gateway, address) = gateway(stage, server, &data_dir, &[("EDGE_THREADS", "1")])?;
        let upstream = Upstream { socket: data_dir.join("upstream.sock"), address: free_address()? };
        let mut standin = pinned(load, &std::env::current_exe()?);
        standin.arg("node").arg("--link").arg(data_dir.join("link.sock"));
        standin.arg("--socket").arg(&upstream.socket).args(["--address", &upstream.address.to_string()]);
        let node = Child::spawn(standin, "node", &data_dir)?;
        // A stand-in has no metrics, and nobody asks it.
        let ops = upstream.address;
        Self::ready(gateway, vec![node], address, Some(upstream), data_dir, ops)
    }

    fn ready(
        mut gateway: Child,
        nodes: Vec<Child>,
        address: SocketAddr,
        upstream: Option<Upstream>,
        data_dir: PathBuf,
        ops: SocketAddr,
    ) -> Result<Self> {
        let ops = Address::Tcp(ops);
        let address = Address::Tcp(address);
        let probe = http1::request("GET", "/api/health/ready", &[], b"");
        gateway.wait_until(READY_WITHIN, || {
            Connection::open(&address).and_then(|mut one| one.ask(&probe)).is_ok_and(|answer| answer.status == 200)
        })?;
        let mut platform =
            Self { nodes, gateway, address, upstream, data_dir, ops, token: String::new(), handle: String::new() };
        let credentials = json!({"email": EMAIL, "password": PASSWORD});
        // Who restarts a gateway on the same data is there already.
        platform.post("/api/auth/register", &credentials, &[201, 409])?;
        let tokens = platform.post("/api/auth/login", &credentials, &[200])?;
        platform.token = tokens["accessToken"].as_str().context("no token")?.to_owned();
        EMAIL.split('@').next().unwrap_or_default().clone_into(&mut platform.handle);
        Ok(platform)
    }

    /// The gateway's process.
    pub(crate) fn gateway(&self) -> u32 {
        self.gateway.id()
    }

    /// The agent's process, or the stand-in's; of several, the first.
    pub(crate) fn node(&self) -> u32 {
        self.nodes[0].id()
    }

    /// All processes.
    pub(crate) fn all(&self) -> Vec<u32> {
        self.nodes.iter().map(Child::id).chain([self.gateway()]).collect()
    }

    /// The gateway's database, unless its settings say another.
    pub(crate) fn database(&self) -> PathBuf {
        self.data_dir.join("dartcloud.db")
    }

    pub(crate) fn both(&self) -> [u32; 2] {
        [self.gateway(), self.node()]
    }

    fn post(&self, path: &str, body: &Value, statuses: &[u16]) -> Result<Value> {
        let request = http1::request("POST", path, &[JSON], body.to_string().as_bytes());
        Connection::open(&self.address)?.ask(&request)?.expect(statuses).with_context(|| path.to_owned())
    }

    /// A login, as anyone may send it.
    pub(crate) fn login(&self) -> Aim {
        let body = json!({"email": EMAIL, "password": PASSWORD}).to_string();
        Aim::new(self.address.clone(), http1::request("POST", "/api/auth/login", &[JSON], body.as_bytes()))
    }

    /// Deploys a program and waits until it serves.
    pub(crate) fn deploy(&self, name: &str, program: &Program, settings: &Value) -> Result<()> {
        self.upload(name, &program.archive()?, settings)
    }

    /// Deploys an archive and waits until it serves.
    pub(crate) fn upload(&self, name: &str, archive: &[u8], settings: &Value) -> Result<()> {
        let field = |name: &str| format!("--edge\r\nContent-Disposition: form-data; name=\"{name}\"");
        let mut form = format!("{}\r\n\r\n{name}\r\n", field("name")).into_bytes();
        form.extend_from_slice(format!("{}\r\n\r\n{settings}\r\n", field("settings")).as_bytes());
        let file = "; filename=\"function.tar.gz\"\r\nContent-Type: application/gzip";
        form.extend_from_slice(format!("{}{file}\r\n\r\n", field("archive")).as_bytes());
        form.extend_from_slice(archive);
        form.extend_from_slice(b"\r\n--edge--\r\n");
        let headers = [self.authorization(), "Content-Type: multipart/form-data; boundary=edge".to_owned()];
        let request = http1::request("POST", "/api/functions/deploy", &headers.each_ref().map(|one| &**one), &form);
        let answer = Connection::open(&self.address)?.ask(&request)?;
        answer.expect(&[200, 201]).with_context(|| {
            format!("deploy of {name}:\n{}", self.nodes.iter().map(Child::said).collect::<String>())
        })?;
        Ok(())
    }

    fn authorization(&self) -> String {
        format!("Authorization: Bearer {}", self.token)
    }

    /// A `GET` of a private function, with its owner's token.
    pub(crate) fn get_private(&self, name: &str) -> Aim {
        let target = format!("/f/{}/{name}/", self.handle);
        self.aim(http1::request("GET", &target, &[&self.authorization()], b""))
    }

    /// A `GET` of a public function, by nobody.
    pub(crate) fn get_public(&self, name: &str) -> Aim {
        self.aim(http1::request("GET", &format!("/f/{}/{name}/", self.handle), &[], b""))
    }

    /// A `POST` of a small JSON body to a private function, with its owner's token.
    pub(crate) fn call(&self, name: &str) -> Aim {
        let target = format!("/f/{}/{name}/", self.handle);
        self.aim(http1::request("POST", &target, &[&self.authorization(), JSON], BODY))
    }

    fn aim(&self, request: Vec<u8>) -> Aim {
        Aim::new(self.address.clone(), request)
    }

    /// Waits until the node has at least so many blank sandboxes and their number stands still.
    pub(crate) fn settle(&self, blanks: usize) -> Result<()> {
        let deadline = Instant::now() + RESTS_WITHIN;
        let (mut seen, mut since) = (self.blanks()?, Instant::now());
        while seen < blanks || since.elapsed() < AT_REST {
            ensure!(Instant::now() < deadline, "{seen} of {blanks} blank sandboxes after {RESTS_WITHIN:?}");
            std::thread::sleep(LOOK);
            let now = self.blanks()?;
            if now != seen {
                (seen, since) = (now, Instant::now());
            }
        }
        Ok(())
    }

    fn blanks(&self) -> Result<usize> {
        let answer = Connection::open(&self.ops)?.ask(&http1::request("GET", "/metrics", &[], b""))?;
        let text = String::from_utf8(answer.body)?;
        let value = text.lines().find_map(|line| line.strip_prefix(BLANKS)).context("no count of blank sandboxes")?;
        Ok(value.trim().parse()?)
    }

    /// The node's id, which its containers bear as a label.
    pub(crate) fn node_label(&self) -> Result<String> {
        node_label(&self.data_dir)
    }
}

/// The label of the containers of the agent that has this data directory.
pub(crate) fn node_label(data_dir: &Path) -> Result<String> {
    let id = std::fs::read_to_string(data_dir.join("node-id")).context("the agent has no id yet")?;
    Ok(format!("dartcloud.node={}", id.trim()))
}

pub(crate) const JSON: &str = "Content-Type: application/json";

fn gateway(stage: &Stage, cores: &str, data_dir: &Path, settings: &[(&str, &str)]) -> Result<(Child, SocketAddr)> {
    let address = free_address()?;
    let mut command = program(stage, cores, "dartcloud-gateway", data_dir, free_address()?, settings);
    command.env("PORT", address.port().to_string()).env("JWT_SECRET", JWT_SECRET);
    Ok((Child::spawn(command, "gateway", data_dir)?, address))
}

/// One of the platform's programs. Nothing of this environment reaches it but what it needs: a database that is set
/// here is not to be measured, nor written to.
pub(crate) fn program(
    stage: &Stage,
    cores: &str,
    name: &str,
    data_dir: &Path,
    ops: SocketAddr,
    settings: &[(&str, &str)],
) -> Command {
    let mut command = pinned(cores, &stage.program(name));
    command.env_clear();
    for kept in ["PATH", "HOME", "DOCKER_HOST"] {
        if let Some(value) = std::env::var_os(kept) {
            command.env(kept, value);
        }
    }
    command.env("DATA_DIR", data_dir).env("OPS_ADDR", ops.to_string()).env("RUST_LOG", "warn");
    command.envs(LIMITS).envs(settings.iter().copied());
    command
}
