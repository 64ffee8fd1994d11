//! The settings of sandboxes and builds.

use std::path::PathBuf;
use std::time::Duration;

/// How sandboxes are made, and how many there may be.
#[derive(Clone, Debug, clap::Args)]
pub struct SandboxArgs {
    /// The Docker Engine: `unix:///…` or `tcp://…`.
    #[arg(long, env = "DOCKER_HOST", default_value = "unix:///var/run/docker.sock")]
    pub docker_host: String,
    /// The program that is PID 1 of every sandbox; default: `dartcloud-runner` beside the agent's own executable.
    #[arg(long, env = "RUNNER_PATH")]
    pub runner_path: Option<PathBuf>,
    /// Memory that all sandboxes together may be granted, in MiB; default: three quarters of the machine's.
    #[arg(long, env = "SANDBOX_MEMORY_MB")]
    pub sandbox_memory_mb: Option<u64>,
    /// Blank sandboxes to keep ready at least, of each kind of runtime whose image is there; as many more as are
    /// needed. 0: none, and each cold start waits for Docker.
    #[arg(long, env = "SANDBOX_BLANKS", default_value_t = 2)]
    pub sandbox_blanks: u32,
    /// Memory that all blank sandboxes together may use, in MiB. It is not part of `SANDBOX_MEMORY_MB`.
    #[arg(long, env = "SANDBOX_BLANKS_MB", default_value_t = 512)]
    pub sandbox_blanks_mb: u64,
    /// Memory that a blank sandbox may use, in MiB; a function that has another limit gets that at its first call.
    #[arg(long, env = "SANDBOX_BLANK_MEMORY_MB", default_value_t = 128, value_parser = clap::value_parser!(u32).range(16..))]
    pub sandbox_blank_memory_mb: u32,
    /// How long a sandbox may stand idle until it is removed, in seconds.
    #[arg(long, env = "SANDBOX_IDLE_SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    pub sandbox_idle_seconds: u64,
    /// How long a sandbox may stand idle until its processes are frozen, in milliseconds; the next call thaws them. 0:
    /// never.
    #[arg(long, env = "SANDBOX_FREEZE_AFTER_MS", default_value_t = 1000)]
    pub sandbox_freeze_after_ms: u64,
    /// How long a call may wait for a sandbox, in seconds: at most 100, since the gateway waits no longer.
    #[arg(long, env = "SANDBOX_START_SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=100))]
    pub sandbox_start_seconds: u64,
    /// How many calls may wait for a sandbox, over all functions.
    #[arg(long, env = "SANDBOX_QUEUE", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub sandbox_queue: u32,
    /// Processor time of one sandbox, in processors.
    #[arg(long, env = "SANDBOX_CPUS", default_value_t = 1.0)]
    pub sandbox_cpus: f64,
    /// Processes and threads of one sandbox.
    #[arg(long, env = "SANDBOX_PIDS", default_value_t = 128, value_parser = clap::value_parser!(u32).range(8..))]
    pub sandbox_pids: u32,
    /// Size of a sandbox's `/tmp`, in MiB; what it holds counts as the sandbox's memory.
    #[arg(long, env = "SANDBOX_TMP_MB", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub sandbox_tmp_mb: u32,
    /// Room for one request and one result together, in MiB. It is memory, used while a call runs.
    #[arg(long, env = "SANDBOX_EXCHANGE_MB", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub sandbox_exchange_mb: u32,
    /// What is kept of each of a call's stdout and stderr, in KiB: at most 64, which is what a record takes.
    #[arg(long, env = "SANDBOX_OUTPUT_KB", default_value_t = 64, value_parser = clap::value_parser!(u32).range(0..=64))]
    pub sandbox_output_kb: u32,
    /// The Docker network of functions with egress, and of builds that fetch packages; default: one that the agent
    /// makes for them, in which they do not reach each other.
    #[arg(long, env = "SANDBOX_NETWORK")]
    pub sandbox_network: Option<String>,
    /// What sandboxes with a network may reach although it is this machine, private or link-local: addresses and
    /// ranges (`10.1.2.3,192.168.7.0/24`), such as a package registry's. Only for the network that the agent makes.
    #[arg(long, env = "SANDBOX_NETWORK_ALLOW", value_delimiter = ',', value_parser = super::fence::range)]
    pub sandbox_network_allow: Vec<String>,
    /// First user id that sandboxes get; the 100,000 from here on must not belong to anybody on this machine.
    #[arg(long, env = "SANDBOX_FIRST_UID", default_value_t = 2_000_000, value_parser = clap::value_parser!(u32).range(65_534..2_000_000_000))]
    pub sandbox_first_uid: u32,
    /// How long the pull of an image may take, in seconds.
    #[arg(long, env = "IMAGE_PULL_SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    pub image_pull_seconds: u64,
    /// How builds are run.
    #[command(flatten)]
    pub build: BuildArgs,
}

/// How builds are run.
#[derive(Clone, Debug, clap::Args)]
pub struct BuildArgs {
    /// Longest time of a build, in seconds.
    #[arg(long, env = "BUILD_TIMEOUT_SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub build_timeout_seconds: u32,
    /// Memory of a build, in MiB. It is not part of `SANDBOX_MEMORY_MB`.
    #[arg(long, env = "BUILD_MEMORY_MB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(16..))]
    pub build_memory_mb: u32,
    /// Builds at once; others wait their turn.
    #[arg(long, env = "BUILD_CONCURRENT", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    pub build_concurrent: u32,
    /// Processor time of one build, in processors.
    #[arg(long, env = "BUILD_CPUS", default_value_t = 2.0)]
    pub build_cpus: f64,
    /// Processes and threads of one build.
    #[arg(long, env = "BUILD_PIDS", default_value_t = 512, value_parser = clap::value_parser!(u32).range(8..))]
    pub build_pids: u32,
    /// What a build may leave in its work directory, in MiB.
    #[arg(long, env = "BUILD_DISK_MB", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1..))]
    pub build_disk_mb: u32,
    /// What is kept of what a build prints, in KiB.
    #[arg(long, env = "BUILD_OUTPUT_KB", default_value_t = 4096)]
    pub build_output_kb: u32,
    /// Certificate authorities that builds with a network trust; the machine's own where it has them.
    /// `/dev/null`: those of the image.
    #[arg(long, env = "BUILD_CA_FILE", default_value = "/etc/ssl/certs/ca-certificates.crt")]
    pub build_ca_file: PathBuf,
    /// Environment of builds with a network, `KEY=VALUE` (a package index, a proxy); may be given several times,
    /// in the variable one per line. Functions never get it.
    #[arg(long, env = "BUILD_ENV", value_delimiter = '\n', value_parser = key_value)]
    pub build_env: Vec<(String, String)>,
}

impl SandboxArgs {
    pub(crate) fn idle(&self) -> Duration {
        Duration::from_secs(self.sandbox_idle_seconds)
    }

    pub(crate) fn wait(&self) -> Duration {
        Duration::from_secs(self.sandbox_start_seconds)
    }

    /// Docker refuses a limit of more processors than the machine has.
    pub(crate) fn cpus(&self, wanted: f64) -> f64 {
        let there = std::thread::available_parallelism().map_or(1.0, |count| count.get() as f64);
        wanted.clamp(LEAST_CPUS, there)
    }

    pub(crate) fn pull(&self) -> Duration {
        Duration::from_secs(self.image_pull_seconds)
    }
}

/// The smallest share of a processor that Docker grants.
const LEAST_CPUS: f64 = 0.01;

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is not KEY=VALUE")),
    }
}
