//! What a function cannot do, tried from inside.

use super::*;

/// A shell program that must fail, or print what is expected of it.
async fn check(lease: &mut Lease, program: &str, expected: Option<&str>) {
    let exit = lease.invoke(program.as_bytes(), RESULT_CAP).await.unwrap();
    match expected {
        None => assert!(!matches!(exit.how, How::Exited(0)), "{program} succeeded: {}", text(&exit.stdout)),
        Some(expected) => assert_eq!(text(&exit.stdout), expected, "{program}: {}", text(&exit.stderr)),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_processes_and_networks_out_of_reach() {
    on_node(
        |_| {},
        async |node| {
            let function = node.function("native");
            let lease = &mut node.lease(&function).await.unwrap();
            check(lease, "echo x > /function/x", None).await;
            check(lease, "echo x >> /function/main", None).await;
            check(lease, "echo x > /x", None).await;
            check(lease, "echo x > /etc/x", None).await;
            check(lease, "echo x >> /request.json", None).await;
            check(lease, "echo x >> /.env.config", None).await;
            check(lease, "rm /result.json", None).await;
            check(lease, "chmod 0 /result.json", None).await;
            check(lease, "umount /function", None).await;
            check(lease, "ls -A /run/dartcloud", Some("")).await;
            check(lease, "ls /var/run/docker.sock", None).await;
            // The runner: no signal ends it, and neither its memory nor its descriptors open.
            check(lease, "kill -9 1; kill -STOP 1; kill -TERM 1; echo alive", Some("alive\n")).await;
            check(lease, "head -c 1 /proc/1/mem", None).await;
            check(lease, "ls /proc/1/fd", None).await;
            check(lease, "cat /proc/1/environ", None).await;
            check(lease, "cat /proc/1/maps", None).await;
            check(lease, "prlimit --pid 1 --nofile=1:1", None).await;
            check(lease, "ls /sys/class/net", Some("lo\n")).await;
            check(lease, "ls -l /proc/self/fd | wc -l", Some("5\n")).await;
            check(
                lease,
                "grep -E '^(CapEff|CapPrm|CapBnd|CapAmb)' /proc/self/status | cut -f 2 | sort -u",
                Some("0000000000000000\n"),
            )
            .await;
            check(lease, "grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status | cut -f 2", Some("1\n2\n")).await;
            check(
                lease,
                "grep ' /function ' /proc/self/mountinfo | tail -n 1 | cut -d ' ' -f 6",
                Some("ro,nosuid,nodev,relatime\n"),
            )
            .await;
            check(lease, "grep ' /tmp ' /proc/self/mountinfo | cut -d ' ' -f 6", Some("rw,nosuid,nodev,relatime\n"))
                .await;
            check(lease, "ulimit -n; ulimit -c", Some("4096\n0\n")).await;
            check(lease, "head -c 100M /dev/zero > /tmp/x", None).await;
        },
    )
    .await;
}

/// Tries what leads out of a sandbox, by number, and prints how each attempt ended.
const ATTEMPTS: &str = r"
import ctypes, errno, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(name, number, *args):
    ctypes.set_errno(0)
    result = libc.syscall(number, *[ctypes.c_ulong(a) for a in args])
    print(name, 'allowed' if result != -1 else errno.errorcode[ctypes.get_errno()])
def sock(name, *args):
    try:
        socket.socket(*args)
        print(name, 'allowed')
    except OSError as error:
        print(name, errno.errorcode[error.errno])
call('io_uring_setup', 425, 1, 0)
call('io_setup', 206, 1, 0)
call('ptrace', 101, 0, 0, 0, 0)
call('process_vm_readv', 310, os.getpid(), 0, 0, 0, 0, 0)
call('unshare', 272, 0x10000000)
call('setns', 308, 0, 0)
call('clone_newuser', 56, 0x10000000 | 17, 0, 0, 0, 0)
call('clone3', 435, 0, 0)
call('fallocate', 285, 1, 0, 0, 1)
call('mount', 165, 0, 0, 0, 0, 0)
call('fsopen', 430, 0, 0)
call('bpf', 321, 0, 0, 0)
call('userfaultfd', 323, 0)
call('keyctl', 250, 0, 0, 0, 0, 0)
call('perf_event_open', 298, 0, 0, 0, 0, 0)
call('pidfd_getfd', 438, 0, 0, 0)
call('prlimit_other', 302, 1, 7, 0, 0)
call('open_by_handle_at', 304, 0, 0, 0)
sock('AF_ALG', 38, socket.SOCK_SEQPACKET, 0)
sock('AF_VSOCK', 40, socket.SOCK_STREAM, 0)
sock('AF_PACKET', 17, socket.SOCK_RAW, 0)
sock('netfilter', 16, socket.SOCK_RAW, 12)
sock('AF_INET', 2, socket.SOCK_STREAM, 0)
sock('route', 16, socket.SOCK_RAW, 0)
";

#[tokio::test(flavor = "multi_thread")]
async fn system_calls_that_lead_out_are_refused() {
    on_node(
        |_| {},
        async |node| {
            let function = node.function("python");
            let exit = node.call(&function, ATTEMPTS).await;
            let expected: String = [
                "io_uring_setup",
                "io_setup ENOSYS",
                "ptrace",
                "process_vm_readv",
                "unshare",
                "setns",
                "clone_newuser",
                "clone3 ENOSYS",
                "fallocate ENOTSUP",
                "mount",
                "fsopen",
                "bpf",
                "userfaultfd",
                "keyctl",
                "perf_event_open",
                "pidfd_getfd",
                "prlimit_other",
                "open_by_handle_at",
                "AF_ALG",
                "AF_VSOCK",
                "AF_PACKET",
                "netfilter",
                "AF_INET allowed",
                "route allowed",
            ]
            .map(|line| if line.contains(' ') { format!("{line}\n") } else { format!("{line} EPERM\n") })
            .concat();
            assert_eq!(text(&exit.stdout), expected, "{}", text(&exit.stderr));
        },
    )
    .await;
}

/// Fills the buffers of connections that nobody reads, and prints whether they took less than 100 MiB together.
const BUFFERS: &str = r"
import socket
server = socket.create_server(('127.0.0.1', 0))
server.settimeout(1)
held, sent = [], 0
try:
    for _ in range(200):
        client = socket.create_connection(server.getsockname(), 1)
        held += [client, server.accept()[0]]
        client.setblocking(False)
        try:
            while True:
                sent += client.send(b'x' * 65536)
        except BlockingIOError:
            pass
except OSError:
    pass
print(sent < 100 << 20, flush=True)
";

#[tokio::test(flavor = "multi_thread")]
async fn the_kernels_memory_for_connections_is_limited_too() {
    on_node(
        |_| {},
        async |node| {
            let exit = node.call(&node.function("python"), BUFFERS).await;
            // Where it counts as the sandbox's memory, the kernel may have killed for it.
            let expected = if exit.how == How::OutOfMemory { "" } else { "True\n" };
            assert_eq!(text(&exit.stdout), expected, "{}", text(&exit.stderr));
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn languages_run_behind_these_walls() {
    on_node(
        |_| {},
        async |node| {
            let mut python = node.function("python");
            python.0.limits.memory_mb = 128;
            let program = "import threading, subprocess, socket, json, asyncio\n\
            t = threading.Thread(target=print, args=('thread',)); t.start(); t.join()\n\
            print(subprocess.check_output(['echo', 'child']).decode(), end='', flush=True)\n\
            asyncio.run(asyncio.create_subprocess_exec('echo', 'async'))\n\
            socket.getaddrinfo('localhost', 80)\n\
            json.dump({'body': 'ok'}, open('/result.json', 'w'))";
            let exit = node.call(&python, program).await;
            assert_eq!(
                (exit.how, text(&exit.stdout)),
                (How::Exited(0), "thread\nchild\nasync\n"),
                "{}",
                text(&exit.stderr)
            );
            assert_eq!(exit.result, ResultFile::Bytes(b"{\"body\": \"ok\"}".to_vec()));

            let path = node.directory.path().join("node");
            std::fs::create_dir(&path).unwrap();
            std::fs::write(
                path.join("index.js"),
                "require('fs').promises.readFile('/request.json', 'utf8').then((code) => new Function('require', code)(require))",
            )
            .unwrap();
            let mut spec = node.function("native").0;
            (spec.runtime, spec.entrypoint, spec.limits.memory_mb) = ("node".parse().unwrap(), "index.js".into(), 128);
            let program = "console.log(require('child_process').execSync('echo child').toString().trim());\
            new (require('worker_threads').Worker)('console.log(\"worker\")', {eval: true})";
            let exit = node.call(&(spec, Arc::new(path)), program).await;
            assert_eq!((exit.how, text(&exit.stdout)), (How::Exited(0), "child\nworker\n"), "{}", text(&exit.stderr));
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_is_there_only_with_egress_and_keeps_functions_apart() {
    on_node(
        |_| {},
        async |node| {
            let (mut server, mut client) = (node.function("python"), node.function("python"));
            (server.0.egress, client.0.egress) = (true, true);
            let mut serving = node.lease(&server).await.unwrap();
            let found = node.sandboxes.site.engine.inspect(&node.containers().await[0]).await;
            let networks = found.network_settings.unwrap().networks.unwrap();
            let address = networks.values().find_map(|network| network.ip_address.clone()).unwrap();
            let listen = "import socket; s = socket.create_server(('0.0.0.0', 8000)); s.settimeout(8)\n\
            try: s.accept(); print('reached')\n\
            except TimeoutError: print('alone')";
            let dial = format!(
                "import os, socket; print(sorted(os.listdir('/sys/class/net')))\n\
            try: socket.create_connection(('{address}', 8000), 3); print('reached')\n\
            except OSError: print('alone')"
            );
            let (served, dialled) =
                tokio::join!(serving.invoke(listen.as_bytes(), RESULT_CAP), node.call(&client, &dial));
            assert_eq!(text(&dialled.stdout), "['eth0', 'lo']\nalone\n", "{}", text(&dialled.stderr));
            assert_eq!(text(&served.unwrap().stdout), "alone\n");
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn this_machine_is_out_of_reach_unless_it_is_allowed() {
    let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let dial = format!(
        "import socket, struct\n\
        route = next(line.split() for line in open('/proc/net/route') if line.split()[1] == '00000000')\n\
        gateway = socket.inet_ntoa(struct.pack('<L', int(route[2], 16)))\n\
        try: socket.create_connection((gateway, {}), 2); print('reached')\n\
        except OSError as error: print(error)",
        listener.local_addr().unwrap().port()
    );
    let mut bridges = Vec::new();
    for (allowed, expected) in [(None, "timed out\n"), (Some("0.0.0.0/0"), "reached\n")] {
        let adjust =
            |args: &mut SandboxArgs| args.sandbox_network_allow = allowed.map(str::to_owned).into_iter().collect();
        on_node(adjust, async |node| {
            let mut function = node.function("python");
            function.0.egress = true;
            let exit = node.call(&function, &dial).await;
            assert_eq!(text(&exit.stdout), expected, "{}", text(&exit.stderr));
            // Something may flush the machine's rules; the next start renews them.
            let bridge = node.sandboxes.site.fence.bridge().to_owned();
            bridges.push(bridge.clone());
            let jump = ["-w", "-t", "mangle", "-D", "PREROUTING", "-i", &bridge, "-j", &bridge];
            assert!(std::process::Command::new("iptables").args(jump).status().unwrap().success());
            let mut other = node.function("python");
            other.0.egress = true;
            assert_eq!(text(&node.call(&other, &dial).await.stdout), expected);
        })
        .await;
    }
    let rules = std::process::Command::new("iptables-save").args(["-t", "mangle"]).output().unwrap();
    let rules = String::from_utf8(rules.stdout).unwrap();
    assert!(bridges.iter().all(|bridge| !rules.contains(bridge)), "{rules}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fence_is_put_up_again_though_nothing_starts() {
    on_node(
        |_| {},
        async |node| {
            let mut function = node.function("python");
            function.0.egress = true;
            node.call(&function, "print(1)").await;
            let bridge = node.sandboxes.site.fence.bridge();
            let jump = |action: &str| {
                let words = ["-w", "-t", "mangle", action, "PREROUTING", "-i", bridge, "-j", bridge];
                std::process::Command::new("iptables").args(words).output().unwrap().status.success()
            };
            assert!(jump("-D"));
            let since = Instant::now();
            while !jump("-C") {
                assert!(since.elapsed() < PATIENCE, "it stays down");
                tokio::task::yield_now().await;
            }
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_engine_made_what_was_asked() {
    on_node(
        |_| {},
        async |node| {
            let (first, second) = (node.function("native"), node.function("native"));
            let _leases = (node.lease(&first).await.unwrap(), node.lease(&second).await.unwrap());
            let mut users = Vec::new();
            for container in node.containers().await {
                let found = node.sandboxes.site.engine.inspect(&container).await;
                let (config, host) = (found.config.unwrap(), found.host_config.unwrap());
                users.push(config.user.unwrap());
                assert_eq!(host.cap_drop.unwrap(), ["ALL"]);
                assert!(host.cap_add.unwrap_or_default().is_empty() && host.privileged == Some(false));
                let security = host.security_opt.unwrap();
                assert!(security[0] == "no-new-privileges" && security[1].starts_with("seccomp={"), "{security:?}");
                assert_eq!((host.memory, host.memory_swap), (Some(64 << 20), Some(64 << 20)));
                assert_eq!((host.pids_limit, host.nano_cpus), (Some(128), Some(1_000_000_000)));
                assert_eq!((host.readonly_rootfs, host.network_mode.as_deref()), (Some(true), Some("none")));
                assert_eq!(host.log_config.unwrap().typ.as_deref(), Some("none"));
                assert!(host.binds.unwrap_or_default().is_empty() && host.devices.unwrap_or_default().is_empty());
                let targets: Vec<_> = host.mounts.unwrap().into_iter().filter_map(|mount| mount.target).collect();
                let expected = [
                    "/run/dartcloud-runner",
                    "/run/dartcloud",
                    "/function",
                    "/request.json",
                    "/.env.config",
                    "/result.json",
                ];
                assert_eq!(targets, expected);
                assert_eq!(config.labels.unwrap()["dartcloud.node"], node.id.to_string());
            }
            assert!(users.len() == 2 && users[0] != users[1], "{users:?}");
        },
    )
    .await;
}
