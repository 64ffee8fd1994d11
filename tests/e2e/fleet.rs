//! More machines: gateway and agents as programs of their own, each agent with a data directory of its own, over TLS.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::archive::{example, python};
use crate::client::Client;
use crate::platform::{Form, Platform, Program, free_ports, program, until};
use crate::two_processes::Database;

mod authority;
mod builds;
mod gateways;

/// How long a node may take until it is linked, or gone.
const PATIENCE: Duration = Duration::from_secs(60);

/// A gateway that nodes can join, and its operator.
pub(crate) struct Fleet {
    pub(crate) platform: Platform,
    pub(crate) operator: Client,
}

/// A machine, as far as it is one: a data directory, and an agent that may run there.
pub(crate) struct Machine {
    data_dir: TempDir,
    pub(crate) ops: u16,
    pub(crate) agent: Option<Program>,
    /// Beside those of all machines.
    settings: Vec<(&'static str, &'static str)>,
}

impl Fleet {
    pub(crate) async fn start(settings: &[(&str, &str)]) -> Result<Self> {
        let [port] = free_ports()?;
        let address = format!("127.0.0.1:{port}");
        let settings = [&[("NODE_ADDR", address.as_str())], settings].concat();
        let platform = Platform::start(Form::Gateway, &settings).await?;
        let operator = platform.user().await?;
        Ok(Self { platform, operator })
    }

    /// The line that a fresh token gives: `dartcloud node join URL TOKEN`.
    async fn line(&self) -> Result<String> {
        let invited = self.operator.post("/api/nodes/tokens", &json!({})).await?.expect(201)?;
        Ok(invited["command"].as_str().context("no command")?.to_owned())
    }

    /// A `dartcloud node …` of the operator's.
    pub(crate) fn node(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(program("dartcloud"))
            .arg("node")
            .args(arguments)
            .env("DARTCLOUD_URL", &self.operator.url)
            .env("DARTCLOUD_TOKEN", &self.operator.token)
            .output()?;
        let (out, err) = (String::from_utf8(output.stdout)?, String::from_utf8_lossy(&output.stderr).into_owned());
        ensure!(output.status.success(), "{arguments:?} failed:\n{out}\n{err}");
        Ok(out)
    }

    pub(crate) async fn nodes(&self) -> Result<Vec<Value>> {
        let answer = self.operator.get("/api/nodes").await?.expect(200)?;
        Ok(answer["nodes"].as_array().context("no nodes")?.clone())
    }

    /// The node of this name, once it is in this state.
    pub(crate) async fn until_state(&self, name: &str, state: &str) -> Result<Value> {
        let what = format!("{name} is {state}");
        let found = until(&what, PATIENCE, async || {
            Ok(self.nodes().await?.into_iter().find(|node| node["name"] == name && node["state"] == state))
        });
        found.await.with_context(|| self.platform.log())
    }

    /// A machine that has joined and runs its agent.
    pub(crate) async fn machine(&self, name: &str) -> Result<Machine> {
        self.machine_with(name, &[]).await
    }

    /// The same with these settings.
    pub(crate) async fn machine_with(&self, name: &str, settings: &[(&'static str, &'static str)]) -> Result<Machine> {
        let mut machine = Machine { settings: settings.to_vec(), ..Machine::new()? };
        machine.run(name, &self.line().await?)?;
        self.until_state(name, "linked").await.with_context(|| machine.log())?;
        Ok(machine)
    }
}

impl Machine {
    fn new() -> Result<Self> {
        let [ops] = free_ports()?;
        let data_dir = tempfile::Builder::new().prefix("dn-").tempdir()?;
        Ok(Self { data_dir, ops, agent: None, settings: Vec::new() })
    }

    fn prepare(&self, command: &mut Command, name: &str) {
        command
            .env("DATA_DIR", self.data_dir.path())
            .env("OPS_ADDR", format!("127.0.0.1:{}", self.ops))
            .env("NODE_NAME", name)
            .env("NODE_LABELS", "zone=a")
            .env("RUST_LOG", "info")
            .env("SANDBOX_MEMORY_MB", "2048")
            .env("SANDBOX_BLANKS", "0")
            .envs(self.settings.iter().copied());
    }

    /// Runs an agent by this line: a whole command, its program first.
    pub(crate) fn run(&mut self, name: &str, line: &str) -> Result<()> {
        let mut words = line.split_whitespace();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM"]).arg(program(words.next().context("no program")?)).args(words);
        self.prepare(&mut command, name);
        self.agent = Some(Program::spawn(command, &self.data_dir.path().join("agent.log"))?);
        Ok(())
    }

    /// Joins without running an agent, and waits for the end of it.
    fn enroll(&self, name: &str, line: &str) -> Result<Output> {
        let mut words = line.split_whitespace();
        let mut command = Command::new(program(words.next().context("no program")?));
        command.args(words).arg("--enroll-only");
        self.prepare(&mut command, name);
        Ok(command.output()?)
    }

    /// Joins, which must fail with this sentence and leave nothing.
    fn cannot_enroll(&self, line: &str, sentence: &str) -> Result<()> {
        let output = self.enroll("nobody", line)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success() && said.contains(sentence), "{:?}: {said}", output.status);
        ensure!(!self.identity().exists(), "an identity is left");
        Ok(())
    }

    /// Asks the agent to end, and waits.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        let mut agent = self.agent.take().context("no agent runs")?;
        agent.terminate()?;
        let status = until("the agent ends", PATIENCE, async || Ok(agent.child.try_wait()?)).await?;
        ensure!(status.success(), "ended with {status}:\n{}", self.log());
        Ok(())
    }

    fn identity(&self) -> std::path::PathBuf {
        self.data_dir.path().join("node-identity.json")
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.data_dir.path().join("agent.log")).unwrap_or_default()
    }

    async fn until_log(&self, part: &str) -> Result<()> {
        let found = until(part, PATIENCE, async || Ok(self.log().contains(part).then_some(())));
        found.await.with_context(|| self.log())
    }
}

fn mode(path: &Path) -> Result<u32> {
    Ok(std::fs::metadata(path)?.permissions().mode() & 0o777)
}

#[tokio::test(flavor = "multi_thread")]
async fn from_a_token_to_the_first_call_and_out_again() -> Result<()> {
    let fleet = Fleet::start(&[]).await?;
    let line = fleet.node(&["token"])?;
    ensure!(line.lines().count() == 1 && line.starts_with("dartcloud node join https://127.0.0.1:"), "{line}");
    let begun = Instant::now();
    let mut one = Machine::new()?;
    one.run("one", line.trim())?;
    fleet.until_state("one", "linked").await.with_context(|| one.log())?;
    let linked = begun.elapsed();
    fleet.operator.deploy("hello", example("hello-python")).await?.expect(201).with_context(|| one.log())?;
    let answer = fleet.operator.invoke("hello", json!({"name": "Ada"})).await?.expect(200)?;
    ensure!(answer["result"]["message"] == "Hello, Ada!", "{answer}");
    println!("from `node join` linked after {linked:?}, with a deploy the first call after {:?}", begun.elapsed());
    ensure!(fleet.nodes().await?[0]["labels"] == json!({"zone": "a"}), "no labels");
    ensure!(mode(&one.identity())? == 0o600, "others can read the key");

    // A second machine; then the first is stopped, and the function is at home on the other.
    let mut two = fleet.machine("two").await?;
    fleet.operator.invoke("hello", json!({})).await?.expect(200)?;
    one.stop().await?;
    fleet.until_state("one", "lost").await?;
    let answer = fleet.operator.invoke("hello", json!({})).await?.expect(200).with_context(|| two.log())?;
    ensure!(answer["success"] == true, "{answer}");
    ensure!(fleet.node(&["list"])?.lines().count() == 3, "not both are listed");

    let examined = |docker: &str| -> Result<(Option<i32>, String)> {
        let mut command = Command::new(program("dartcloud"));
        command.args(["node", "doctor"]);
        one.prepare(&mut command, "one");
        let output = command.env("DOCKER_HOST", docker).output()?;
        Ok((output.status.code(), String::from_utf8(output.stdout)?))
    };
    let (code, said) = examined("unix:///var/run/docker.sock")?;
    let agrees = said.lines().any(|line| line.starts_with("ok    clock    agrees with that of https://127.0.0.1:"));
    ensure!(code == Some(0) && said.contains("ok    engine   Docker Engine") && agrees, "{code:?}: {said}");
    let (code, said) = examined("unix:///nowhere/docker.sock")?;
    ensure!(code == Some(1) && said.contains("fail  engine   no Docker Engine"), "{code:?}: {said}");

    // The agent finds who it is, by either program; a token is not needed and not used.
    one.run("one", "dartcloud-node-agent")?;
    fleet.until_state("one", "linked").await.with_context(|| one.log())?;
    one.stop().await?;
    let unused = fleet.line().await?;
    one.run("one", &unused)?;
    let node = fleet.until_state("one", "linked").await.with_context(|| one.log())?;
    let third = Machine::new()?;
    let enrolled = third.enroll("three", &unused)?;
    ensure!(enrolled.status.success(), "{}", String::from_utf8_lossy(&enrolled.stderr));

    // Out of the fleet: its connections close, and it is not let in again.
    let begun = Instant::now();
    fleet.node(&["remove", "one"])?;
    one.until_log("was removed from the fleet").await?;
    ensure!(begun.elapsed() < Duration::from_secs(5), "removed after {:?}", begun.elapsed());
    ensure!(fleet.nodes().await?.iter().all(|other| other["id"] != node["id"]), "still listed");
    fleet.operator.invoke("hello", json!({})).await?.expect(200).with_context(|| two.log())?;
    one.stop().await?;
    let before = one.log().len();
    one.run("one", "dartcloud-node-agent")?;
    until("it is refused", PATIENCE, async || {
        Ok(one.log()[before..].contains("was removed from the fleet").then_some(()))
    })
    .await?;
    two.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_open_nothing() -> Result<()> {
    let database = Database::create()?;
    let fleet = Fleet::start(&[("DATABASE_URL", database.url())]).await?;
    let machine = Machine::new()?;
    let used = fleet.line().await?;
    ensure!(Machine::new()?.enroll("one", &used)?.status.success());
    machine.cannot_enroll(&used, "was used before")?;
    let old = fleet.line().await?;
    database.query("UPDATE join_tokens SET expires_at = LOCALTIMESTAMP - INTERVAL '1 second' WHERE used_at IS NULL")?;
    machine.cannot_enroll(&old, "too old")?;
    // For another fleet: neither does this gateway hear its secret, nor is it used up there.
    let other = Fleet::start(&[]).await?;
    let (ours, theirs) = (fleet.line().await?, other.line().await?);
    let word = |line: &str, at: usize| line.split_whitespace().nth(at).unwrap_or_default().to_owned();
    machine
        .cannot_enroll(&format!("dartcloud node join {} {}", word(&ours, 3), word(&theirs, 4)), "not of the fleet")?;
    ensure!(Machine::new()?.enroll("two", &theirs)?.status.success());
    let cut = &ours[..ours.len() - 3];
    machine.cannot_enroll(cut, "not a whole join token")?;
    machine.cannot_enroll("dartcloud node join https://127.0.0.1:1 ", "TOKEN")?;
    ensure!(fleet.nodes().await?.len() == 1, "more than one machine joined");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_gateways_are_one_fleet() -> Result<()> {
    let database = Database::create()?;
    let settings = [("DATABASE_URL", database.url())];
    let (first, mut second) = (Fleet::start(&settings).await?, Fleet::start(&settings).await?);
    second.operator = Client { url: second.operator.url, ..first.operator.clone() };
    // The token of one gateway opens the other.
    let (token, place) = (first.line().await?, second.line().await?);
    let word = |line: &str, at: usize| line.split_whitespace().nth(at).unwrap_or_default().to_owned();
    let mut machine = Machine::new()?;
    machine.run("one", &format!("dartcloud node join {} {}", word(&place, 3), word(&token, 4)))?;
    second.until_state("one", "linked").await.with_context(|| machine.log())?;
    // The gateway that it is not linked to knows that it is not lost, and when it is.
    let node = first.until_state("one", "elsewhere").await?;
    ensure!(node["busy"].is_null() && first.node(&["list"])?.contains("elsewhere"), "{node}");
    machine.stop().await?;
    first.until_state("one", "lost").await?;
    machine.run("one", "dartcloud-node-agent")?;
    second.until_state("one", "linked").await.with_context(|| machine.log())?;
    // What one gateway removes, the other closes as soon as it looks.
    let begun = Instant::now();
    first.node(&["remove", "one"])?;
    machine.until_log("was removed from the fleet").await?;
    ensure!(begun.elapsed() < Duration::from_secs(5), "removed after {:?}", begun.elapsed());
    ensure!(second.nodes().await?.is_empty(), "still listed");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_without_a_failed_call() -> Result<()> {
    let fleet = Fleet::start(&[("NODE_CERTIFICATE_SECONDS", "10")]).await?;
    let machine = fleet.machine("one").await?;
    fleet.operator.deploy("hello", example("hello-sh")).await?.expect(201).with_context(|| machine.log())?;
    let end = async || {
        let nodes = fleet.nodes().await?;
        Ok::<_, anyhow::Error>(nodes[0]["certificateExpiresAt"].as_str().context("no end")?.to_owned())
    };
    let (mut last, mut renewals) = (end().await?, 0);
    let begun = Instant::now();
    // Twice, so that the second one was asked for with the first one's certificate.
    while renewals < 2 {
        let answer = fleet.operator.invoke("hello", json!({})).await?;
        ensure!(answer.status == 200, "{answer:?}\n{}\n{}", machine.log(), fleet.platform.log());
        let now = end().await?;
        if now != last {
            (last, renewals) = (now, renewals + 1);
        }
        ensure!(begun.elapsed() < PATIENCE, "{renewals} renewals:\n{}", machine.log());
    }
    let metrics = reqwest::get(format!("http://127.0.0.1:{}/metrics", machine.ops)).await?.text().await?;
    let ends =
        metrics.lines().find_map(|line| line.strip_prefix("dartcloud_agent_certificate_expires_timestamp_seconds "));
    ensure!(ends.is_some_and(|ends| ends.parse().is_ok_and(|seconds: u64| seconds > 1_700_000_000)), "{ends:?}");
    ensure!(!machine.log().contains("no gateway"), "the link broke:\n{}", machine.log());
    // What is dialled from now on shows the new certificate; the old ones have ended.
    let mut machine = machine;
    machine.stop().await?;
    machine.run("one", "dartcloud-node-agent")?;
    fleet.until_state("one", "linked").await.with_context(|| machine.log())?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn cordon_and_drain() -> Result<()> {
    let fleet = Fleet::start(&[]).await?;
    let machine = fleet.machine("one").await?;
    let slow = python("time.sleep(request['body'])\nanswer('late')");
    fleet.operator.deploy("slow", slow).await?.expect(201).with_context(|| machine.log())?;
    fleet.operator.deploy("cold", example("hello-python")).await?.expect(201)?;
    fleet.operator.invoke("slow", json!(0)).await?.expect(200)?;
    until("the node says that it is warm", PATIENCE, async || {
        Ok(fleet.nodes().await?.iter().any(|node| node["warm"] == 1).then_some(()))
    })
    .await?;
    ensure!(fleet.node(&["label", "one", "gpu=true"])?.contains("gpu=true,zone=a"));
    ensure!(fleet.node(&["label", "one", "zone=b", "gpu-"])?.contains("has the labels zone=b\n"));
    ensure!(fleet.node(&["cordon", "one"])?.contains("is cordoned"));
    fleet.operator.invoke("slow", json!(0)).await?.expect(200)?;
    fleet.operator.invoke("cold", json!({})).await?.expect_error(503, "no_node")?;
    ensure!(fleet.node(&["uncordon", "one"])?.contains("is linked"));
    fleet.operator.invoke("cold", json!({})).await?.expect(200)?;

    let caller = fleet.operator.clone();
    let call = tokio::spawn(async move { caller.invoke("slow", json!(3)).await });
    until("the call is under way", PATIENCE, async || {
        Ok(fleet.nodes().await?.iter().any(|node| node["busy"] == 1).then_some(()))
    })
    .await?;
    let said = tokio::task::block_in_place(|| fleet.node(&["drain", "one"]))?;
    ensure!(said.contains("is empty"), "{said}");
    // The call has ended by then, but for its way back.
    tokio::time::timeout(Duration::from_millis(500), call).await.context("it was not empty")???.expect(200)?;
    fleet.operator.invoke("slow", json!(0)).await?.expect_error(503, "no_node")?;
    Ok(())
}
