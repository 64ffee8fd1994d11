//! What the facts of a machine mean. Pure: each finding is a function of what was found.

use super::{Facts, Finding, Gateway, Grade};
use crate::sandbox::EngineFacts;

/// Room below which nothing can be kept, and below which it is soon used up, in MiB.
const LEAST_DISK_MB: u64 = 512;
const GOOD_DISK_MB: u64 = 5 * 1024;

/// How far a clock may be off before certificates and records are, in seconds.
const GOOD_CLOCK_SECONDS: i64 = 5;
const LEAST_CLOCK_SECONDS: i64 = 3600;

/// Versions of runc, by branch, from which on the escapes of 2025 are mended (CVE-2025-31133, -52565, -52881).
const MENDED_RUNC: [[u32; 3]; 2] = [[1, 2, 8], [1, 3, 3]];

/// The capability to mount: CAP_SYS_ADMIN.
const MOUNT_BIT: u64 = 1 << 21;

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = match &facts.engine {
        Ok(engine) => vec![
            ok("engine", format!("Docker Engine {}, API {}", engine.version, engine.api)),
            runc(engine.runc.as_deref()),
            cgroups(engine),
            seccomp(engine.has_seccomp),
            swap(facts.swap_mb, engine.limits_swap),
        ],
        Err(reason) => vec![fail("engine", reason.clone())],
    };
    findings.push(match &facts.runner {
        Ok(()) => ok("runner", "the program that is PID 1 of every sandbox is there"),
        Err(reason) => fail("runner", reason.clone()),
    });
    findings.push(if facts.may_mount {
        ok("mounts", "this user may mount, as an agent has to")
    } else {
        fail("mounts", "this user may not mount, and an agent has to: run it as root, or give it CAP_SYS_ADMIN")
    });
    findings.push(disk(&facts.disk));
    findings.push(match &facts.gateway {
        Some(gateway) => clock(gateway),
        None => ok("clock", "not compared: this machine has joined no fleet, or is the gateway's own"),
    });
    findings
}

fn ok(about: &'static str, sentence: impl Into<String>) -> Finding {
    Finding { grade: Grade::Ok, about, sentence: sentence.into() }
}

fn warn(about: &'static str, sentence: impl Into<String>) -> Finding {
    Finding { grade: Grade::Warn, about, sentence: sentence.into() }
}

fn fail(about: &'static str, sentence: impl Into<String>) -> Finding {
    Finding { grade: Grade::Fail, about, sentence: sentence.into() }
}

fn runc(version: Option<&str>) -> Finding {
    let Some(version) = version else {
        return warn("runc", "the Engine does not name its runc: see to it that it is 1.2.8, 1.3.3 or newer");
    };
    match numbers(version) {
        Some(numbers) if is_mended(numbers) => ok("runc", format!("runc {version}")),
        _ => warn(
            "runc",
            format!(
                "runc {version} has by its number the escapes of 2025 (CVE-2025-31133, CVE-2025-52565, CVE-2025-52881), by \
                 which a container can become the host: install 1.2.8, 1.3.3 or newer, or see in the changelog of your \
                 distribution's package that it has mended them"
            ),
        ),
    }
}

/// The first three numbers of a version: `1.1.5+ds1` is 1, 1, 5.
fn numbers(version: &str) -> Option<[u32; 3]> {
    let mut parts = version.split(['.', '+', '-', '~']).map(str::parse);
    Some([parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?])
}

fn is_mended(version: [u32; 3]) -> bool {
    let branch = MENDED_RUNC.iter().find(|mended| mended[..2] == version[..2]);
    branch.map_or(version > MENDED_RUNC[1], |mended| version >= *mended)
}

fn cgroups(engine: &EngineFacts) -> Finding {
    let needed = [("memory", engine.limits_memory), ("pids", engine.limits_pids)];
    let missing: Vec<_> = needed.iter().filter(|(_, has)| !has).map(|(name, _)| *name).collect();
    let version = engine.cgroups.as_deref().unwrap_or("?");
    if !missing.is_empty() {
        let missing = missing.join(" and ");
        let fix = "boot with `cgroup_enable=memory`, or give the Engine these controllers";
        return fail("cgroups", format!("version {version} without {missing}, so functions have no limits: {fix}"));
    }
    if !engine.limits_cpu {
        let fix = "use a kernel with CONFIG_CFS_BANDWIDTH";
        return warn("cgroups", format!("version {version} without CPU quotas, so one function can take all: {fix}"));
    }
    ok("cgroups", format!("version {version} with memory, pids and cpu"))
}

fn seccomp(has: bool) -> Finding {
    if has {
        ok("seccomp", "the Engine filters system calls")
    } else {
        fail(
            "seccomp",
            "the Engine cannot filter system calls: use a kernel with CONFIG_SECCOMP_FILTER and an Engine \
                         that was built with it",
        )
    }
}

fn swap(swap_mb: u64, is_limited: bool) -> Finding {
    match (swap_mb, is_limited) {
        (0, _) => ok("swap", "this machine has none"),
        (_, true) => ok("swap", format!("{swap_mb} MiB, of which sandboxes get none")),
        (_, false) => warn(
            "swap",
            format!(
                "{swap_mb} MiB, and the Engine cannot keep sandboxes from it, so a function may use twice its memory and \
                 slow all others: boot with `swapaccount=1`, or turn swap off"
            ),
        ),
    }
}

fn disk(disk: &Result<(std::path::PathBuf, u64), String>) -> Finding {
    match disk {
        Err(reason) => fail("disk", reason.clone()),
        Ok((path, free_mb)) => {
            let found = format!("{free_mb} MiB are free for {}", path.display());
            if *free_mb < LEAST_DISK_MB {
                fail("disk", format!("{found}: free some, or set DATA_DIR to a larger disk"))
            } else if *free_mb < GOOD_DISK_MB {
                warn(
                    "disk",
                    format!("{found}, which builds and records soon use up: free some, or lower BUILD_CACHE_MB"),
                )
            } else {
                ok("disk", found)
            }
        }
    }
}

fn clock(gateway: &Gateway) -> Finding {
    let place = &gateway.place;
    match &gateway.clock_ahead {
        Err(reason) => fail("clock", format!("the gateway at {place} does not say what time it is: {reason}")),
        Ok(ahead) => {
            let seconds = ahead.num_seconds();
            let found = if seconds < 0 {
                format!("{} s behind that of {place}", -seconds)
            } else {
                format!("{seconds} s ahead of that of {place}")
            };
            let fix = "let a time service set it (`timedatectl set-ntp true`)";
            if seconds.abs() > LEAST_CLOCK_SECONDS {
                fail("clock", format!("{found}, so certificates are not valid here when they should be: {fix}"))
            } else if seconds.abs() > GOOD_CLOCK_SECONDS {
                warn("clock", format!("{found}, so records have wrong times: {fix}"))
            } else {
                ok("clock", format!("agrees with that of {place}"))
            }
        }
    }
}

/// Whether a process may mount, by its `/proc/PID/status`.
pub(super) fn may_mount(status: &str) -> bool {
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = capabilities.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    bits.is_some_and(|bits| bits & MOUNT_BIT != 0)
}

/// Swap in MiB, by `/proc/meminfo`.
pub(super) fn swap_mb(meminfo: &str) -> u64 {
    let kilobytes = meminfo.lines().find_map(|line| line.strip_prefix("SwapTotal:"));
    let kilobytes = kilobytes.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kilobytes.unwrap_or(0) / 1024
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    fn engine() -> EngineFacts {
        EngineFacts {
            version: "29.0.1".into(),
            api: "1.52".into(),
            runc: Some("1.3.3".into()),
            cgroups: Some("2".into()),
            has_seccomp: true,
            limits_memory: true,
            limits_swap: true,
            limits_pids: true,
            limits_cpu: true,
        }
    }

    fn machine() -> Facts {
        let gateway = Gateway { place: "https://g:9443".into(), clock_ahead: Ok(TimeDelta::zero()) };
        Facts {
            engine: Ok(engine()),
            runner: Ok(()),
            may_mount: true,
            swap_mb: 0,
            disk: Ok(("/data".into(), 100_000)),
            gateway: Some(gateway),
        }
    }

    /// Expects one finding of a machine with this change to be so, and every other one to be well.
    fn check(about: &str, grade: Grade, part: &str, change: impl FnOnce(&mut Facts)) {
        let mut facts = machine();
        change(&mut facts);
        for finding in judge(&facts) {
            if finding.about == about {
                assert!(finding.grade == grade && finding.sentence.contains(part), "{finding:?}");
            } else {
                assert_eq!(finding.grade, Grade::Ok, "{finding:?}");
            }
        }
    }

    fn with(change: impl FnOnce(&mut EngineFacts)) -> impl FnOnce(&mut Facts) {
        |facts| {
            let mut engine = engine();
            change(&mut engine);
            facts.engine = Ok(engine);
        }
    }

    #[test]
    fn findings() {
        use Grade::{Fail, Ok as Well, Warn};
        check("engine", Well, "29.0.1", |_| {});
        check("engine", Fail, "no Docker", |facts| facts.engine = Err("no Docker Engine answers".into()));
        check("runc", Warn, "does not name", with(|engine| engine.runc = None));
        check("runc", Warn, "CVE-2025-31133", with(|engine| engine.runc = Some("1.1.5+ds1".into())));
        check(
            "cgroups",
            Fail,
            "without memory and pids",
            with(|engine| (engine.limits_memory, engine.limits_pids) = (false, false)),
        );
        check("cgroups", Warn, "CPU quotas", with(|engine| engine.limits_cpu = false));
        check("seccomp", Fail, "CONFIG_SECCOMP", with(|engine| engine.has_seccomp = false));
        check("swap", Well, "get none", |facts| facts.swap_mb = 100);
        check("swap", Warn, "swapaccount=1", |facts| {
            with(|engine| engine.limits_swap = false)(facts);
            facts.swap_mb = 100;
        });
        check("runner", Fail, "no runner", |facts| facts.runner = Err("no runner".into()));
        check("mounts", Fail, "CAP_SYS_ADMIN", |facts| facts.may_mount = false);
        check("disk", Fail, "DATA_DIR", |facts| facts.disk = Ok(("/data".into(), 100)));
        check("disk", Warn, "BUILD_CACHE_MB", |facts| facts.disk = Ok(("/data".into(), 1000)));
        check("disk", Fail, "cannot look", |facts| facts.disk = Err("cannot look at /data".into()));
        check("clock", Well, "not compared", |facts| facts.gateway = None);
        for (seconds, grade, part) in [(4, Well, "agrees"), (-60, Warn, "60 s behind"), (3601, Fail, "3601 s ahead")] {
            let clock_ahead = Ok(TimeDelta::seconds(seconds));
            check("clock", grade, part, |facts| facts.gateway = Some(Gateway { place: "g".into(), clock_ahead }));
        }
    }

    #[test]
    fn mended_versions_of_runc() {
        let check = |version: &str, expected| assert_eq!(numbers(version).map(is_mended), expected, "{version}");
        check("1.1.5+ds1", Some(false));
        check("1.2.7", Some(false));
        check("1.2.8", Some(true));
        check("1.3.2", Some(false));
        check("1.3.3", Some(true));
        check("1.4.0-rc.3", Some(true));
        check("2.0.0", Some(true));
        check("1.0.0~rc93", Some(false));
        check("unknown", None);
    }

    #[test]
    fn what_the_system_says() {
        assert!(may_mount("Name:\tx\nCapEff:\t000001ffffffffff\n"));
        assert!(!may_mount("Name:\tx\nCapEff:\t00000000a80425fb\n"));
        assert!(!may_mount(""));
        assert_eq!(swap_mb("MemTotal: 100 kB\nSwapTotal:  2097148 kB\n"), 2047);
        assert_eq!(swap_mb(""), 0);
    }
}
