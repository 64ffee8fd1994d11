//! `dartcloud-gateway`: the gateway as a program of its own, with its ops listener and its signals.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use common::ops::{self, Readiness};
use common::settings::Shared;
use gateway::{Ops, Predecessor, Settings, StartError, Succession};
use prometheus::Registry;
use store::StoreArgs;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

mod supervisor;

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
    /// Take the place of the gateway that runs on the same DATA_DIR, without a call that fails: it gives its sockets, answers
    /// what it has, and ends. If none runs, start as usual.
    #[arg(long)]
    take_over: bool,
    #[command(flatten)]
    shared: Shared,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    settings: Settings,
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
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
    let Arguments { take_over, shared, store, settings } = arguments;
    let (registry, readiness, stop) = (Registry::new(), Readiness::default(), CancellationToken::new());
    // One thread for signals, metrics and probes: they answer even when everything else is busy.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("ops").enable_all().build()?;
    let mut predecessor = runtime.block_on(predecessor(take_over, &shared.place.data_dir))?;
    let socket = ops_socket(predecessor.as_mut(), shared.place.ops_addr)?;
    let (begin, end) = (CancellationToken::new(), CancellationToken::new());
    let ops = Ops { socket: socket.try_clone()?, begin: begin.clone(), end: end.clone() };
    let signals = runtime.block_on(async { Signals::watch() }).context("signals cannot be watched")?;
    runtime.spawn(signals.forward(stop.clone()));
    let listener = runtime.block_on(async { TcpListener::from_std(socket) })?;
    let serving = ops::serve(listener, registry.clone(), readiness.clone(), end.clone());
    let end_ops = end.clone();
    // Where another gateway runs, that one answers until we take its place.
    let waits = predecessor.is_some();
    let begun = async move {
        tokio::select! {
            // The end of a start that failed.
            biased;
            () = end.cancelled() => {}
            () = begin.cancelled() => supervisor::ready(),
        }
    };
    let serving = runtime.spawn(async move {
        if waits {
            begun.await;
            serving.await;
        } else {
            tokio::join!(begun, serving);
        }
    });
    let succession = Succession::of(predecessor, Some(ops));
    let ended = gateway::run(settings, shared, store, registry, readiness, stop, succession);
    end_ops.cancel();
    runtime.block_on(serving).context("the ops listener failed")?;
    ended.map_err(anyhow::Error::from)
}

/// The gateway whose place is to be taken, if one runs. Without the wish for it, one that runs is in the way.
async fn predecessor(take_over: bool, data_dir: &Path) -> Result<Option<Predecessor>, StartError> {
    if !take_over {
        // Before anything is bound, for this says more than that a port is taken.
        return gateway::hold(data_dir).map(|_free| None);
    }
    let found = Predecessor::find(data_dir).await?;
    if found.is_none() {
        tracing::info!(data_dir = %data_dir.display(), "no gateway runs here whose place could be taken: starting as usual");
    }
    Ok(found)
}

fn ops_socket(predecessor: Option<&mut Predecessor>, address: SocketAddr) -> anyhow::Result<StdTcpListener> {
    if let Some(socket) = predecessor.and_then(|predecessor| predecessor.ops(address)) {
        return Ok(socket);
    }
    let bound = StdTcpListener::bind(address).and_then(|socket| socket.set_nonblocking(true).map(|()| socket));
    bound.with_context(|| format!("cannot listen on {address}: set OPS_ADDR"))
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    upgrade: Signal,
}

impl Signals {
    fn watch() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            upgrade: signal(SignalKind::user_defined2())?,
        })
    }

    async fn forward(mut self, stop: CancellationToken) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => break,
                _ = self.interrupt.recv() => break,
                Some(()) = self.upgrade.recv() => {}
            }
            tokio::select! {
                // One at a time, which the gateway would see to anyway.
                () = supervisor::start_successor() => {}
                _ = self.terminate.recv() => break,
                _ = self.interrupt.recv() => break,
            }
        }
        tracing::info!("stopping");
        stop.cancel();
    }
}
