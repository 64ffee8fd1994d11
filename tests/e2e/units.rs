//! What `deploy/` has for systemd, Kubernetes and Swarm, checked by their own tools and schemas; the settings that they
//! name are there; and an agent runs with no more capabilities than its unit leaves it.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::archive::{archive, example};
use crate::dashboards::repository;
use crate::platform::{Form, Platform, Program, free_ports, program, until};

/// The release of Kubernetes whose schemas are taken, beside the newest that the tool has.
const KUBERNETES: [&str; 2] = ["1.37", "1.28"];

/// How exposed a unit may be by `systemd-analyze security`, in tenths: the gateway has 1.2. The agent has 5.5, for it is
/// root and mounts.
const EXPOSURE: [(&str, &str); 2] = [("dartcloud-gateway", "15"), ("dartcloud-node-agent", "60")];

fn run(command: &mut Command) -> Result<Output> {
    let output = command.output().with_context(|| format!("{command:?}: script/setup test installs it"))?;
    let said = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    ensure!(output.status.success(), "{command:?}: {}\n{}{}", output.status, said[0], said[1]);
    Ok(output)
}

/// Files of a folder under `deploy/`, by the end of their names.
fn files(folder: &str, extension: &str) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(repository("deploy").join(folder))?.map(|entry| Ok(entry?.path()));
    let mut files = entries.collect::<Result<Vec<_>>>()?;
    files.retain(|path| path.extension().is_some_and(|end| end == extension));
    files.sort();
    ensure!(!files.is_empty(), "no .{extension} in {folder}");
    Ok(files)
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[test]
fn the_units_are_valid_and_shut_off_what_they_can() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for (unit, most) in EXPOSURE {
        // What it starts has to be there.
        let text = std::fs::read_to_string(repository("deploy/systemd").join(format!("{unit}.service")))?;
        let installed = format!("/usr/local/bin/{unit}");
        ensure!(text.contains(&format!("ExecStart={installed}\n")), "{unit} starts something else");
        let path = folder.path().join(format!("{unit}.service"));
        std::fs::write(&path, text.replace(&installed, &program(unit).display().to_string()))?;
        let verified = run(Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&path))?;
        // Some mistakes, such as an unknown setting, it only mentions.
        let said = String::from_utf8_lossy(&verified.stderr).into_owned();
        ensure!(!said.contains(unit), "{said}");
        let mut security = Command::new("systemd-analyze");
        security.args(["security", "--offline=true", "--no-pager", "--threshold", most]).arg(&path);
        let scored = String::from_utf8(run(&mut security)?.stdout)?;
        println!("{}", scored.lines().rfind(|line| !line.is_empty()).context("no score")?);
    }
    Ok(())
}

#[test]
fn kubernetes_takes_the_manifests() -> Result<()> {
    let manifests = files("kubernetes", "yaml")?;
    // It is kustomize's own, and has no schema there.
    let (kustomization, manifests): (Vec<_>, Vec<_>) =
        manifests.into_iter().partition(|path| name(path) == "kustomization.yaml");
    let listed = std::fs::read_to_string(kustomization.first().context("no kustomization.yaml")?)?;
    for manifest in &manifests {
        let is_listed = listed.contains(&format!("  - {}\n", name(manifest)));
        ensure!(
            is_listed != name(manifest).contains("example"),
            "{} in kustomization.yaml: {is_listed}",
            name(manifest)
        );
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"))).context("no HOME")?;
    let mut command = Command::new("python3");
    command.env("PYTHONPATH", cache.join("dartcloud/kubernetes-validate-1.37.0"));
    command.args(["-m", "kubernetes_validate", "--strict"]);
    KUBERNETES.iter().for_each(|version| {
        command.args(["-k", version]);
    });
    let said = run(command.args(&manifests))?;
    let said = [said.stdout, said.stderr].concat();
    let passed = String::from_utf8_lossy(&said).lines().filter(|line| line.contains(" passed for ")).count();
    ensure!(passed >= manifests.len() * KUBERNETES.len(), "{}", String::from_utf8_lossy(&said));
    Ok(())
}

#[test]
fn swarm_takes_the_stack() -> Result<()> {
    let mut command = Command::new("docker-compose");
    command.arg("-f").arg(repository("deploy/swarm/stack.yml")).arg("config").env("NODE_URL", "https://swarm:9443");
    ensure!(String::from_utf8(run(&mut command)?.stdout)?.contains("NODE_URL: https://swarm:9443"));
    Ok(())
}

/// The settings of a program, by its `--help`.
fn settings(of: &str) -> Result<BTreeSet<String>> {
    let help = String::from_utf8(run(Command::new(program(of)).arg("--help"))?.stdout)?;
    let names = help.split("[env: ").skip(1).filter_map(|rest| rest.split(['=', ']']).next());
    Ok(names.map(str::to_owned).collect())
}

#[test]
fn every_setting_that_is_named_is_there() -> Result<()> {
    let is_setting = |word: &str| word.len() > 2 && word.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
    // How each format begins the name of a variable, and what ends it.
    let check = |path: &Path, of: &str, begin: &str, end: [char; 2], least: usize| -> Result<()> {
        let (known, text) = (settings(of)?, std::fs::read_to_string(path)?);
        let lines = text.lines().map(|line| line.split(" #").next().unwrap_or_default().trim_start());
        let names =
            lines.filter_map(|line| line.strip_prefix(begin)?.split(end).next()).filter(|name| is_setting(name));
        let names: BTreeSet<_> = names.map(str::to_owned).filter(|name| name != "RUST_LOG").collect();
        ensure!(names.len() >= least, "only {names:?} in {}", path.display());
        let unknown: Vec<_> = names.difference(&known).collect();
        ensure!(unknown.is_empty(), "{} names {unknown:?}, which {of} does not know", path.display());
        Ok(())
    };
    let deploy = repository("deploy");
    let (gateway, agent) = ("dartcloud-gateway", "dartcloud-node-agent");
    check(&deploy.join("kubernetes/gateway.yaml"), gateway, "- {name: ", [',', '}'], 11)?;
    check(&deploy.join("kubernetes/agent.yaml"), agent, "- {name: ", [',', '}'], 4)?;
    check(&deploy.join("swarm/stack.yml"), gateway, "", [':', ' '], 10)?;
    check(&deploy.join("systemd/dartcloud-gateway.service"), gateway, "Environment=", ['=', ' '], 3)?;
    check(&deploy.join("systemd/dartcloud-node-agent.service"), agent, "Environment=", ['=', ' '], 3)
}

/// Answers with the names of its network's interfaces.
const INTERFACES: &str =
    "import json, os\njson.dump({'body': os.listdir('/sys/class/net')}, open('/result.json', 'w'))\n";

/// The options of `setpriv` for what a unit of systemd leaves its program.
fn privileges(unit: &str) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(repository("deploy/systemd").join(unit))?;
    let kept = text.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).context("no capabilities")?;
    let kept = kept.split(' ').map(|name| name.trim_start_matches("CAP_").to_lowercase());
    let set = kept.fold("-all".to_owned(), |set, name| format!("{set},+{name}"));
    ensure!(text.contains("\nNoNewPrivileges=yes\n") && text.contains("\nUMask=0077\n"));
    Ok(vec!["--bounding-set".into(), set, "--no-new-privs".into()])
}

#[tokio::test]
async fn an_agent_needs_no_more_than_its_unit_leaves_it() -> Result<()> {
    let platform = Platform::start(Form::Gateway, &[]).await?;
    let [ops] = free_ports()?;
    let mut command = Command::new("sh");
    command.args(["-c", "umask 0077 && exec setpriv \"$@\"", "sh", "--pdeathsig", "TERM"]);
    command.args(privileges("dartcloud-node-agent.service")?);
    command.arg(program("dartcloud-node-agent")).env("DATA_DIR", platform.data_dir());
    command.env("OPS_ADDR", format!("127.0.0.1:{ops}")).env("SANDBOX_MEMORY_MB", "2048");
    let _agent = Program::spawn(command, &platform.data_dir().join("dartcloud-node-agent.log"))?;
    let ready = async || {
        let answer = reqwest::get(format!("http://127.0.0.1:{ops}/ready")).await;
        Ok(answer.is_ok_and(|answer| answer.status() == 200).then_some(()))
    };
    until("the agent is ready", Duration::from_secs(60), ready).await.with_context(|| platform.log())?;
    let user = platform.user().await?;
    // A build in a file system of its own, and a sandbox behind the fence.
    user.deploy("built", example("hello-dart")).await?.expect(201).with_context(|| platform.log())?;
    let files = [("main.py", INTERFACES), ("dartcloud.toml", "egress = true\n")];
    user.deploy("fenced", archive(&files)).await?.expect(201).with_context(|| platform.log())?;
    user.invoke("built", json!({"name": "Ada"})).await?.expect(200).with_context(|| platform.log())?;
    let answer = user.invoke("fenced", json!({})).await?.expect(200).with_context(|| platform.log())?;
    ensure!(answer["result"].as_array().is_some_and(|names| names.len() > 1), "no network: {answer}");
    // Nobody else of the machine reads the code of functions.
    let builds = std::fs::metadata(platform.data_dir().join("builds"))?;
    ensure!(builds.permissions().mode() & 0o777 == 0o700, "{builds:?}");
    // What it cannot do it does without, and says so.
    for lack in ["no file system of its own", "are not frozen", "cannot be read"] {
        ensure!(!platform.log().contains(lack), "{}", platform.log());
    }
    Ok(())
}
