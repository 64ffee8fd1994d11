//! What is looked at before anything starts: each finding is a sentence that says the fix.

use std::fs::DirBuilder;
use std::net::TcpListener;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use super::Args;

/// Least free space under the data directory, in MiB: a database, some archives, some builds.
const MIN_DISK_MB: u64 = 512;
/// Least available memory, in MiB: the platform and one function.
const MIN_MEMORY_MB: u64 = 256;

/// Checks data directory, disk, memory, ports and Engine, in the order in which they cost.
pub(super) fn check(args: &Args) -> Result<()> {
    let place = &args.shared.place;
    // Everybody's code will be in it.
    DirBuilder::new().recursive(true).mode(0o700).create(&place.data_dir).with_context(|| {
        format!("cannot make {}: set DATA_DIR to a directory that can be written", place.data_dir.display())
    })?;
    disk(&place.data_dir)?;
    memory()?;
    let bind = args.gateway.listen_addr();
    port(bind, "PORT")?;
    port(place.ops_addr, "OPS_ADDR")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(node_agent::check_engine(&args.agent.sandbox))?)
}

fn disk(data_dir: &Path) -> Result<()> {
    let space = rustix::fs::statvfs(data_dir)?;
    let free_mb = space.f_bavail * space.f_frsize / (1024 * 1024);
    ensure!(
        free_mb >= MIN_DISK_MB,
        "{} has {free_mb} MiB free, {MIN_DISK_MB} are needed: free some, or set DATA_DIR to a larger disk",
        data_dir.display()
    );
    Ok(())
}

fn memory() -> Result<()> {
    let text =
        std::fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo: only Linux is supported")?;
    let available = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib: u64 = available.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(u64::MAX);
    ensure!(
        kib / 1024 >= MIN_MEMORY_MB,
        "{} MiB of memory are available, {MIN_MEMORY_MB} are needed: end something large",
        kib / 1024
    );
    Ok(())
}

fn port(address: std::net::SocketAddr, setting: &str) -> Result<()> {
    match TcpListener::bind(address) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            bail!("{address} is taken: end what listens there (`ss -ltnp`), or set {setting} to another one")
        }
        Err(error) => Err(error).with_context(|| format!("cannot listen on {address}: set {setting} to another one")),
    }
}
