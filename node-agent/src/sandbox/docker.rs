//! The Docker Engine, and the only file that speaks to it. Every call has a deadline, and what is already done
//! counts as done. There is no `docker cp` here and none may come: on a running container it runs programs of the
//! container as the host's root (CVE-2026-41567).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::errors::Error as Refusal;
use bollard::models::{ContainerCreateBody, ContainerUpdateBody, NetworkCreateRequest};
use bollard::query_parameters::{
    CreateContainerOptions, CreateImageOptions, InspectNetworkOptions, ListContainersOptions, ListNetworksOptions,
    RemoveContainerOptions, StartContainerOptions, WaitContainerOptions,
};
use common::ids::NodeId;
use futures_util::StreamExt;

use super::spec::{NODE_LABEL, SANDBOX_LABEL};

/// What the names of images begin with that are made on the machine, and pulled from nowhere.
const LOCAL: &str = "local/";
/// How long the Engine may take for one call.
const CALL_LIMIT: Duration = Duration::from_secs(30);
/// How long it may take for a word, once it is known not to answer.
const WORD_LIMIT: Duration = Duration::from_secs(1);
/// Oldest API that has all that a sandbox needs (Engine 19.03, with its own cgroup namespace 20.10).
const LEAST_API: (usize, usize) = (1, 41);
/// How often a pull reports.
const PULL_REPORT: Duration = Duration::from_secs(5);

/// The Engine did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    /// Nobody answers.
    #[error("no Docker Engine answers at {host}: start it, or set DOCKER_HOST ({cause})")]
    Unreachable {
        /// Where it was looked for.
        host: String,
        /// What happened.
        cause: Refusal,
    },
    /// Somebody answers, and not us.
    #[error(
        "this user may not use the Docker Engine at {0}: run this as root, or add the user to the group `docker` and log in again"
    )]
    Forbidden(String),
    /// The Engine is too old.
    #[error("the Docker Engine speaks API {0}.{1} and 1.41 is needed: install Docker 20.10 or newer")]
    TooOld(usize, usize),
    /// No image is there and none can be had.
    #[error(
        "no image: the Engine has none of {candidates}, and {first} cannot be pulled ({reason}); pull or build one, or name another in the runtime's file"
    )]
    NoImage {
        /// What the runtime's file names.
        candidates: String,
        /// The one that was tried.
        first: String,
        /// What the Engine said.
        reason: String,
    },
    /// It took too long.
    #[error("the Docker Engine did not {what} within {} s", limit.as_secs())]
    Late {
        /// What it was asked.
        what: &'static str,
        /// How long it had.
        limit: Duration,
    },
    /// It refused.
    #[error("the Docker Engine could not {what}: {cause}")]
    Refused {
        /// What it was asked.
        what: &'static str,
        /// What it said.
        cause: Refusal,
    },
}

/// The Engine.
#[derive(Clone, Debug)]
pub(crate) struct Engine {
    docker: Docker,
    pull_limit: Duration,
    /// One pull at a time: they share layers, and a line to the registry.
    pulling: Arc<tokio::sync::Mutex<()>>,
    /// Whether it did when it was asked last.
    answers: Arc<AtomicBool>,
}

/// What the Engine says of itself and of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EngineFacts {
    pub(crate) version: String,
    pub(crate) api: String,
    pub(crate) runc: Option<String>,
    /// The version of control groups.
    pub(crate) cgroups: Option<String>,
    pub(crate) has_seccomp: bool,
    pub(crate) limits_memory: bool,
    pub(crate) limits_swap: bool,
    pub(crate) limits_pids: bool,
    pub(crate) limits_cpu: bool,
}

/// An image that the Engine has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) id: String,
    /// The environment that it was made with, `KEY=VALUE` each.
    pub(crate) env: Vec<String>,
}

impl Engine {
    /// Connects, and agrees on a version of the API.
    pub(crate) async fn connect(host: &str, pull_limit: Duration) -> Result<Self, DockerError> {
        let unreachable = |cause| {
            let host = host.to_owned();
            if is_forbidden(&cause) { DockerError::Forbidden(host) } else { DockerError::Unreachable { host, cause } }
        };
        let docker = Docker::connect_with_host(host).map_err(unreachable)?;
        let docker = docker.with_timeout(pull_limit.max(CALL_LIMIT));
        let docker = match tokio::time::timeout(CALL_LIMIT, docker.negotiate_version()).await {
            Ok(docker) => docker.map_err(unreachable)?,
            Err(_) => return Err(DockerError::Late { what: "tell its version", limit: CALL_LIMIT }),
        };
        let version = docker.client_version();
        if (version.major_version, version.minor_version) < LEAST_API {
            return Err(DockerError::TooOld(version.major_version, version.minor_version));
        }
        Ok(Self { docker, pull_limit, pulling: Arc::default(), answers: Arc::new(AtomicBool::new(true)) })
    }

    /// Whether it answered when it was asked last.
    pub(crate) fn answers(&self) -> bool {
        self.answers.load(Ordering::Relaxed)
    }

    /// Asks it for a word, and waits for so long; whether it came.
    pub(crate) async fn ask(&self, limit: Duration) -> bool {
        let word = tokio::time::timeout(limit, self.docker.ping()).await;
        let answers = matches!(word, Ok(Ok(_)));
        match (self.answers.swap(answers, Ordering::Relaxed), answers) {
            (true, false) => tracing::error!("the Docker Engine does not answer: nothing is started until it does"),
            (false, true) => tracing::info!("the Docker Engine answers again"),
            _ => {}
        }
        answers
    }

    /// Whoever needs it to go on hears at once that it does not answer, if that is known, and not after a whole call.
    pub(crate) async fn answering(&self) -> Result<(), DockerError> {
        if self.answers() || self.ask(WORD_LIMIT).await {
            return Ok(());
        }
        Err(DockerError::Late { what: "answer", limit: WORD_LIMIT })
    }

    /// What it says of itself.
    pub(crate) async fn facts(&self) -> Result<EngineFacts, DockerError> {
        let info = call("describe the machine", self.docker.info()).await?;
        let version = call("tell its version", self.docker.version()).await?;
        let components = version.components.unwrap_or_default();
        let options = info.security_options.unwrap_or_default();
        Ok(EngineFacts {
            version: version.version.unwrap_or_default(),
            api: version.api_version.unwrap_or_default(),
            runc: components.into_iter().find(|part| part.name == "runc").map(|part| part.version),
            cgroups: info.cgroup_version.map(|version| version.to_string()),
            has_seccomp: options.iter().any(|option| option.starts_with("name=seccomp")),
            limits_memory: info.memory_limit.unwrap_or(false),
            limits_swap: info.swap_limit.unwrap_or(false),
            limits_pids: info.pids_limit.unwrap_or(false),
            limits_cpu: info.cpu_cfs_quota.unwrap_or(false),
        })
    }

    /// The first of `candidates` that the Engine has; else the first is pulled.
    pub(crate) async fn image(&self, candidates: &[String]) -> Result<Image, DockerError> {
        if let Some(image) = self.present(candidates).await? {
            return Ok(image);
        }
        let _turn = self.pulling.lock().await;
        // Somebody else may have pulled it meanwhile.
        if let Some(image) = self.present(candidates).await? {
            return Ok(image);
        }
        let none = |reason: String| DockerError::NoImage {
            candidates: candidates.join(", "),
            first: candidates.first().cloned().unwrap_or_default(),
            reason,
        };
        // What a registry has under `local/` is somebody else's.
        let first = candidates.iter().find(|name| !name.starts_with(LOCAL));
        let first = first.ok_or_else(|| none("an image of this machine alone: make it by `script/images`".into()))?;
        match tokio::time::timeout(self.pull_limit, self.pull(first)).await {
            Ok(pulled) => pulled.map_err(|error| none(error.to_string()))?,
            Err(_) => return Err(none(format!("not done within {} s", self.pull_limit.as_secs()))),
        }
        self.present(std::slice::from_ref(first)).await?.ok_or_else(|| none("it is not there after the pull".into()))
    }

    /// The first of `candidates` that the Engine has.
    pub(crate) async fn present(&self, candidates: &[String]) -> Result<Option<Image>, DockerError> {
        for name in candidates {
            match call("inspect an image", self.docker.inspect_image(name)).await {
                Ok(found) => {
                    let id = found.id.unwrap_or_else(|| name.clone());
                    let env = found.config.and_then(|config| config.env).unwrap_or_default();
                    return Ok(Some(Image { id, env }));
                }
                Err(DockerError::Refused { cause, .. }) if status(&cause) == Some(404) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    async fn pull(&self, name: &str) -> Result<(), Refusal> {
        tracing::info!(image = name, "pulling");
        let options = CreateImageOptions { from_image: Some(tagged(name)), ..CreateImageOptions::default() };
        let mut progress = self.docker.create_image(Some(options), None, None);
        let mut reported = Instant::now();
        while let Some(step) = progress.next().await {
            let step = step?;
            if reported.elapsed() >= PULL_REPORT {
                reported = Instant::now();
                tracing::info!(image = name, layer = step.id, status = step.status, "pulling");
            }
        }
        tracing::info!(image = name, "pulled");
        Ok(())
    }

    /// Makes a container and starts it.
    pub(crate) async fn start(&self, name: &str, container: ContainerCreateBody) -> Result<(), DockerError> {
        let options = CreateContainerOptions { name: Some(name.to_owned()), ..CreateContainerOptions::default() };
        call("create a container", self.docker.create_container(Some(options), container)).await?;
        call("start a container", self.docker.start_container(name, None::<StartContainerOptions>)).await
    }

    /// Lets a container use `memory_mb` MiB, and no swap.
    pub(crate) async fn limit_memory(&self, name: &str, memory_mb: u32) -> Result<(), DockerError> {
        let bytes = i64::from(memory_mb) * 1024 * 1024;
        let update =
            ContainerUpdateBody { memory: Some(bytes), memory_swap: Some(bytes), ..ContainerUpdateBody::default() };
        call("limit a container's memory", self.docker.update_container(name, update)).await
    }

    /// Ends a container at once and removes it; one that is gone already is fine.
    pub(crate) async fn remove(&self, name: &str) -> Result<(), DockerError> {
        let options = RemoveContainerOptions { force: true, v: true, link: false };
        match call("remove a container", self.docker.remove_container(name, Some(options))).await {
            // 409: somebody else removes it at this moment.
            Err(DockerError::Refused { cause, .. }) if matches!(status(&cause), Some(404 | 409)) => Ok(()),
            other => other,
        }
    }

    /// All containers that bear the label of `node`, running or not: their ids, and those of their sandboxes.
    pub(crate) async fn list(&self, node: NodeId) -> Result<Vec<(String, String)>, DockerError> {
        let options =
            ListContainersOptions { all: true, filters: Some(labelled(node)), ..ListContainersOptions::default() };
        let containers = call("list containers", self.docker.list_containers(Some(options))).await?;
        let sandbox = |labels: Option<HashMap<String, String>>| labels?.remove(SANDBOX_LABEL);
        let ids =
            containers.into_iter().filter_map(|found| Some((found.id?, sandbox(found.labels).unwrap_or_default())));
        Ok(ids.collect())
    }

    /// The first process of a container, as the host counts; `None` when it does not run or is gone.
    pub(crate) async fn pid(&self, name: &str) -> Result<Option<u32>, DockerError> {
        match call("inspect a container", self.docker.inspect_container(name, None)).await {
            Ok(found) => {
                let pid = found.state.and_then(|state| state.pid);
                Ok(pid.and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0))
            }
            Err(DockerError::Refused { cause, .. }) if status(&cause) == Some(404) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The name of the node's network, whose containers do not reach each other. It is made if it is not there:
    /// `docker network prune` takes it whenever no sandbox is in it.
    pub(crate) async fn network(&self, node: NodeId, bridge: &str) -> Result<String, DockerError> {
        let name = format!("dartcloud-{node}");
        match call("inspect a network", self.docker.inspect_network(&name, None::<InspectNetworkOptions>)).await {
            Err(DockerError::Refused { cause, .. }) if status(&cause) == Some(404) => {}
            found => return found.map(|_| name),
        }
        let options = [("com.docker.network.bridge.enable_icc", "false"), ("com.docker.network.bridge.name", bridge)];
        let request = NetworkCreateRequest {
            name: name.clone(),
            driver: Some("bridge".to_owned()),
            // The rules against what it must not reach are of this version.
            enable_ipv6: Some(false),
            options: Some(HashMap::from(options.map(|(name, value)| (name.to_owned(), value.to_owned())))),
            labels: Some(HashMap::from([(NODE_LABEL.to_owned(), node.to_string())])),
            ..NetworkCreateRequest::default()
        };
        call("create a network", self.docker.create_network(request)).await?;
        Ok(name)
    }

    /// Removes the networks that bear the label of `node`; no container may be in them any more.
    pub(crate) async fn remove_networks(&self, node: NodeId) -> Result<(), DockerError> {
        let options = ListNetworksOptions { filters: Some(labelled(node)) };
        for network in call("list networks", self.docker.list_networks(Some(options))).await? {
            let Some(id) = network.id else { continue };
            match call("remove a network", self.docker.remove_network(&id)).await {
                Err(DockerError::Refused { cause, .. }) if status(&cause) == Some(404) => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// All that the Engine knows of a container.
    #[cfg(test)]
    pub(crate) async fn inspect(&self, id: &str) -> bollard::models::ContainerInspectResponse {
        self.docker.inspect_container(id, None).await.unwrap()
    }

    /// Waits, without a limit, until a container has ended; tells how, as far as the Engine knows.
    pub(crate) async fn end(&self, name: &str) -> String {
        match self.docker.wait_container(name, None::<WaitContainerOptions>).next().await {
            Some(Ok(end)) => format!("exit code {}", end.status_code),
            Some(Err(Refusal::DockerContainerWaitError { error, code })) => format!("exit code {code} {error}"),
            Some(Err(error)) => error.to_string(),
            None => "for an unknown reason".to_owned(),
        }
    }
}

/// Waits for an answer, within [`CALL_LIMIT`].
async fn call<T>(what: &'static str, answer: impl Future<Output = Result<T, Refusal>>) -> Result<T, DockerError> {
    match tokio::time::timeout(CALL_LIMIT, answer).await {
        Ok(answer) => answer.map_err(|cause| DockerError::Refused { what, cause }),
        Err(_) => Err(DockerError::Late { what, limit: CALL_LIMIT }),
    }
}

/// A filter for what bears the label of `node`.
fn labelled(node: NodeId) -> HashMap<String, Vec<String>> {
    HashMap::from([("label".to_owned(), vec![format!("{NODE_LABEL}={node}")])])
}

/// Whether the Engine's socket is there, and not for this user.
fn is_forbidden(refusal: &Refusal) -> bool {
    let refusal: &dyn std::error::Error = refusal;
    std::iter::successors(Some(refusal), |cause| cause.source())
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == std::io::ErrorKind::PermissionDenied)
}

fn status(refusal: &Refusal) -> Option<u16> {
    match refusal {
        Refusal::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

/// A name without tag or digest means all tags to the Engine, and the newest to everyone else.
fn tagged(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains(':') || last.contains('@') { name.to_owned() } else { format!("{name}:latest") }
}

#[cfg(test)]
mod tests {
    use super::tagged;

    #[test]
    fn tags() {
        let check = |name: &str, expected: &str| assert_eq!(tagged(name), expected);
        check("python", "python:latest");
        check("python:3.11", "python:3.11");
        check("registry:5000/python", "registry:5000/python:latest");
        check("python@sha256:00", "python@sha256:00");
    }
}
