//! `dartcloud-gateway`: the gateway as a program of its own, with its ops listener and its signals.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use common::ops::{self, More, Readiness};
use common::settings::Shared;
use gateway::{Settings, StartError};
use prometheus::Registry;
use store::StoreArgs;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What is logged without `RUST_LOG`: Pingora is chatty about its own life.
const LOG_FILTER: &str = "info,pingora_core=warn,pingora_runtime=warn";

/// Exit code for a wrong setting (`EX_USAGE` of sysexits.h).
const WRONG_SETTING: u8 = 64;

/// The gateway of Dart Cloud: the edge that clients call and the control API.
#[derive(Parser)]
#[command(name = "dartcloud-gateway", version)]
struct Arguments {
    #[command(flatten)]
    shared: Shared,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    settings: Settings,
}

fn main() -> ExitCode {
    let arguments = match common::options::parse::<Arguments>() {
        Ok(arguments) => arguments,
        Err(error) => {
            let code = if error.use_stderr() { WRONG_SETTING } else { 0 };
            // Without a terminal to write to there is nobody to tell.
            error.print().ok();
            return code.into();
        }
    };
    common::telemetry::init(LOG_FILTER);
    common::descriptors::raise();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            writeln!(std::io::stderr(), "dartcloud-gateway: {error:#}").ok();
            error.downcast_ref().map_or(1, StartError::exit_code).into()
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { shared, store, settings } = arguments;
    let ops_addr = shared.place.ops_addr;
    let (registry, readiness, stop) = (Registry::new(), Readiness::default(), CancellationToken::new());
    let pages = More::default();
    // One thread for signals, metrics and probes: they answer even when everything else is busy.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("ops").enable_all().build()?;
    let listener = runtime
        .block_on(TcpListener::bind(ops_addr))
        .with_context(|| format!("cannot listen on {}: set OPS_ADDR", ops_addr))?;
    let signals = runtime.block_on(async { Signals::watch() }).context("signals cannot be watched")?;
    runtime.spawn(signals.forward(stop.clone()));
    let ops_end = CancellationToken::new();
    let served = ops::serve(listener, registry.clone(), readiness.clone(), pages.clone(), ops_end.clone());
    let ops = runtime.spawn(served);
    let ended = gateway::run(settings, shared, store, registry, readiness, &pages, stop);
    ops_end.cancel();
    runtime.block_on(ops).context("the ops listener failed")?;
    ended.map_err(anyhow::Error::from)
}

struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn watch() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn forward(mut self, stop: CancellationToken) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
        tracing::info!("stopping");
        stop.cancel();
    }
}
