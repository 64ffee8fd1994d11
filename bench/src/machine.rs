//! The machine as `/proc` tells it: its cores, and what processes use of it.

use std::collections::HashMap;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

/// Ticks of `/proc/PID/stat` in a second; Linux has shown 100 to programs on every architecture for decades.
const TICKS_PER_SECOND: u64 = 100;

/// Which cores are whose, as `taskset -c` reads them.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Cores {
    /// What is measured, where it is held to one core.
    pub(crate) server: String,
    /// The load, and what stands in for upstreams.
    pub(crate) load: String,
    /// Two cores, for what is measured on two.
    pub(crate) two: String,
    /// Every core that this process may use.
    pub(crate) all: String,
}

impl Cores {
    /// Splits the cores that this process may use, and moves the process itself to those of the load.
    pub(crate) fn divide() -> Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let list =
            status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).context("no list of cores")?;
        let cores = split(&parse_cores(list.trim())?);
        let moved = Command::new("taskset").args(["-apc", &cores.load, &std::process::id().to_string()]).output()?;
        ensure!(moved.status.success(), "taskset: {}", String::from_utf8_lossy(&moved.stderr));
        Ok(cores)
    }
}

fn split(all: &[u32]) -> Cores {
    let list = |cores: &[u32]| cores.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let (server, rest) = all.split_at(1);
    Cores {
        server: list(server),
        // On one core everything shares it, and only CPU times mean something.
        load: list(if rest.is_empty() { server } else { rest }),
        two: list(&all[..all.len().min(2)]),
        all: list(all),
    }
}

/// `0-2,5` as numbers; at least one.
fn parse_cores(list: &str) -> Result<Vec<u32>> {
    let mut cores = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cores.extend(first.parse::<u32>()?..=last.parse()?);
    }
    ensure!(!cores.is_empty(), "`{list}` names no core");
    Ok(cores)
}

/// What the report says of the machine.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Description {
    pub(crate) name: String,
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) memory_mb: u64,
    pub(crate) kernel: String,
    pub(crate) system: String,
    pub(crate) engine: String,
    /// Of the last minute, when the run began: what others did on this machine.
    pub(crate) load_average: f64,
}

pub(crate) fn describe() -> Description {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| -> String {
        let value = text.lines().find_map(|line| line.strip_prefix(name));
        value.unwrap_or_default().trim_start_matches([' ', '\t', ':', '=']).trim_matches('"').trim().to_owned()
    };
    let processors = read("/proc/cpuinfo");
    Description {
        name: read("/proc/sys/kernel/hostname").trim().to_owned(),
        processor: field(&processors, "model name"),
        cores: processors.lines().filter(|line| line.starts_with("processor")).count(),
        memory_mb: field(&read("/proc/meminfo"), "MemTotal").trim_end_matches(" kB").parse::<u64>().unwrap_or(0) / 1024,
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        system: field(&read("/etc/os-release"), "PRETTY_NAME"),
        engine: engine().unwrap_or_default(),
        load_average: read("/proc/loadavg").split(' ').next().and_then(|one| one.parse().ok()).unwrap_or(0.0),
    }
}

fn engine() -> Option<String> {
    let output = Command::new("docker").args(["version", "--format", "{{.Server.Version}}"]).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// CPU time, user and system, that `pid` and its living children have used.
pub(crate) fn cpu_time(pid: u32) -> Result<Duration> {
    let ticks: u64 = family(pid)?.iter().filter_map(|one| stat(*one)).map(|stat| stat.ticks).sum();
    Ok(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

/// CPU time of all of these.
pub(crate) fn cpu_times(pids: &[u32]) -> Result<Duration> {
    pids.iter().map(|pid| cpu_time(*pid)).sum()
}

/// `VmRSS` of `pid` alone, in MB of a million bytes.
pub(crate) fn resident_mb(pid: u32) -> Result<f64> {
    status_mb(pid, "VmRSS:")
}

/// The part of it that is its own, in MB of a million bytes: not pages of files, which processes of one program share.
pub(crate) fn own_mb(pid: u32) -> Result<f64> {
    status_mb(pid, "RssAnon:")
}

fn status_mb(pid: u32, field: &str) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("the process is gone")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).with_context(|| format!("no {field}"))?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024.0 / 1e6)
}

/// Descriptors that `pid` has open.
pub(crate) fn descriptors(pid: u32) -> Result<usize> {
    entries(pid, "fd")
}

/// Threads of `pid`.
pub(crate) fn threads(pid: u32) -> Result<usize> {
    entries(pid, "task")
}

fn entries(pid: u32, folder: &str) -> Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/{folder}")).context("the process is gone")?.count())
}

/// Memory that the cgroup of `pid` is charged, in MB of a million bytes; under both versions of cgroups.
pub(crate) fn cgroup_mb(pid: u32) -> Result<f64> {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let path = |controllers: &str| {
        groups.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let named = parts.next()?.split(',').any(|one| one == controllers);
            parts.next().filter(|_| named)
        })
    };
    let file = match path("memory") {
        Some(path) => format!("/sys/fs/cgroup/memory{path}/memory.usage_in_bytes"),
        None => format!("/sys/fs/cgroup{}/memory.current", path("").context("no cgroup")?),
    };
    let bytes: f64 = std::fs::read_to_string(&file).with_context(|| file.clone())?.trim().parse()?;
    Ok(bytes / 1e6)
}

/// What all processors have done since the machine started, in ticks.
pub(crate) struct Busy {
    all: u64,
    idle: u64,
}

impl Busy {
    pub(crate) fn now() -> Result<Self> {
        let text = std::fs::read_to_string("/proc/stat")?;
        let line = text.lines().find_map(|line| line.strip_prefix("cpu ")).context("no line of all processors")?;
        // Those of guests are part of those before.
        let ticks: Vec<u64> = line.split_whitespace().take(8).filter_map(|field| field.parse().ok()).collect();
        Ok(Self { all: ticks.iter().sum(), idle: ticks.iter().skip(3).take(2).sum() })
    }

    /// The share of the time since then that they were not idle.
    pub(crate) fn share_since(&self, before: &Self) -> f64 {
        let (all, idle) = (self.all.saturating_sub(before.all), self.idle.saturating_sub(before.idle));
        if all == 0 { 0.0 } else { 1.0 - idle as f64 / all as f64 }
    }
}

struct Stat {
    parent: u32,
    ticks: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The fields after the name, which may hold anything and ends at the last parenthesis.
fn parse_stat(text: &str) -> Option<Stat> {
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |place: usize| fields.get(place)?.parse::<u64>().ok();
    Some(Stat { parent: u32::try_from(number(1)?).ok()?, ticks: number(11)? + number(12)? })
}

/// `pid` and all that descend from it.
fn family(pid: u32) -> Result<Vec<u32>> {
    ensure!(stat(pid).is_some(), "process {pid} is gone");
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in std::fs::read_dir("/proc")? {
        let Some(one) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if let Some(stat) = stat(one) {
            children.entry(stat.parent).or_default().push(one);
        }
    }
    let mut members = vec![pid];
    let mut next = 0;
    while let Some(one) = members.get(next) {
        members.extend(children.get(one).into_iter().flatten().copied().collect::<Vec<_>>());
        next += 1;
    }
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_divided() {
        let check = |list: &str, server: &str, load: &str, two: &str| {
            let cores = split(&parse_cores(list).unwrap());
            assert_eq!((&*cores.server, &*cores.load, &*cores.two), (server, load, two), "{list}");
        };
        check("0-1", "0", "1", "0,1");
        check("0-3", "0", "1,2,3", "0,1");
        check("2,4-5", "2", "4,5", "2,4");
        check("3", "3", "3", "3");
        assert!(parse_cores("").is_err() && parse_cores("a-b").is_err());
    }

    #[test]
    fn a_name_may_hold_parentheses() {
        let stat = parse_stat("7 (a) b)) S 3 7 7 0 -1 4194560 1 0 0 0 250 50 1 2 20 0").unwrap();
        assert_eq!((stat.parent, stat.ticks), (3, 300));
        assert!(parse_stat("7 (a").is_none());
    }

    #[test]
    fn this_process_is_there() {
        let pid = std::process::id();
        assert!(family(pid).unwrap().contains(&pid) && resident_mb(pid).unwrap() > 0.1);
        assert!(cpu_time(pid).is_ok());
    }
}
