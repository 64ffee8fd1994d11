//! Builds, in their own sandboxes.

use super::*;

/// Runs a shell script as a build; tells how it ended, what it printed, and where it worked.
async fn build(node: &Node, script: &str, network: bool) -> (BuildExit, Vec<String>, PathBuf) {
    let work = node.directory.path().join(format!("work-{}", common::ids::SandboxId::new()));
    std::fs::create_dir_all(work.join("src")).unwrap();
    std::fs::write(work.join("src/input"), "input\n").unwrap();
    let (exit, lines) = run(node, script, network, &work).await;
    (exit, lines, work)
}

async fn run(node: &Node, script: &str, network: bool, work: &Path) -> (BuildExit, Vec<String>) {
    let job = BuildJob {
        images: vec!["local/none:1".into(), "debian:bookworm-slim".into(), "local/debian:bookworm".into()],
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        env: [("MODE".to_owned(), "test".to_owned())].into(),
        network,
        work: work.to_path_buf(),
    };
    let (sender, mut receiver) = tokio::sync::mpsc::channel(8);
    let reader = async {
        let mut lines = Vec::new();
        while let Some(line) = receiver.recv().await {
            lines.push(line);
        }
        lines
    };
    let (exit, lines) = tokio::join!(node.sandboxes.build(job, sender), reader);
    (exit.unwrap(), lines)
}

async fn check(node: &Node, script: &str, exit: BuildExit, lines: &[&str]) {
    let (ended, printed, _) = build(node, script, false).await;
    assert_eq!((ended, printed), (exit, lines.iter().map(|&line| line.to_owned()).collect()), "{script}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_reads_writes_and_is_heard() {
    on_node(
        |_| {},
        async |node| {
            let script =
                "pwd; cat src/input; echo $MODE; mkdir out; echo made > out/result; echo oh >&2; ls /sys/class/net";
            let (exit, lines, work) = build(node, script, false).await;
            assert_eq!(
                (exit, lines),
                (BuildExit::Exited(0), ["/build", "input", "test", "oh", "lo"].map(str::to_owned).to_vec())
            );
            assert_eq!(std::fs::read_to_string(work.join("out/result")).unwrap(), "made\n");
            assert_eq!(exit.failure(&node.args.build), None);
            check(node, "echo before; exit 7", BuildExit::Exited(7), &["before"]).await;
            check(node, "env | grep -i -e cert -e secret -e token", BuildExit::Exited(1), &[]).await;
            check(
                node,
                "echo x > /etc/x || echo refused",
                BuildExit::Exited(0),
                &["sh: 1: cannot create /etc/x: Read-only file system", "refused"],
            )
            .await;
            assert!(node.containers().await.is_empty());
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_has_limits() {
    let adjust = |args: &mut SandboxArgs| {
        args.build.build_timeout_seconds = 6;
        args.build.build_memory_mb = 64;
        args.build.build_disk_mb = 16;
        args.build.build_output_kb = 1;
    };
    on_node(adjust, async |node| {
        let (exit, lines, _) = build(node, "yes | head -n 1000000", false).await;
        assert_eq!(exit, BuildExit::Exited(0));
        assert_eq!((lines.len(), lines.last().unwrap().as_str()), (513, "[the build printed more than is kept]"));
        check(node, "while true; do sleep 1; done", BuildExit::TimedOut, &[]).await;
        check(node, "head -c 200M /dev/zero | tail", BuildExit::OutOfMemory, &["Killed"]).await;
        let script = "for i in 1 2 3 4; do head -c 8M /dev/zero > $i; done; sleep 60";
        let (exit, ..) = build(node, script, false).await;
        assert_eq!(exit, BuildExit::DiskFull);
        assert_eq!(exit.failure(&node.args.build).unwrap(), "the build wrote more than 16 MiB");
        let script = "for i in $(seq 300); do mkdir d; cd -P d; done; sleep 60";
        assert_eq!(build(node, script, false).await.0, BuildExit::TooManyFiles);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_of_its_own_bounds_what_no_measure_sees() {
    let adjust = |args: &mut SandboxArgs| args.build.build_disk_mb = 16;
    on_node(adjust, async |node| {
        let builds = node.directory.path().join("builds");
        let work = builds.join("disk-work");
        std::fs::create_dir_all(&work).unwrap();
        std::fs::write(work.join("input"), "input\n").unwrap();
        let disk = node.sandboxes.disk(&work).await.expect("this machine has mke2fs and loop devices");
        let script = "cat input\n\
            for i in 3 4 5 6 7 8 9; do eval \"exec $i>gone\"; rm gone; head -c 8M /dev/zero >&$i || echo full; done; true";
        let (exit, lines) = run(node, script, false, &work).await;
        assert_eq!((exit, lines[0].as_str()), (BuildExit::Exited(0), "input"), "{lines:?}");
        assert!(lines.iter().any(|line| line == "full"), "{lines:?}");
        assert_eq!(std::fs::read_dir(&work).unwrap().count(), 1);
        drop(disk);
        assert!(!work.with_extension("disk").exists());
        // As a crash would leave it, on a disk of the operator's own.
        rustix::mount::mount_bind(&builds, &builds).unwrap();
        std::mem::forget(node.sandboxes.disk(&work).await.unwrap());
        release(&builds).unwrap();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        rustix::mount::unmount(&builds, rustix::mount::UnmountFlags::DETACH).unwrap();
        let mounted = |path: &Path| mounts.lines().any(|line| line.split(' ').nth(4) == path.to_str());
        assert!(mounted(&builds) && !mounted(&work), "{mounts}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_with_a_network_knows_the_operators_settings() {
    let authorities = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(authorities.path(), "authorities\n").unwrap();
    std::fs::set_permissions(authorities.path(), std::fs::Permissions::from_mode(0o644)).unwrap();
    let adjust = |args: &mut SandboxArgs| {
        args.build.build_ca_file = authorities.path().to_path_buf();
        args.build.build_env = vec![("PIP_INDEX_URL".into(), "https://example.test/simple".into())];
    };
    on_node(adjust, async |node| {
        let script = "cat $PIP_CERT $NODE_EXTRA_CA_CERTS; echo $PIP_INDEX_URL; ls /sys/class/net";
        let (exit, lines, _) = build(node, script, true).await;
        let expected = ["authorities", "authorities", "https://example.test/simple", "eth0", "lo"];
        assert_eq!((exit, lines), (BuildExit::Exited(0), expected.map(str::to_owned).to_vec()));
        // Without a network it has no use for them.
        let (_, lines, _) = build(node, "echo [$PIP_CERT$PIP_INDEX_URL]", false).await;
        assert_eq!(lines, ["[]"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_nobody_waits_for_ends() {
    on_node(
        |_| {},
        async |node| {
            let broken = tokio::time::timeout(Duration::from_secs(3), build(node, "sleep 200", false)).await;
            assert!(broken.is_err());
            node.settles_at(0).await;
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pruned_network_is_made_again() {
    on_node(
        |_| {},
        async |node| {
            for _ in 0..2 {
                let (exit, lines, _) = build(node, "ls /sys/class/net", true).await;
                assert_eq!((exit, lines), (BuildExit::Exited(0), ["eth0", "lo"].map(str::to_owned).to_vec()));
                node.sandboxes.site.engine.remove_networks(node.id).await.unwrap();
            }
        },
    )
    .await;
}
