//! The compose file, brought up for real from images of this run's programs, with its secrets from files. Grafana alone
//! is left out: its image cannot be made from Debian's packages.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tempfile::TempDir;

use crate::archive::example;
use crate::client::Client;
use crate::platform::{JWT_SECRET, free_ports, program, until};

/// How long the services may take to be healthy.
const UP_WITHIN: Duration = Duration::from_secs(120);

const PROGRAMS: [&str; 4] = ["dartcloud", "dartcloud-gateway", "dartcloud-node-agent", "dartcloud-runner"];
const SERVICES: [&str; 5] = ["postgres", "redis", "backend", "agent", "prometheus"];

/// The services, which go with it.
struct Composed {
    project: String,
    variables: Vec<(&'static str, String)>,
    port: u16,
    /// Holds the secrets, and the node's data directory, a shared mount as on a machine with systemd.
    folder: TempDir,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let said = [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy);
    ensure!(output.status.success(), "{command:?}: {}\n{}{}", output.status, said[0], said[1]);
    Ok(said[0].clone().into_owned())
}

/// The images of what runs beside the platform: official where a registry answers, made from Debian's packages else.
fn images(names: &[&str]) -> Result<Vec<String>> {
    let printed = run(Command::new(root().join("script/images")).args(names))?;
    let is_image = |line: &&str| line.contains(':') && !line.contains(' ');
    let found: Vec<_> = printed.lines().filter(is_image).map(str::to_owned).collect();
    ensure!(found.len() == names.len(), "{printed}");
    Ok(found)
}

/// Makes the platform's image of this `target` out of the programs that were built for this run.
fn build(target: &str, base: &str) -> Result<String> {
    let tag = format!("local/dartcloud-{target}:suite");
    let base = format!("BASE={base}");
    let rust = base.replace("BASE=", "RUST=");
    let arguments = ["--build-arg", &base, "--build-arg", &rust, "--build-arg", "PROGRAMS=given"];
    run(Command::new("docker").args(["build", "-q", "--target", target, "-t", &tag]).args(arguments).arg(root()))?;
    Ok(tag)
}

fn collect_programs() -> Result<()> {
    let folder = root().join(".programs");
    fs::create_dir_all(&folder)?;
    for name in PROGRAMS {
        run(Command::new("strip").arg("-o").arg(folder.join(name)).arg(program(name)))?;
    }
    Ok(())
}

impl Composed {
    fn new() -> Result<Self> {
        collect_programs()?;
        let base = images(&["debian"])?.remove(0);
        let [postgres, redis, prometheus] = ["postgres", "redis", "prometheus"].map(|name| images(&[name]));
        let folder = tempfile::Builder::new().prefix("dc-").tempdir()?;
        let data = folder.path().join("node");
        fs::create_dir(&data)?;
        run(Command::new("mount").arg("--bind").arg(&data).arg(&data))?;
        run(Command::new("mount").arg("--make-rshared").arg(&data))?;
        for (name, secret) in [("postgres_password", "a/b+c=="), ("jwt_secret", JWT_SECRET)] {
            let path = folder.path().join(name);
            fs::write(&path, format!("{secret}\n"))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o444))?;
        }
        fs::write(folder.path().join("empty.env"), "")?;
        let [port, nodes, database, gateway_ops, node_ops, prometheus_port] = free_ports()?;
        let variables = vec![
            ("POSTGRES_PASSWORD", String::new()),
            ("JWT_SECRET", String::new()),
            ("SECRETS_DIR", folder.path().display().to_string()),
            ("NODE_DATA_DIR", data.display().to_string()),
            ("PORT", port.to_string()),
            ("NODE_PUBLISH", format!("127.0.0.1:{nodes}")),
            ("POSTGRES_PORT", database.to_string()),
            ("GATEWAY_OPS_PORT", gateway_ops.to_string()),
            ("NODE_OPS_PORT", node_ops.to_string()),
            ("PROMETHEUS_PORT", prometheus_port.to_string()),
            ("POSTGRES_IMAGE", postgres?.remove(0)),
            ("REDIS_IMAGE", redis?.remove(0)),
            ("PROMETHEUS_IMAGE", prometheus?.remove(0)),
            ("GATEWAY_IMAGE", build("gateway", &base)?),
            ("AGENT_IMAGE", build("node-agent", &base)?),
            ("SANDBOX_MEMORY_MB", "2048".into()),
        ];
        Ok(Self { project: format!("dc{port}"), variables, port, folder })
    }

    fn compose(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("docker-compose");
        // The file of whoever runs the suite says nothing here.
        command.current_dir(root()).arg("--env-file").arg(self.folder.path().join("empty.env"));
        command.args(["-p", &self.project]);
        command.args(["-f", "docker-compose.yml", "-f", "docker-compose.prod.yml"]).args(arguments);
        run(command.envs(self.variables.iter().map(|(name, value)| (name, value))))
    }

    async fn up(&self) -> Result<()> {
        self.compose(&[&["up", "-d"][..], &SERVICES].concat())?;
        let healthy = async || {
            let states = SERVICES.map(|service| self.health(service));
            Ok(states.into_iter().collect::<Result<Vec<_>>>()?.iter().all(|state| state == "healthy").then_some(()))
        };
        until("all services are healthy", UP_WITHIN, healthy).await.with_context(|| self.logs())
    }

    fn health(&self, service: &str) -> Result<String> {
        let id = self.compose(&["ps", "-q", service])?;
        let state = run(Command::new("docker").args(["inspect", "-f", "{{.State.Health.Status}}", id.trim()]))?;
        Ok(state.trim().to_owned())
    }

    /// A page of the gateway's ops listener.
    async fn ops(&self, path: &str) -> Result<String> {
        let ops = self.variables.iter().find(|(name, _)| *name == "GATEWAY_OPS_PORT").context("no port")?;
        Ok(reqwest::get(format!("http://127.0.0.1:{}{path}", ops.1)).await?.error_for_status()?.text().await?)
    }

    fn logs(&self) -> String {
        self.compose(&["logs", "--no-color", "--tail=50"]).unwrap_or_else(|error| error.to_string())
    }
}

impl Drop for Composed {
    fn drop(&mut self) {
        // What stays bears the project's name; a test that failed says more than this could.
        let _ = self.compose(&["down", "-v", "-t", "30"]);
        let data = self.folder.path().join("node");
        // Whatever an agent that was killed has left mounted in it goes, too.
        while Command::new("umount").args(["-R", "-l"]).arg(&data).output().is_ok_and(|output| output.status.success())
        {
        }
    }
}

#[tokio::test]
async fn from_nothing_to_a_called_function() -> Result<()> {
    let composed = Composed::new()?;
    composed.up().await?;
    let user = Client::register(&format!("http://127.0.0.1:{}", composed.port)).await?;
    user.deploy("hello", example("hello-python")).await?.expect(201).with_context(|| composed.logs())?;
    let answer = user.invoke("hello", json!({"name": "Ada"})).await?.expect(200).with_context(|| composed.logs())?;
    ensure!(answer["result"]["message"] == "Hello, Ada!", "{answer}");
    ensure!(user.records("hello", 1).await?.len() == 1);
    let metrics = composed.ops("/metrics").await?;
    ensure!(metrics.contains("\ndartcloud_limits_redis_up 1\n"), "{metrics}");
    let scraped = composed.ops("/sd").await?;
    ensure!(scraped.matches("/nodes/").count() == 1, "{scraped}");
    let back_up = ["exec", "-T", "backend", "dartcloud", "backup", "/app/data/platform.tar.gz"];
    let said = composed.compose(&back_up)?;
    ensure!(said.contains("1 functions in 1 versions, 1 records"), "{said}");
    composed.compose(&["stop", "-t", "30", "backend"])?;
    let restore = ["dartcloud", "backend", "restore", "--replace", "/app/data/platform.tar.gz"];
    let said = composed.compose(&[&["run", "--rm", "--no-deps", "-T", "--entrypoint"][..], &restore].concat())?;
    ensure!(said.contains("restored: 1 users"), "{said}");
    // What was stored is there afterwards.
    composed.compose(&["restart", "-t", "30", "backend", "agent"])?;
    composed.up().await?;
    // The first attempts may meet connections of before.
    let again = async || Ok(user.invoke("hello", json!({"name": "Bob"})).await.ok());
    let answer = until("the gateway answers again", UP_WITHIN, again).await?;
    let answer = answer.expect(200).with_context(|| composed.logs())?;
    ensure!(answer["result"]["message"] == "Hello, Bob!", "{answer}");
    Ok(())
}
