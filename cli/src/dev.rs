//! `dartcloud dev`: gateway and node agent in one process, on SQLite, with nothing to set up first.
//!
//! It looks at what could go wrong before it starts anything, makes its secrets and the operator's account once, says
//! where everything is, and is quiet after that.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use common::ops::Readiness;
use common::settings::Shared;
use prometheus::Registry;
use store::StoreArgs;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::output;

mod account;
mod preflight;

/// How long the parts may take to become ready.
const START_DEADLINE: Duration = Duration::from_secs(120);

/// Settings of `dartcloud dev`: the gateway's and the agent's.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    shared: Shared,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    gateway: gateway::Settings,
    #[command(flatten)]
    agent: node_agent::Settings,
}

/// Runs until SIGINT or SIGTERM. Blocks the calling thread, which must not be a runtime's: the gateway's chassis
/// brings runtimes of its own.
pub(crate) fn run(mut args: Args) -> Result<()> {
    common::telemetry::init("warn");
    common::descriptors::raise();
    preflight::check(&args)?;
    let data_dir = &args.shared.place.data_dir;
    account::ensure_jwt_secret(data_dir, &mut args.gateway)?;
    let url = local_url(scheme(&args.gateway), args.gateway.listen_addr());
    let (founder, account) = account::ensure_operator(data_dir, url.clone())?;
    let greeting = Greeting { url, account, email: founder.email.clone() };
    args.gateway.founder = Some(founder);
    args.agent.is_local = true;

    let life = Life::default();
    let (gateway, shared, store) = (args.gateway.clone(), args.shared.clone(), args.store.clone());
    let beside = {
        let life = life.clone();
        std::thread::Builder::new().name("agent".into()).spawn(move || {
            let result = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .map_err(anyhow::Error::from)
                .and_then(|runtime| runtime.block_on(beside_the_gateway(args, &life, greeting)));
            // Without an agent a gateway serves nobody.
            life.stop.cancel();
            result
        })?
    };
    let (registry, readiness, stop) = (life.registry.clone(), life.gateway.clone(), life.stop.clone());
    let served = gateway::run(gateway, shared, store, registry, readiness, stop, gateway::Succession::none());
    // The gateway has answered what was in flight, for which it needed the agent.
    life.stop.cancel();
    life.stop_agent.cancel();
    let beside = beside.join().map_err(|_| anyhow!("the agent panicked: the log above has the cause"))?;
    served.context("the gateway could not go on").and(beside)
}

/// What the public listener speaks.
fn scheme(settings: &gateway::Settings) -> &'static str {
    if settings.listen.tls.tls_cert_file.is_some() { "https" } else { "http" }
}

/// How this machine reaches a listener at `address`: by name where it listens there, else by the address itself.
fn local_url(scheme: &str, address: SocketAddr) -> String {
    let ip = address.ip();
    if ip.is_unspecified() || ip == Ipv4Addr::LOCALHOST {
        format!("{scheme}://localhost:{}", address.port())
    } else {
        format!("{scheme}://{address}")
    }
}

/// What the parts share: who is ready, and when to stop.
#[derive(Clone, Default)]
struct Life {
    registry: Registry,
    gateway: Readiness,
    agent: Readiness,
    stop: CancellationToken,
    stop_agent: CancellationToken,
}

/// What a person needs to know of the operator's account.
struct Greeting {
    url: String,
    email: String,
    /// The file that holds the password.
    account: PathBuf,
}

/// The agent, the ops listener, the signals and the greeting.
async fn beside_the_gateway(args: Args, life: &Life, greeting: Greeting) -> Result<()> {
    let data_dir = args.shared.place.data_dir.clone();
    let ops_addr = args.shared.place.ops_addr;
    let ops = TcpListener::bind(ops_addr).await.with_context(|| format!("cannot listen on OPS_ADDR {ops_addr}"))?;
    let agent = node_agent::run(
        args.agent,
        args.shared,
        args.store,
        life.registry.clone(),
        life.agent.clone(),
        life.stop_agent.clone(),
    );
    let ops = common::ops::serve(ops, life.registry.clone(), life.gateway.clone(), life.stop_agent.clone());
    let greeting = async {
        let greeted = greet(&greeting, &data_dir, ops_addr, life).await;
        if greeted.is_err() {
            life.stop.cancel();
        }
        greeted
    };
    let signals = async {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = life.stop.cancelled() => {}
        }
        life.stop.cancel();
        anyhow::Ok(())
    };
    let agent = async {
        let ended = agent.await.context("the node agent could not go on");
        life.stop.cancel();
        life.stop_agent.cancel();
        ended
    };
    let (agent, (), greeted, signals) = tokio::join!(agent, ops, greeting, signals);
    agent.and(greeted).and(signals)
}

/// Waits until everything is ready, then says what a person needs to know next.
async fn greet(greeting: &Greeting, data_dir: &Path, ops_addr: SocketAddr, life: &Life) -> Result<()> {
    let started = Instant::now();
    let mut said = false;
    while !(life.agent.get() && life.gateway.get()) {
        if life.stop.is_cancelled() {
            return Ok(());
        }
        if started.elapsed() > START_DEADLINE {
            bail!("not ready after {START_DEADLINE:?}: run again with RUST_LOG=info to see what it waits for");
        }
        if !said && started.elapsed() > Duration::from_secs(2) {
            output::note("starting …");
            said = true;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let Greeting { url, email, account } = greeting;
    let (data, account) = (data_dir.display(), account.display());
    output::line(format_args!(
        "Dart Cloud is ready.\n\n\
         \x20 API and functions  {url}\n\
         \x20 Metrics            http://{ops_addr}/metrics\n\
         \x20 Data               {data}\n\
         \x20 Operator           {email} (password in {account})\n\n\
         Try it in another terminal, where the first line says that this server is meant:\n\
         \x20 export DARTCLOUD_URL={url} DATA_DIR='{data}'\n\
         \x20 curl {url}/api/health\n\
         \x20 dartcloud new hello --runtime python\n\
         \x20 dartcloud deploy hello\n\
         \x20 dartcloud invoke hello --body '{{\"name\": \"Ada\"}}'\n\n\
         Ctrl-C stops it; what was deployed is there again at the next start.",
    ))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_follows_the_listener() {
        let check = |address: &str, expected: &str| assert_eq!(local_url("http", address.parse().unwrap()), expected);
        check("127.0.0.1:8080", "http://localhost:8080");
        check("0.0.0.0:80", "http://localhost:80");
        check("[::]:8080", "http://localhost:8080");
        check("192.0.2.7:8080", "http://192.0.2.7:8080");
        // The name need not lead to these two.
        check("127.0.0.2:8080", "http://127.0.0.2:8080");
        check("[::1]:8080", "http://[::1]:8080");
        assert_eq!(local_url("https", "127.0.0.1:443".parse().unwrap()), "https://localhost:443");
    }
}
