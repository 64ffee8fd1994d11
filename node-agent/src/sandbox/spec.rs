//! What a sandbox is, in the words of Docker: the one constructor of every container that the agent makes, whether
//! it runs a function or a build. Pure: limits in, settings out.
//!
//! `/tmp` may hold programs. A function runs code of its owner's choice anyway, packers unpack there, and builds
//! compile there; `noexec` would stop them and no attacker who has an interpreter.

use std::collections::HashMap;
use std::path::PathBuf;

use bollard::models::{
    ContainerCreateBody, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig, Mount, MountBindOptions,
    MountBindOptionsPropagationEnum, MountType, ResourcesUlimits, RestartPolicy, RestartPolicyNameEnum,
};
use common::ids::{NodeId, SandboxId};

/// Label of everything that an agent makes in Docker; its value is the node's id.
pub(crate) const NODE_LABEL: &str = "dartcloud.node";
/// Label of a sandbox's container; its value is the sandbox's id.
pub(crate) const SANDBOX_LABEL: &str = "dartcloud.sandbox";

/// Where a sandbox finds its function.
pub(crate) const FUNCTION: &str = "/function";
/// Where a build finds its work directory.
pub(crate) const WORK: &str = "/build";
/// What a function is asked, when, and for how long it may think.
pub(crate) const REQUEST: &str = "/request.json";
/// The function's limits and environment, as a file.
pub(crate) const CONFIG: &str = "/.env.config";
/// Where it answers.
pub(crate) const RESULT: &str = "/result.json";
/// Where a build with a network finds the operator's certificate authorities.
pub(crate) const AUTHORITIES: &str = "/run/dartcloud-authorities.crt";

const RUNNER: &str = "/run/dartcloud-runner";
const LINK: &str = "/run/dartcloud";
/// The name of the agent's socket in its directory.
pub(crate) const SOCKET: &str = "agent.sock";
/// The program of spare processes, beside the socket.
pub(crate) const SPARE: &str = "spare";
/// Where a sandbox finds that.
pub(crate) const SPARE_PATH: &str = "/run/dartcloud/spare";

/// Which system calls sandboxes may make.
const SECCOMP: &str = include_str!("../../../deploy/seccomp.json");

/// Least user id of a sandbox: the one that `nobody` has, above which no system puts people.
const LEAST_UID: u32 = 65_534;
/// Open files of one process: a server has a connection for each call, and functions may ask for 1,000 of them at once.
const OPEN_FILES: i64 = 4096;
/// Shared memory of a sandbox, in bytes; it counts as its memory.
const SHARED_MEMORY_BYTES: i64 = 16 * 1024 * 1024;
/// Files in `/tmp`.
const TMP_FILES: u32 = 16_384;
/// When the machine runs out of memory, functions go before the platform does.
const OOM_SCORE: i64 = 500;

/// Everything that decides what a container is like.
#[derive(Clone, Debug)]
pub(crate) struct Blueprint {
    pub(crate) node: NodeId,
    pub(crate) sandbox: SandboxId,
    /// The image, by its id.
    pub(crate) image: String,
    /// User and group; no other sandbox that lives has it.
    pub(crate) uid: u32,
    pub(crate) limits: Limits,
    /// The Docker network; without it there is none at all.
    pub(crate) network: Option<String>,
    /// The runner's program on the host.
    pub(crate) runner: PathBuf,
    /// The host's directory with the agent's socket.
    pub(crate) link: PathBuf,
    pub(crate) mounts: Vec<Bind>,
}

/// What a container may use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Limits {
    pub(crate) memory_mb: u32,
    pub(crate) cpus: f64,
    pub(crate) pids: u32,
    pub(crate) tmp_mb: u32,
    /// Largest file that a process may write.
    pub(crate) file_mb: u32,
}

/// Something of the host's inside a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bind {
    pub(crate) source: PathBuf,
    pub(crate) target: &'static str,
    pub(crate) reach: Reach,
}

/// What a container may do with a [`Bind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Read it.
    Read,
    /// Write to it.
    Write,
    /// Read what the host mounts there later.
    Later,
}

/// The container's settings.
pub(crate) fn container(blueprint: &Blueprint) -> ContainerCreateBody {
    let labels = HashMap::from([
        (NODE_LABEL.to_owned(), blueprint.node.to_string()),
        (SANDBOX_LABEL.to_owned(), blueprint.sandbox.to_string()),
    ]);
    let uid = blueprint.uid.max(LEAST_UID);
    ContainerCreateBody {
        image: Some(blueprint.image.clone()),
        entrypoint: Some(vec![RUNNER.to_owned(), format!("{LINK}/{SOCKET}")]),
        // Not the image's own, which would follow the entrypoint.
        cmd: Some(Vec::new()),
        hostname: Some("function".to_owned()),
        user: Some(format!("{uid}:{uid}")),
        working_dir: Some("/".to_owned()),
        attach_stdin: Some(false),
        attach_stdout: Some(false),
        attach_stderr: Some(false),
        open_stdin: Some(false),
        tty: Some(false),
        labels: Some(labels),
        host_config: Some(host_config(blueprint)),
        ..ContainerCreateBody::default()
    }
}

fn host_config(blueprint: &Blueprint) -> HostConfig {
    let limits = blueprint.limits;
    let memory = mib(limits.memory_mb);
    let runner = Bind { source: blueprint.runner.clone(), target: RUNNER, reach: Reach::Read };
    let link = Bind { source: blueprint.link.clone(), target: LINK, reach: Reach::Read };
    HostConfig {
        cap_drop: Some(vec!["ALL".to_owned()]),
        security_opt: Some(vec!["no-new-privileges".to_owned(), format!("seccomp={SECCOMP}")]),
        privileged: Some(false),
        readonly_rootfs: Some(true),
        // `none` has a loopback and a hosts file, which Docker's own `NetworkDisabled` has not.
        network_mode: Some(blueprint.network.clone().unwrap_or_else(|| "none".to_owned())),
        publish_all_ports: Some(false),
        ipc_mode: Some("private".to_owned()),
        cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
        memory: Some(memory),
        // The sum of memory and swap, so: no swap.
        memory_swap: Some(memory),
        nano_cpus: Some((limits.cpus * 1e9) as i64),
        pids_limit: Some(i64::from(limits.pids)),
        oom_score_adj: Some(OOM_SCORE),
        ulimits: Some(vec![
            ulimit("nofile", OPEN_FILES),
            ulimit("fsize", mib(limits.file_mb)),
            // A dump would be a file of the host's.
            ulimit("core", 0),
        ]),
        tmpfs: Some(HashMap::from([(
            "/tmp".to_owned(),
            format!("rw,nosuid,nodev,exec,mode=1777,size={},nr_inodes={TMP_FILES}", mib(limits.tmp_mb)),
        )])),
        shm_size: Some(SHARED_MEMORY_BYTES),
        mounts: Some([runner, link].iter().chain(&blueprint.mounts).map(mount).collect()),
        // What a function prints never passes through Docker, whose logs can stop a container that prints.
        log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
        // The runner reaps.
        init: Some(false),
        restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
        // The agent removes what it made, so that it knows when the memory is free again.
        auto_remove: Some(false),
        ..HostConfig::default()
    }
}

fn mount(bind: &Bind) -> Mount {
    let propagation = match bind.reach {
        Reach::Later => MountBindOptionsPropagationEnum::RSLAVE,
        Reach::Read | Reach::Write => MountBindOptionsPropagationEnum::RPRIVATE,
    };
    Mount {
        typ: Some(MountType::BIND),
        source: Some(bind.source.display().to_string()),
        target: Some(bind.target.to_owned()),
        read_only: Some(bind.reach != Reach::Write),
        bind_options: Some(MountBindOptions { propagation: Some(propagation), ..MountBindOptions::default() }),
        ..Mount::default()
    }
}

fn ulimit(name: &str, value: i64) -> ResourcesUlimits {
    ResourcesUlimits { name: Some(name.to_owned()), soft: Some(value), hard: Some(value) }
}

fn mib(count: u32) -> i64 {
    i64::from(count) * 1024 * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blueprint() -> Blueprint {
        Blueprint {
            node: NodeId::new(),
            sandbox: SandboxId::new(),
            image: "sha256:1".into(),
            uid: 2_000_001,
            limits: Limits { memory_mb: 128, cpus: 0.5, pids: 64, tmp_mb: 16, file_mb: 32 },
            network: None,
            runner: "/opt/runner".into(),
            link: "/data/s/link".into(),
            mounts: vec![
                Bind { source: "/data/s/function".into(), target: FUNCTION, reach: Reach::Later },
                Bind { source: "/data/s/result".into(), target: RESULT, reach: Reach::Write },
            ],
        }
    }

    #[test]
    fn every_setting() {
        let blueprint = blueprint();
        let made = serde_json::to_value(container(&blueprint)).unwrap();
        let bind = |source: &str, target: &str, read_only: bool, propagation: &str| {
            serde_json::json!({
                "Type": "bind", "Source": source, "Target": target, "ReadOnly": read_only,
                "BindOptions": {"Propagation": propagation},
            })
        };
        let expected = serde_json::json!({
            "Image": "sha256:1",
            "Entrypoint": ["/run/dartcloud-runner", "/run/dartcloud/agent.sock"],
            "Cmd": [],
            "Hostname": "function",
            "User": "2000001:2000001",
            "WorkingDir": "/",
            "AttachStdin": false, "AttachStdout": false, "AttachStderr": false, "OpenStdin": false, "Tty": false,
            "Labels": {
                "dartcloud.node": blueprint.node.to_string(),
                "dartcloud.sandbox": blueprint.sandbox.to_string(),
            },
            "HostConfig": {
                "CapDrop": ["ALL"],
                "SecurityOpt": ["no-new-privileges", format!("seccomp={SECCOMP}")],
                "Privileged": false,
                "ReadonlyRootfs": true,
                "NetworkMode": "none",
                "PublishAllPorts": false,
                "IpcMode": "private",
                "CgroupnsMode": "private",
                "Memory": 134_217_728, "MemorySwap": 134_217_728,
                "NanoCpus": 500_000_000,
                "PidsLimit": 64,
                "OomScoreAdj": 500,
                "Ulimits": [
                    {"Name": "nofile", "Soft": 4096, "Hard": 4096},
                    {"Name": "fsize", "Soft": 33_554_432, "Hard": 33_554_432},
                    {"Name": "core", "Soft": 0, "Hard": 0},
                ],
                "Tmpfs": {"/tmp": "rw,nosuid,nodev,exec,mode=1777,size=16777216,nr_inodes=16384"},
                "ShmSize": 16_777_216,
                "Mounts": [
                    bind("/opt/runner", "/run/dartcloud-runner", true, "rprivate"),
                    bind("/data/s/link", "/run/dartcloud", true, "rprivate"),
                    bind("/data/s/function", "/function", true, "rslave"),
                    bind("/data/s/result", "/result.json", false, "rprivate"),
                ],
                "LogConfig": {"Type": "none"},
                "Init": false,
                "RestartPolicy": {"Name": "no"},
                "AutoRemove": false,
            },
        });
        assert_eq!(made, expected, "{made:#}");
    }

    #[test]
    fn the_spare_lies_beside_the_socket() {
        assert_eq!(SPARE_PATH, format!("{LINK}/{SPARE}"));
    }

    #[test]
    fn a_network_only_where_granted() {
        let made = container(&Blueprint { network: Some("bridge".into()), ..blueprint() });
        assert_eq!(made.host_config.unwrap().network_mode.as_deref(), Some("bridge"));
    }

    #[test]
    fn never_a_user_of_the_machine() {
        let made = container(&Blueprint { uid: 0, ..blueprint() });
        assert_eq!(made.user.as_deref(), Some("65534:65534"));
    }

    #[test]
    fn no_system_call_that_leads_out() {
        let profile: serde_json::Value = serde_json::from_str(SECCOMP).unwrap();
        assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
        let mut allowed = Vec::new();
        for rule in profile["syscalls"].as_array().unwrap() {
            if rule["action"] == "SCMP_ACT_ALLOW" && rule["args"].is_null() {
                allowed.extend(rule["names"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()));
            }
        }
        for refused in [
            "io_uring_setup",
            "io_uring_enter",
            "io_uring_register",
            "io_setup",
            "ptrace",
            "process_vm_readv",
            "process_vm_writev",
            "pidfd_getfd",
            "process_madvise",
            "kcmp",
            "bpf",
            "userfaultfd",
            "perf_event_open",
            "keyctl",
            "add_key",
            "request_key",
            "mount",
            "umount2",
            "fsopen",
            "fsmount",
            "move_mount",
            "open_tree",
            "mount_setattr",
            "pivot_root",
            "chroot",
            "unshare",
            "setns",
            "clone",
            "clone3",
            "socket",
            "socketpair",
            "socketcall",
            "open_by_handle_at",
            "name_to_handle_at",
            "fanotify_init",
            "init_module",
            "finit_module",
            "kexec_load",
            "reboot",
            "syslog",
            "acct",
            "swapon",
            "settimeofday",
            "clock_settime",
            "iopl",
            "ioperm",
            "prlimit64",
            "personality",
            "modify_ldt",
            "vhangup",
            "quotactl",
            "lookup_dcookie",
            "mbind",
            "move_pages",
            // What they make outlives processes, and so the call.
            "shmget",
            "semget",
            "msgget",
        ] {
            assert!(!allowed.contains(&refused), "{refused} is allowed");
        }
        assert!(allowed.contains(&"execve"));
    }
}
