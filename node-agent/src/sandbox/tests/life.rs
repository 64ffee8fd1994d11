//! How sandboxes come and go.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn waiting_calls_share_one_start() {
    on_node(
        |_| {},
        async |node| {
            let mut function = node.function("native");
            function.0.limits.concurrency = 1;
            let (first, second) = tokio::join!(async { node.call(&function, "echo 1").await }, async {
                node.call(&function, "echo 2").await
            },);
            assert_eq!((text(&first.stdout), text(&second.stdout)), ("1\n", "2\n"));
            assert_eq!(node.metric("dartcloud_sandbox_starts_total"), 1.0);
            assert_eq!(node.sandboxes.counts().warm, [function.0.deployment]);
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_calls_never_exceed_the_concurrency() {
    on_node(
        |_| {},
        async |node| {
            let mut function = node.function("native");
            function.0.limits.concurrency = 2;
            let calls = (0..12).map(|_| node.call(&function, "sleep 0.1; echo done"));
            for exit in futures_util::future::join_all(calls).await {
                assert_eq!(text(&exit.stdout), "done\n");
            }
            assert!(node.containers().await.len() <= 2);
            assert_eq!(node.sandboxes.counts().busy, 0);
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_retired_leave_no_trace() {
    on_node(
        |_| {},
        async |node| {
            let (idle, busy) = (node.function("native"), node.function("python"));
            node.call(&idle, "true").await;
            let mut lease = node.lease(&busy).await.unwrap();
            node.sandboxes.retire(idle.0.deployment);
            node.sandboxes.retire(busy.0.deployment);
            node.settles_at(1).await;
            // What is under way is finished first.
            assert_eq!(lease.invoke(b"print(1)", RESULT_CAP).await.unwrap().stdout, b"1\n");
            drop(lease);
            node.settles_at(0).await;
            let since = Instant::now();
            while node.sandboxes.counts().memory_used_mb > 0 {
                assert!(since.elapsed() < PATIENCE);
                tokio::task::yield_now().await;
            }
            assert_eq!(std::fs::read_dir(node.directory.path().join("data/sandboxes")).unwrap().count(), 0);
            assert_eq!(Arc::strong_count(&idle.1), 1, "the build is still held");
            // A later call is not wrong, only cold.
            assert_eq!(node.call(&idle, "true").await.how, How::Exited(0));
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_the_memory_budget_the_idle_make_room() {
    on_node(
        |args| args.sandbox_memory_mb = Some(150),
        async |node| {
            let functions = [node.function("native"), node.function("native"), node.function("native")];
            for function in &functions {
                assert_eq!(node.call(function, "true").await.how, How::Exited(0));
                assert!(node.sandboxes.counts().memory_used_mb <= 150);
            }
            let warm = node.sandboxes.counts().warm;
            assert!(!warm.contains(&functions[0].0.deployment) && warm.contains(&functions[2].0.deployment));
            assert_eq!(node.metric("dartcloud_sandbox_evictions_total"), 1.0);
            let mut large = node.function("native");
            large.0.limits.memory_mb = 151;
            let error = node.lease(&large).await.unwrap_err();
            assert!(matches!(error, LeaseError::TooLarge { .. }), "{error}");
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_memory_gets_it_when_it_is_free() {
    on_node(
        |args| args.sandbox_memory_mb = Some(64),
        async |node| {
            let (first, second) = (node.function("native"), node.function("native"));
            let lease = node.lease(&first).await.unwrap();
            let (served, ()) = tokio::join!(node.call(&second, "echo served"), async {
                // The other call waits by now, or will find the memory free.
                tokio::task::yield_now().await;
                drop(lease);
            });
            assert_eq!(text(&served.stdout), "served\n");
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_has_an_end() {
    let adjust = |args: &mut SandboxArgs| {
        args.sandbox_start_seconds = 1;
        args.sandbox_memory_mb = Some(64);
        args.sandbox_queue = 1;
    };
    on_node(adjust, async |node| {
        let (first, second) = (node.function("native"), node.function("native"));
        let lease = loop {
            // A start may take longer than this test's calls may wait.
            if let Ok(lease) = node.lease(&first).await {
                break lease;
            }
        };
        let (waited, refused) = tokio::join!(node.lease(&second), node.lease(&second));
        assert!(matches!(waited, Err(LeaseError::TimedOut(_))), "{waited:?}");
        assert!(matches!(refused, Err(LeaseError::QueueFull(1))), "{refused:?}");
        drop(lease);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_fails_tells_all_who_wait() {
    on_node(
        |_| {},
        async |node| {
            let (spec, _) = node.function("native");
            let nowhere: Build = Arc::new(node.directory.path().join("no-such-build"));
            let function = (spec, nowhere);
            let (first, second) = tokio::join!(node.lease(&function), node.lease(&function));
            for refused in [first, second] {
                let error = refused.unwrap_err().to_string();
                assert!(error.contains("no-such-build"), "{error}");
            }
            assert_eq!(
                node.sandboxes.counts(),
                Counts { memory_total_mb: node.sandboxes.total_mb, ..Counts::default() }
            );
            let mut unknown = node.function("native");
            unknown.0.runtime = "cobol".parse().unwrap();
            assert!(matches!(node.lease(&unknown).await, Err(LeaseError::UnknownRuntime(_))));
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_idle_are_removed_in_time() {
    on_node(
        |args| args.sandbox_idle_seconds = 1,
        async |node| {
            let function = node.function("native");
            node.call(&function, "true").await;
            node.settles_at(0).await;
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_life_left_is_removed() {
    on_node(
        |_| {},
        async |node| {
            let function = node.function("native");
            node.call(&function, "true").await;
            assert_eq!(node.containers().await.len(), 1);
            // The same node starts again while the container and the mounts of its first life are still there.
            let (registry, data) = (Registry::new(), node.directory.path().join("data"));
            let runtimes = Arc::new(Runtimes::load(None).unwrap());
            let again = Sandboxes::open(&node.args, node.id, &data, runtimes, &registry).await.unwrap();
            assert_eq!(node.containers().await, [""; 0]);
            assert_eq!(std::fs::read_dir(data.join("sandboxes")).unwrap().count(), 0);
            assert!(function.1.as_ref().as_ref().join("main").exists(), "the build itself stays");
            let spec = Arc::new(function.0.clone());
            let mut lease = again.lease(&spec, Arc::clone(&function.1)).await.unwrap();
            assert_eq!(lease.invoke(b"true", RESULT_CAP).await.unwrap().how, How::Exited(0));
            drop(lease);
            again.close().await;
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_the_engine_made_too_late_is_removed() {
    on_node(
        |_| {},
        async |node| {
            let engine = &node.sandboxes.site.engine;
            let image = engine.image(&["debian:bookworm-slim".into(), "local/debian:bookworm".into()]).await.unwrap();
            let sandbox = common::ids::SandboxId::new();
            let labels = [(spec::NODE_LABEL, node.id.to_string()), (spec::SANDBOX_LABEL, sandbox.to_string())];
            let container = bollard::models::ContainerCreateBody {
                image: Some(image.id),
                cmd: Some(vec!["sleep".into(), "600".into()]),
                labels: Some(labels.map(|(name, value)| (name.to_owned(), value)).into()),
                ..Default::default()
            };
            engine.start(&format!("dartcloud-{sandbox}"), container).await.unwrap();
            assert_eq!(node.containers().await.len(), 1);
            node.sandboxes.site.age();
            node.settles_at(0).await;
        },
    )
    .await;
}
