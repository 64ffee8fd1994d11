//! `dartcloud-node-agent`: a node agent as a process of its own.

use std::io::Write as _;
use std::process::ExitCode;

use common::settings::Shared;
use node_agent::{Settings, StartError, program};
use store::StoreArgs;

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
    let options = match common::options::parse::<Options>() {
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
    let Options { shared, store, settings } = options;
    match runtime.block_on(program::serve(settings, shared, store)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let is_setting = !matches!(error, StartError::Sandbox(_) | StartError::Signals(_));
            failed(&error.into(), if is_setting { WRONG_SETTING } else { 1 })
        }
    }
}

/// One sentence on stderr, with its causes.
fn failed(error: &anyhow::Error, code: u8) -> ExitCode {
    // Nobody is left to tell when that fails.
    let _ = writeln!(std::io::stderr(), "dartcloud-node-agent: {error:#}");
    ExitCode::from(code)
}
