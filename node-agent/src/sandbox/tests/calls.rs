//! What comes of a call, whatever the function does in it.

use super::*;

/// Counts the processes of the sandbox: of those there are two, the runner and whoever counts.
const ALONE: &str = "set -- /proc/[0-9]*; echo $#";

/// One call in a warm sandbox: how it ends and what it prints.
async fn check(lease: &mut Lease, program: &str, how: How, stdout: &str) {
    let exit = lease.invoke(program.as_bytes(), RESULT_CAP).await.unwrap();
    assert_eq!((exit.how, text(&exit.stdout)), (how, stdout), "{program}: {}", text(&exit.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_is_a_fresh_process_in_a_clean_place() {
    on_node(|_| {}, async |node| {
        let function = node.function("native");
        let program = r#"echo "$GREETING"; pwd; id -u >&2; echo '{"body":1}' > /result.json; echo x > /tmp/x; echo y > /dev/shm/y"#;
        let mut lease = node.lease(&function).await.unwrap();
        assert!(lease.cold().is_some() && lease.queued() > Duration::ZERO);
        let exit = lease.invoke(program.as_bytes(), RESULT_CAP).await.unwrap();
        assert_eq!((exit.how, text(&exit.stdout)), (How::Exited(0), "hello\n/function\n"));
        assert!(text(&exit.stderr).trim().parse::<u32>().unwrap() >= 65_534);
        assert_eq!(exit.result, ResultFile::Bytes(b"{\"body\":1}\n".to_vec()));
        assert!(exit.peak_memory_bytes > 0 && exit.duration > Duration::ZERO && !exit.truncated);
        drop(lease);

        let mut lease = node.lease(&function).await.unwrap();
        assert_eq!((lease.cold(), lease.queued()), (None, Duration::ZERO));
        let program = "ls -A /tmp /dev/shm; wc -c < /result.json; set -- /proc/[0-9]*; echo $#";
        // Itself, its two helpers in a pipe, and the runner.
        check(&mut lease, program, How::Exited(0), "/dev/shm:\n\n/tmp:\n0\n2\n").await;
        check(&mut lease, "cat /.env.config", How::Exited(0), "FUNCTION_TIMEOUT_MS=10000\nFUNCTION_MEMORY_MB=64\nGREETING=hello\n").await;
        check(&mut lease, "env | sort | grep -v -e ^PWD -e ^SHLVL -e ^_", How::Exited(0),
            "GREETING=hello\nHOME=/tmp\nLANG=C.UTF-8\nPATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n").await;
        drop(lease);
        assert_eq!(node.containers().await.len(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_end_is_told_and_the_next_call_works() {
    on_node(
        |_| {},
        async |node| {
            let mut function = node.function("native");
            function.0.limits.timeout_ms = 1000;
            let lease = &mut node.lease(&function).await.unwrap();
            check(lease, "exit 3", How::Exited(3), "").await;
            check(lease, "kill -SEGV $$", How::Signaled(11), "").await;
            check(lease, "no-such-command", How::Exited(127), "").await;
            check(lease, "echo begun; sleep 60", How::TimedOut, "begun\n").await;
            check(lease, "trap '' TERM INT HUP; sleep 60 & sleep 60", How::TimedOut, "").await;
            // What it leaves running is killed, wherever it hid, and holds nobody up.
            check(lease, "sleep 60 & (setsid sleep 60 >/dev/null 2>&1 &); echo done", How::Exited(0), "done\n").await;
            check(lease, ALONE, How::Exited(0), "2\n").await;
            // As many processes as it may have, each of which wants more.
            let exit =
                lease.invoke(b"bomb() { bomb | bomb & }; bomb; while true; do bomb; done", RESULT_CAP).await.unwrap();
            assert!(matches!(exit.how, How::TimedOut | How::Exited(_)), "{:?}", exit.how);
            check(lease, ALONE, How::Exited(0), "2\n").await;

            let (spec, _) = function;
            let empty = node.directory.path().join("empty");
            std::fs::create_dir(&empty).unwrap();
            let spec = DeploymentSpec { deployment: DeploymentId::new(), ..spec };
            let exit = node.call(&(spec, Arc::new(empty)), "").await;
            assert!(matches!(&exit.how, How::SpawnFailed(reason) if reason.contains("No such file")), "{:?}", exit.how);
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn output_and_results_are_bounded() {
    on_node(
        |args| args.sandbox_output_kb = 4,
        async |node| {
            let function = node.function("native");
            let lease = &mut node.lease(&function).await.unwrap();
            let exit = lease.invoke(b"head -c 30000000 /dev/zero; echo end >&2", 10).await.unwrap();
            assert_eq!((exit.how, exit.stdout.len(), exit.truncated), (How::Exited(0), 4096, true));
            assert_eq!((text(&exit.stderr), exit.result), ("end\n", ResultFile::Empty));
            let result = |exit: Exit| (exit.how, exit.result);
            let exit = lease.invoke(b"printf 1234567890 > /result.json", 10).await.unwrap();
            assert_eq!(result(exit), (How::Exited(0), ResultFile::Bytes(b"1234567890".to_vec())));
            let exit = lease.invoke(b"printf 12345678901 > /result.json", 10).await.unwrap();
            assert_eq!(result(exit), (How::Exited(0), ResultFile::TooLarge));
            let exit = lease.invoke(b"truncate -s 60M /result.json", 10).await.unwrap();
            assert_eq!(result(exit), (How::Exited(0), ResultFile::TooLarge));
            // It fills its file system; the next request fits again.
            let exit = lease.invoke(b"cat /dev/zero > /result.json", 10).await.unwrap();
            assert_eq!(exit.result, ResultFile::TooLarge);
            assert_ne!(exit.how, How::Exited(0));
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn want_of_memory_is_told_from_a_crash() {
    on_node(
        |_| {},
        async |node| {
            let mut function = node.function("python");
            function.0.limits.memory_mb = 32;
            let exit = node.call(&function, "x = bytearray(200 << 20)").await;
            assert_eq!(exit.how, How::OutOfMemory, "{}", text(&exit.stderr));
            let exit = node.call(&function, "import os; os.kill(os.getpid(), 9)").await;
            assert_eq!(exit.how, How::Signaled(9));
            // What it writes to /tmp is its memory, too.
            let exit =
                node.call(&function, "f = open('/tmp/x', 'wb'); [f.write(bytes(1 << 20)) for _ in range(60)]").await;
            assert_eq!(exit.how, How::OutOfMemory, "{}", text(&exit.stderr));
            assert_eq!(node.call(&function, "print(1)").await.how, How::Exited(0));
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_broken_off_costs_the_sandbox() {
    on_node(
        |_| {},
        async |node| {
            let function = node.function("native");
            let mut lease = node.lease(&function).await.unwrap();
            assert_eq!(lease.invoke(b"true", RESULT_CAP).await.unwrap().how, How::Exited(0));
            let before = node.containers().await;
            let broken = tokio::time::timeout(Duration::from_millis(50), lease.invoke(b"sleep 60", RESULT_CAP)).await;
            assert!(broken.is_err());
            assert!(lease.invoke(b"true", RESULT_CAP).await.is_err());
            drop(lease);
            let exit = node.call(&function, ALONE).await;
            assert_eq!(text(&exit.stdout), "2\n");
            node.settles_at(1).await;
            assert_ne!(node.containers().await, before);
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_died_is_replaced() {
    on_node(
        |_| {},
        async |node| {
            let function = node.function("native");
            assert_eq!(node.call(&function, "true").await.how, How::Exited(0));
            for container in node.containers().await {
                node.sandboxes.site.engine.remove(&container).await.unwrap();
            }
            assert_eq!(node.call(&function, "true").await.how, How::Exited(0));
            // Under a call it is gone, and the call is told so.
            let mut lease = node.lease(&function).await.unwrap();
            let container = node.containers().await.remove(0);
            let (called, removed) =
                tokio::join!(lease.invoke(b"sleep 60", RESULT_CAP), node.sandboxes.site.engine.remove(&container));
            removed.unwrap();
            assert!(called.is_err(), "{called:?}");
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_stays_the_functions_until_it_is_taken() {
    on_node(
        |_| {},
        async |node| {
            let function = node.function("native");
            let program = "printf '{\"body\":1}' > /result.json";
            let mut lease = node.lease(&function).await.unwrap();
            let finished = lease.run(program.as_bytes()).await.unwrap();
            assert_eq!((finished.result_bytes(RESULT_CAP), finished.result_bytes(9)), (10, 0));
            let exit = lease.settle(finished, RESULT_CAP).unwrap();
            assert_eq!(exit.result, ResultFile::Bytes(b"{\"body\":1}".to_vec()));
            let finished = lease.run(program.as_bytes()).await.unwrap();
            assert_eq!(lease.settle(finished, 9).unwrap().result, ResultFile::TooLarge);
            check(&mut lease, "wc -c < /result.json", How::Exited(0), "0\n").await;
            // One that nobody took is nobody else's to find.
            drop(lease.run(program.as_bytes()).await.unwrap());
            drop(lease);
            assert_eq!(text(&node.call(&function, "wc -c < /result.json").await.stdout), "0\n");
            assert_eq!(node.metric("dartcloud_sandbox_starts_total"), 2.0);
        },
    )
    .await;
}
