//! `dartcloud-node-agent`: a node agent as a process of its own.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use common::ops::{self, Readiness};
use common::settings::Shared;
use node_agent::{Settings, StartError};
use prometheus::Registry;
use store::StoreArgs;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What a wrong setting ends with (`EX_USAGE`).
const WRONG_SETTING: u8 = 64;

/// Builds functions and runs them in sandboxes on this machine.
#[derive(clap::Parser)]
#[command(name = "dartcloud-node-agent", version, about)]
struct Options {
    #[command(flatten)]
    shared: Shared,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    settings: Settings,
}

fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) => {
            let is_failure = error.use_stderr();
            // Nobody is left to tell when that fails.
            let _ = error.print();
            return if is_failure { ExitCode::from(WRONG_SETTING) } else { ExitCode::SUCCESS };
        }
    };
    common::telemetry::init("info");
    common::descriptors::raise();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&anyhow::Error::new(error).context("the machine gives no threads"), 1),
    };
    match runtime.block_on(serve(options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let is_setting = !matches!(error.downcast_ref(), Some(StartError::Sandbox(_)));
            failed(&error, if is_setting { WRONG_SETTING } else { 1 })
        }
    }
}

async fn serve(options: Options) -> anyhow::Result<()> {
    let Options { shared, store, settings } = options;
    let ops_addr = shared.place.ops_addr;
    let stop = CancellationToken::new();
    let (registry, readiness, tasks) = (Registry::new(), Readiness::default(), TaskTracker::new());
    let listener = TcpListener::bind(ops_addr).await.map_err(|error| {
        anyhow::Error::new(error).context(format!("cannot listen on {ops_addr} (OPS_ADDR): name a free one"))
    })?;
    let stop_ops = CancellationToken::new();
    tasks.spawn(ops::serve(listener, registry.clone(), readiness.clone(), stop_ops.clone()));
    let (mut terminated, mut interrupted) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stopping = stop.clone();
    tasks.spawn(async move {
        tokio::select! {
            _ = terminated.recv() => {}
            _ = interrupted.recv() => {}
            () = stopping.cancelled() => return,
        }
        tracing::info!("stopping: calls under way are answered first");
        stopping.cancel();
    });
    let ran = node_agent::run(settings, shared, store, registry, readiness, stop.clone()).await;
    stop.cancel();
    stop_ops.cancel();
    tasks.close();
    tasks.wait().await;
    Ok(ran?)
}

/// One sentence on stderr, with its causes.
fn failed(error: &anyhow::Error, code: u8) -> ExitCode {
    // Nobody is left to tell when that fails.
    let _ = writeln!(std::io::stderr(), "dartcloud-node-agent: {error:#}");
    ExitCode::from(code)
}
