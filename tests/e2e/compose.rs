//! The compose file, brought up for real from images of this run's programs, with its secrets from files and then from
//! the environment. Grafana alone is left out: its image cannot be made from Debian's packages.

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

/// The secrets stand in the environment by the first alone, in files with both.
const FILES: &[&str] = &["docker-compose.yml", "docker-compose.prod.yml"];

const POSTGRES_PASSWORD: &str = "a/b+c==";
const SERVICES: [&str; 5] = ["postgres", "redis", "backend", "agent", "prometheus"];

/// The services, which go with it.
struct Composed {
    project: String,
    files: &'static [&'static str],
    variables: Vec<(&'static str, String)>,
    images: Vec<(String, String)>,
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

/// The images, under the names of their variables: the platform's hold this run's programs, the others are official
/// where a registry answers, made from Debian's packages else.
fn images() -> Result<Vec<(String, String)>> {
    let mut command = Command::new(root().join("script/images"));
    let printed = run(command.arg("compose").env("DARTCLOUD_BIN_DIR", program("")))?;
    let named = printed.lines().filter_map(|line| line.split_once('=')).filter(|(name, _)| name.ends_with("_IMAGE"));
    let found: Vec<_> = named.map(|(name, image)| (name.to_owned(), image.to_owned())).collect();
    ensure!(found.len() == SERVICES.len(), "{printed}");
    Ok(found)
}

impl Composed {
    fn new() -> Result<Self> {
        let images = images()?;
        let folder = tempfile::Builder::new().prefix("dc-").tempdir()?;
        let data = folder.path().join("node");
        fs::create_dir(&data)?;
        run(Command::new("mount").arg("--bind").arg(&data).arg(&data))?;
        run(Command::new("mount").arg("--make-rshared").arg(&data))?;
        for (name, secret) in [("postgres_password", POSTGRES_PASSWORD), ("jwt_secret", JWT_SECRET)] {
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
            ("SANDBOX_MEMORY_MB", "2048".into()),
        ];
        Ok(Self { project: format!("dc{port}"), files: FILES, variables, images, port, folder })
    }

    fn compose(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("docker-compose");
        // The file of whoever runs the suite says nothing here.
        command.current_dir(root()).arg("--env-file").arg(self.folder.path().join("empty.env"));
        command.args(["-p", &self.project]).args(self.files.iter().flat_map(|file| ["-f", file])).args(arguments);
        command.envs(self.images.iter().map(|(name, image)| (name, image)));
        run(command.envs(self.variables.iter().map(|(name, value)| (name, value))))
    }

    /// Starts it all anew with the same volumes, its secrets from the environment.
    async fn up_without_files(&mut self) -> Result<()> {
        self.compose(&["down", "-t", "30"])?;
        self.files = &FILES[..1];
        // The later of two counts.
        let secrets = [("POSTGRES_PASSWORD", POSTGRES_PASSWORD), ("JWT_SECRET", JWT_SECRET)];
        self.variables.extend(secrets.map(|(name, secret)| (name, secret.to_owned())));
        self.up().await
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
    let mut composed = Composed::new()?;
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
    still_answers(&composed, &user).await?;
    composed.up_without_files().await?;
    still_answers(&composed, &user).await
}

async fn still_answers(composed: &Composed, user: &Client) -> Result<()> {
    // The first attempts may meet connections of before.
    let call = async || Ok(user.invoke("hello", json!({"name": "Bob"})).await.ok());
    let answer = until("the gateway answers again", UP_WITHIN, call).await?;
    let answer = answer.expect(200).with_context(|| composed.logs())?;
    ensure!(answer["result"]["message"] == "Hello, Bob!", "{answer}");
    Ok(())
}

/// As an operator has it: `.env.example` as `.env`, and the two secrets set.
#[test]
fn every_compose_takes_the_files() -> Result<()> {
    let plugin = Command::new("docker").args(["compose", "version"]).output();
    let plugin = plugin.is_ok_and(|output| output.status.success());
    let composes = [Some(&["docker-compose"][..]), plugin.then_some(&["docker", "compose"][..])];
    for compose in composes.into_iter().flatten() {
        for files in [&FILES[..1], FILES] {
            let mut command = Command::new(compose[0]);
            command.args(&compose[1..]).current_dir(root()).args(["--env-file", ".env.example"]);
            command.args(files.iter().flat_map(|file| ["-f", file])).arg("config");
            let said = run(command.env("POSTGRES_PASSWORD", POSTGRES_PASSWORD).env("JWT_SECRET", JWT_SECRET))?;
            for service in SERVICES.iter().chain(&["grafana"]) {
                ensure!(said.contains(&format!("\n  {service}:\n")), "no {service}: {said}");
            }
        }
    }
    Ok(())
}
