//! That what rests is frozen, and that being frozen stands in nobody's way.

use super::*;

/// What a python server counts by itself, told to whoever connects.
const TICKS: &str = "
import os, socket, threading, time
ticks = 0
def tick():
    global ticks
    while True:
        ticks += 1
        time.sleep(0.001)
threading.Thread(target=tick, daemon=True).start()
listener = socket.create_server(('127.0.0.1', int(os.environ['PORT'])))
while True:
    connection, _ = listener.accept()
    connection.sendall(b'%d\\n' % ticks)
    connection.close()
";

/// Whether the kernel lets nothing of the process's group run.
fn stands_still(pid: u32) -> bool {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = |name: &str| {
        let line = groups.lines().find(|line| line.split(':').nth(1).is_some_and(|one| one == name));
        line.and_then(|line| line.splitn(3, ':').nth(2)).map(str::to_owned)
    };
    match path("freezer") {
        Some(path) => {
            std::fs::read_to_string(format!("/sys/fs/cgroup/freezer{path}/freezer.state")).unwrap() == "FROZEN\n"
        }
        None => {
            let events = format!("/sys/fs/cgroup{}/cgroup.events", path("").unwrap());
            std::fs::read_to_string(events).unwrap().contains("frozen 1")
        }
    }
}

impl Node {
    /// Waits until so many sandboxes are frozen.
    async fn freezes(&self, count: usize) {
        let since = Instant::now();
        while self.sandboxes.site.frost.frozen() != count {
            assert!(since.elapsed() < PATIENCE, "not {count} but {} are frozen", self.sandboxes.site.frost.frozen());
            tokio::task::yield_now().await;
        }
    }

    /// Waits until no process of any sandbox runs: the kernel stops one that is in the middle of something a moment
    /// later.
    async fn stands_still(&self) {
        let (pids, since) = (self.pids().await, Instant::now());
        while !pids.iter().copied().all(stands_still) {
            assert!(since.elapsed() < PATIENCE, "something runs on");
            tokio::task::yield_now().await;
        }
    }

    /// The first processes of the node's containers.
    async fn pids(&self) -> Vec<u32> {
        let mut pids = Vec::new();
        for container in self.containers().await {
            pids.extend(self.sandboxes.site.engine.pid(&container).await.unwrap());
        }
        pids
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_idle_are_frozen_and_a_call_thaws_them() {
    on_node(
        |args| args.sandbox_freeze_after_ms = 20,
        async |node| {
            let function = node.function("python");
            for round in 1..=3 {
                assert_eq!(node.call(&function, "print('ran')").await.stdout, b"ran\n");
                node.freezes(1).await;
                node.stands_still().await;
                assert!(node.metric("dartcloud_sandbox_freezes_total") >= f64::from(round));
            }
            assert_eq!(node.metric("dartcloud_sandbox_starts_total"), 1.0);
            node.sandboxes.retire(function.0.deployment);
            node.settles_at(0).await;
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_one_and_a_blank_one_are_not_frozen() {
    let adjust = |args: &mut SandboxArgs| {
        args.sandbox_freeze_after_ms = 20;
        args.sandbox_blanks = 1;
    };
    on_node(adjust, async |node| {
        let function = node.function("native");
        let exit = node.call(&function, "sleep 0.5; echo ran").await;
        assert_eq!(text(&exit.stdout), "ran\n");
        node.freezes(1).await;
        // It is counted a moment after it is so.
        let since = Instant::now();
        while node.metric("dartcloud_sandbox_freezes_total") < 1.0 {
            assert!(since.elapsed() < PATIENCE, "no freeze is counted");
            tokio::task::yield_now().await;
        }
        assert_eq!(node.metric("dartcloud_sandbox_freezes_total"), 1.0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_stands_still_between_its_calls() {
    on_node(
        |args| args.sandbox_freeze_after_ms = 20,
        async |node| {
            let mut serving = node.lease(&super::serving::server(node, TICKS)).await.unwrap().serve().await.unwrap();
            let ice = serving.ice().unwrap();
            let first = super::serving::heard(&mut serving).await;
            ice.rest(Keeps::Server);
            node.freezes(1).await;
            node.stands_still().await;
            let frozen = Instant::now();
            while frozen.elapsed() < Duration::from_secs(2) {
                tokio::task::yield_now().await;
            }
            ice.wake();
            let second = super::serving::heard(&mut serving).await;
            assert!(second > first && second - first < 1000, "{first} {second}");
            // And what is frozen can be ended.
            ice.rest(Keeps::Server);
            node.freezes(1).await;
            drop(serving);
            node.settles_at(0).await;
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_has_workers_is_not_frozen() {
    on_node(
        |args| args.sandbox_freeze_after_ms = 20,
        async |node| {
            let program = format!("import os, time\nif os.fork() == 0:\n    time.sleep(600)\n{TICKS}");
            let mut serving = node.lease(&super::serving::server(node, &program)).await.unwrap().serve().await.unwrap();
            let first = super::serving::heard(&mut serving).await;
            serving.ice().unwrap().rest(Keeps::Server);
            let function = node.function("native");
            node.call(&function, "true").await;
            // That one rested later, and is frozen by now.
            node.freezes(1).await;
            assert!(super::serving::heard(&mut serving).await > first);
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_life_froze_is_removed() {
    on_node(
        |args| args.sandbox_freeze_after_ms = 20,
        async |node| {
            let functions = [node.function("native"), node.function("python")];
            for function in &functions {
                node.call(function, "").await;
            }
            node.freezes(2).await;
            let runtimes = Arc::new(Runtimes::load(None).unwrap());
            let data = node.directory.path().join("data");
            let again = Sandboxes::open(&node.args, node.id, &data, runtimes, &Registry::new()).await.unwrap();
            assert_eq!(node.containers().await, [""; 0]);
            again.close().await;
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_frozen_where_it_is_not_wanted() {
    on_node(
        |args| args.sandbox_freeze_after_ms = 0,
        async |node| {
            let function = node.function("native");
            assert_eq!(node.call(&function, "echo ran").await.stdout, b"ran\n");
            assert_eq!(node.sandboxes.site.frost.frozen(), 0);
            assert!(!node.pids().await.into_iter().any(stands_still));
        },
    )
    .await;
}
