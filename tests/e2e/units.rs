//! What `deploy/` has for systemd, Kubernetes and Swarm, checked by their own tools and schemas; the settings that they
//! name are there; and an agent runs with no more capabilities than its unit leaves it.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::archive::{archive, example};
use crate::dashboards::repository;
use crate::platform::{Form, Platform, Program, free_ports, program, until};

/// The release of Kubernetes whose schemas are taken, beside the newest that the tool has.
const KUBERNETES: [&str; 2] = ["1.37", "1.28"];

/// What a gateway may need after its calls have ended, in seconds: deploys 20, connections 15.
const AFTER_CALLS: u64 = 35;

/// How long it may take until agents have found a new gateway, in seconds: they look every 30, and the resolver may tell
/// them what it knew some seconds before.
const FOUND: u64 = 40;

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

/// Python with the schemas of Kubernetes and a reader of YAML.
fn python() -> Result<Command> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"))).context("no HOME")?;
    let mut command = Command::new("python3");
    command.env("PYTHONPATH", cache.join("dartcloud/kubernetes-validate-1.37.0"));
    Ok(command)
}

/// Kubernetes knows every field of these manifests, which have at least so many resources.
fn validate(manifests: &[PathBuf], least: usize) -> Result<()> {
    let mut command = python()?;
    command.args(["-m", "kubernetes_validate", "--strict"]);
    KUBERNETES.iter().for_each(|version| {
        command.args(["-k", version]);
    });
    let said = run(command.args(manifests))?;
    let said = [said.stdout, said.stderr].concat();
    let passed = String::from_utf8_lossy(&said).lines().filter(|line| line.contains(" passed for ")).count();
    ensure!(passed >= least * KUBERNETES.len(), "{}", String::from_utf8_lossy(&said));
    Ok(())
}

/// The documents of a file of YAML.
fn documents(path: &Path) -> Result<Vec<Value>> {
    let convert = "import json, sys, yaml\n\
                   found = yaml.safe_load_all(open(sys.argv[1], 'rb'))\n\
                   json.dump([document for document in found if document], sys.stdout)\n";
    let said = run(python()?.args(["-c", convert]).arg(path))?;
    serde_json::from_slice(&said.stdout).with_context(|| path.display().to_string())
}

/// The entries of a list; none where there is no list.
fn entries(list: &Value) -> &[Value] {
    list.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// A folder for `kubectl apply -k`.
struct Folder {
    /// What its `kustomization.yaml` names as resources, and as patches.
    resources: Vec<String>,
    patches: Vec<String>,
    /// The other files beside that.
    manifests: Vec<PathBuf>,
}

impl Folder {
    /// Each file is named once, but for examples.
    fn read(folder: &str) -> Result<Self> {
        // It is kustomize's own, and has no schema there.
        let (kustomization, manifests): (Vec<_>, Vec<_>) =
            files(folder, "yaml")?.into_iter().partition(|path| name(path) == "kustomization.yaml");
        let found = documents(kustomization.first().context("no kustomization.yaml")?)?;
        let found = found.first().context("an empty kustomization.yaml")?;
        let resources = entries(&found["resources"]).iter().filter_map(Value::as_str);
        let patches = entries(&found["patches"]).iter().filter_map(|patch| patch["path"].as_str());
        let resources: Vec<String> = resources.map(str::to_owned).collect();
        let patches: Vec<String> = patches.map(str::to_owned).collect();
        for manifest in &manifests {
            let times = resources.iter().chain(&patches).filter(|listed| **listed == name(manifest)).count();
            let expected = usize::from(!name(manifest).contains("example"));
            ensure!(times == expected, "{} in kustomization.yaml: {times} times", manifest.display());
        }
        Ok(Self { resources, patches, manifests })
    }
}

#[test]
fn kubernetes_takes_the_manifests() -> Result<()> {
    let manifests = Folder::read("kubernetes")?.manifests;
    validate(&manifests, manifests.len())
}

/// Does to a resource what a patch says, as kustomize does: maps are merged, and lists whose entries have names; others
/// are replaced, and `null` takes away.
fn merge(onto: &mut Value, by: &Value) {
    match (onto, by) {
        (Value::Object(onto), Value::Object(by)) => {
            for (key, by) in by {
                if by.is_null() {
                    onto.remove(key);
                } else {
                    merge(onto.entry(key.clone()).or_insert(Value::Null), by);
                }
            }
        }
        (Value::Array(onto), Value::Array(by)) if by.iter().all(|entry| entry["name"].is_string()) => {
            for by in by {
                match onto.iter_mut().find(|entry| entry["name"] == by["name"]) {
                    Some(entry) => merge(entry, by),
                    None => onto.push(by.clone()),
                }
            }
        }
        (onto, by) => *onto = by.clone(),
    }
}

/// What tells a resource from others.
fn identity(resource: &Value) -> [&Value; 4] {
    let metadata = &resource["metadata"];
    [&resource["apiVersion"], &resource["kind"], &metadata["namespace"], &metadata["name"]]
}

/// The resources of the overlay for several gateways. Each of its patches is of a resource that the base has.
fn several_gateways() -> Result<Vec<Value>> {
    let (base, overlay) = (Folder::read("kubernetes")?, Folder::read("kubernetes-several")?);
    ensure!(overlay.resources == ["../kubernetes"], "{:?}", overlay.resources);
    let mut resources: Vec<Value> = Vec::new();
    for manifest in &base.resources {
        resources.extend(documents(&repository("deploy/kubernetes").join(manifest))?);
    }
    for path in &overlay.patches {
        let patches = documents(&repository("deploy/kubernetes-several").join(path))?;
        ensure!(patches.len() == 1, "{path} has {} documents", patches.len());
        for by in &patches {
            let at = resources.iter().position(|resource| identity(resource) == identity(by));
            let mut resource = resources.remove(at.with_context(|| format!("the base has nothing that {path} is of"))?);
            if by["$patch"] != "delete" {
                merge(&mut resource, by);
                resources.push(resource);
            }
        }
    }
    Ok(resources)
}

/// What a container's environment has under a name.
fn variable<'a>(container: &'a Value, name: &str) -> Result<&'a str> {
    let found = entries(&container["env"]).iter().find(|entry| entry["name"] == name);
    found.and_then(|entry| entry["value"].as_str()).with_context(|| format!("no {name}"))
}

fn number(value: &Value) -> Result<u64> {
    value.as_u64().with_context(|| format!("{value} is no number"))
}

#[test]
fn kubernetes_takes_several_gateways() -> Result<()> {
    let (resources, folder) = (several_gateways()?, tempfile::tempdir()?);
    let merged = folder.path().join("merged.yaml");
    // JSON is YAML.
    let texts: Vec<String> = resources.iter().map(Value::to_string).collect();
    std::fs::write(&merged, texts.join("\n---\n"))?;
    let example = repository("deploy/kubernetes-several/secrets.example.yaml");
    validate(&[merged, example.clone()], resources.len() + 1)?;

    // A patch of a container that the base does not have would have added one without an image.
    let pods = || resources.iter().map(|resource| &resource["spec"]["template"]["spec"]);
    let containers = || pods().flat_map(|pod| entries(&pod["containers"]));
    for container in containers() {
        ensure!(container["image"].is_string(), "{container}");
    }
    // Nothing that one pod alone can have.
    let claims = resources.iter().filter(|resource| resource["kind"] == "PersistentVolumeClaim").count();
    let volumes = pods().flat_map(|pod| entries(&pod["volumes"]));
    let claimed = volumes.filter(|volume| !volume["persistentVolumeClaim"].is_null()).count();
    ensure!((claims, claimed) == (0, 0), "{claims} claims, {claimed} volumes by claims");
    // Each secret that is named is in the example.
    let secrets = documents(&example)?;
    let secrets = &secrets.first().context("an empty example")?["stringData"];
    for setting in containers().flat_map(|container| entries(&container["env"])) {
        let file = setting["value"].as_str().and_then(|value| value.strip_prefix("/run/secrets/dartcloud/"));
        let key = setting["valueFrom"]["secretKeyRef"]["key"].as_str().or(file);
        ensure!(key.is_none_or(|key| secrets[key].is_string()), "the example has no {key:?}");
    }
    Ok(())
}

#[test]
fn several_gateways_give_way_one_after_the_other() -> Result<()> {
    let resources = several_gateways()?;
    let find = |kind: &str, name: &str| {
        let mut all = resources.iter();
        let found = all.find(|resource| resource["kind"] == kind && resource["metadata"]["name"] == name);
        found.map(|resource| &resource["spec"]).with_context(|| format!("no {kind} {name}"))
    };
    let (deployment, budget) = (find("Deployment", "gateway")?, find("PodDisruptionBudget", "gateway")?);
    let (pod, replicas) = (&deployment["template"]["spec"], number(&deployment["replicas"])?);
    let gateway = entries(&pod["containers"]).first().context("no container")?;

    let strategy = &deployment["strategy"];
    let rolling = &strategy["rollingUpdate"];
    let (missing, more) = (number(&rolling["maxUnavailable"])?, number(&rolling["maxSurge"])?);
    ensure!(strategy["type"] == "RollingUpdate" && missing == 0 && more > 0, "{strategy}");
    ensure!(replicas > number(&budget["maxUnavailable"])?, "the disruption budget holds nothing");
    ensure!(budget["selector"] == deployment["selector"], "the disruption budget is of other pods");
    let spread = entries(&pod["topologySpreadConstraints"]).first().context("all may be on one machine")?;
    ensure!(spread["topologyKey"] == "kubernetes.io/hostname", "{spread}");
    ensure!(spread["labelSelector"] == deployment["selector"], "{spread}");

    // Who is told to stop has the time for all of it.
    let pause = entries(&gateway["lifecycle"]["preStop"]["exec"]["command"]).last().and_then(Value::as_str);
    let pause: u64 = pause.context("no pause before the stop")?.parse()?;
    let drain: u64 = variable(gateway, "DRAIN_SECONDS")?.parse()?;
    let grace = number(&pod["terminationGracePeriodSeconds"])?;
    ensure!(grace >= pause + drain + AFTER_CALLS, "{grace} s are less than {pause} + {drain} + {AFTER_CALLS}");

    // Agents link to each gateway, before it has clients and until it has ended.
    let (nodes, agent) = (find("Service", "gateway-nodes")?, find("DaemonSet", "agent")?);
    let agent = entries(&agent["template"]["spec"]["containers"]).first().context("no container")?;
    ensure!(nodes["clusterIP"] == "None" && nodes["publishNotReadyAddresses"] == true, "{nodes}");
    let delay = number(&gateway["readinessProbe"]["initialDelaySeconds"])?;
    ensure!(delay >= FOUND, "clients come after {delay} s, agents after {FOUND}");
    let (url, address) = (variable(gateway, "NODE_URL")?, variable(gateway, "NODE_ADDR")?);
    let dialled = variable(agent, "GATEWAY_URL")?;
    ensure!(dialled == url, "agents dial {dialled}, gateways say {url}");
    let port = format!(":{}", number(&nodes["ports"][0]["port"])?);
    ensure!(url.ends_with(&port) && address.ends_with(&port), "{url} and {address} do not end with {port}");
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
    check(&deploy.join("kubernetes-several/gateway.yaml"), gateway, "- {name: ", [',', '}'], 7)?;
    check(&deploy.join("kubernetes-several/agent.yaml"), agent, "- {name: ", [',', '}'], 1)?;
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
