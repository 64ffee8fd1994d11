//! Sandboxes on a real Docker Engine. They need root, the Engine, the images of the built-in runtimes, and the
//! static runner in `RUNNER_PATH`; without one of these they fail and say so.
//!
//! The function of most tests runs its request as a program, so that a test is its program and what comes of it.

mod blanks;
mod builds;
mod calls;
mod causes;
mod fork_server;
mod frost;
mod life;
mod serving;
mod walls;

use std::os::unix::fs::PermissionsExt;
use std::panic::AssertUnwindSafe;
use std::time::Instant;

use common::digest::Digest;
use common::function::{DeploymentSpec, Limits};
use common::ids::FunctionId;
use futures_util::FutureExt;

use super::*;

/// How long a test waits for something that happens in the background.
const PATIENCE: Duration = Duration::from_secs(30);
const RESULT_CAP: usize = 1 << 20;

/// A node of its own, for one test.
struct Node {
    sandboxes: Arc<Sandboxes>,
    args: SandboxArgs,
    id: NodeId,
    directory: tempfile::TempDir,
    registry: Registry,
}

#[derive(clap::Parser)]
pub(super) struct Settings {
    #[command(flatten)]
    pub(super) args: SandboxArgs,
}

/// Runs `test` on a node whose settings `adjust` changed, then closes it and looks for what it left behind.
async fn on_node(adjust: impl FnOnce(&mut SandboxArgs), test: impl AsyncFnOnce(&Node)) {
    let runner = std::env::var_os("RUNNER_PATH").expect("set RUNNER_PATH to the static `dartcloud-runner`");
    let mut args = <Settings as clap::Parser>::parse_from(["test"]).args;
    args.runner_path = Some(runner.into());
    // Most tests count containers.
    args.sandbox_blanks = 0;
    adjust(&mut args);
    let node = Node::open(args, NodeId::new(), tempfile::tempdir().unwrap()).await;
    let outcome = AssertUnwindSafe(test(&node)).catch_unwind().await;
    node.sandboxes.close().await;
    let containers = node.containers().await;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let left = mounts.contains(node.directory.path().to_str().unwrap());
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
    assert!(containers.is_empty(), "containers are left: {containers:?}");
    assert!(!left, "mounts are left: {mounts}");
}

impl Node {
    async fn open(args: SandboxArgs, id: NodeId, directory: tempfile::TempDir) -> Self {
        let registry = Registry::new();
        let runtimes = Arc::new(Runtimes::load(None).unwrap());
        let data = directory.path().join("data");
        let sandboxes = Sandboxes::open(&args, id, &data, runtimes, &registry);
        let sandboxes = sandboxes.await.unwrap_or_else(|error| panic!("these tests need root and Docker: {error}"));
        Self { sandboxes, args, id, directory, registry }
    }

    /// A function in the shell, or in Python, that runs its request.
    fn function(&self, runtime: &str) -> (DeploymentSpec, Build) {
        let path = self.directory.path().join(format!("build-{runtime}"));
        std::fs::create_dir_all(&path).unwrap();
        let (entrypoint, code) = match runtime {
            "python" => ("main.py", "exec(open('/request.json').read())"),
            _ => ("main", "#!/bin/sh\n. /request.json\n"),
        };
        std::fs::write(path.join(entrypoint), code).unwrap();
        std::fs::set_permissions(path.join(entrypoint), std::fs::Permissions::from_mode(0o755)).unwrap();
        let spec = DeploymentSpec {
            deployment: DeploymentId::new(),
            function: FunctionId::new(),
            version: 1,
            runtime: runtime.parse().unwrap(),
            entrypoint: entrypoint.into(),
            archive: Digest::of(b"archive"),
            archive_root: None,
            limits: Limits { timeout_ms: 10_000, memory_mb: 64, concurrency: 10, min_warm: 0 },
            env: [("GREETING".to_owned(), "hello".to_owned())].into(),
            contract: common::function::Contract::File,
            egress: false,
            stale_while_cold_ms: 0,
            node_selector: common::labels::Labels::NONE,
        };
        (spec, Arc::new(path))
    }

    async fn lease(&self, function: &(DeploymentSpec, Build)) -> Result<Lease, LeaseError> {
        self.sandboxes.lease(&Arc::new(function.0.clone()), Arc::clone(&function.1)).await
    }

    /// One call that must find a sandbox.
    async fn call(&self, function: &(DeploymentSpec, Build), program: &str) -> Exit {
        let mut lease = self.lease(function).await.unwrap();
        lease.invoke(program.as_bytes(), RESULT_CAP).await.unwrap()
    }

    /// That of `containers` which is the lease's sandbox.
    async fn container_of(&self, lease: &Lease, containers: &[String]) -> String {
        for container in containers {
            let labels = self.sandboxes.site.engine.inspect(container).await.config.and_then(|config| config.labels);
            if labels.is_some_and(|labels| labels[spec::SANDBOX_LABEL] == lease.sandbox().to_string()) {
                return container.clone();
            }
        }
        panic!("none of {containers:?} is the lease's");
    }

    async fn containers(&self) -> Vec<String> {
        let containers = self.sandboxes.site.engine.list(self.id).await.unwrap();
        containers.into_iter().map(|(container, _)| container).collect()
    }

    /// Waits until the node has this many containers.
    async fn settles_at(&self, count: usize) {
        let since = Instant::now();
        while self.containers().await.len() != count {
            assert!(since.elapsed() < PATIENCE, "not {count} containers but {:?}", self.containers().await);
        }
    }

    fn metric(&self, name: &str) -> f64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name).unwrap();
        family.get_metric().iter().map(|metric| metric.get_counter().get_value()).sum()
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}
