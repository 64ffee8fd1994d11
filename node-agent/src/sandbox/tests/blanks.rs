//! Blank sandboxes, and the processes that are ready before their calls.

use super::*;

/// What a process can see of how it was started; only the last line may differ for one that was a spare.
const PYTHON: &str = "\
import json, os, sys
print(__name__, __file__, sys.argv, sys.path[0], os.getcwd(), os.environ.get('GREETING'), sys.stdin.read() == '')
print(sorted(name for name in globals() if name[:2] != '__'))
print([name for name in os.listdir('/proc/self/fd') if int(name) > 3])
print(open('/proc/self/cmdline').read().split('\\0')[:2])
";

/// Waits until a blank of each kind is ready.
async fn ready(node: &Node) {
    let since = Instant::now();
    while node.sandboxes.blanks.ready() < node.sandboxes.blanks.kinds() {
        assert!(since.elapsed() < PATIENCE, "{} blanks", node.sandboxes.blanks.ready());
        tokio::task::yield_now().await;
    }
}

/// A Python function whose file is `code`.
fn python(node: &Node, code: &str) -> (DeploymentSpec, Build) {
    let (spec, build) = node.function("python");
    std::fs::write((*build).as_ref().join("main.py"), code).unwrap();
    (spec, build)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blank_becomes_one_deployments_and_is_replaced() {
    on_node(
        |args| args.sandbox_blanks = 1,
        async |node| {
            ready(node).await;
            let functions = [node.function("native"), node.function("native")];
            let before = node.containers().await;
            let exit = node.call(&functions[0], "echo first; cat /.env.config").await;
            let config = "first\nFUNCTION_TIMEOUT_MS=10000\nFUNCTION_MEMORY_MB=64\nGREETING=hello\n";
            assert_eq!((exit.how, text(&exit.stdout)), (How::Exited(0), config));
            assert_eq!(node.metric("dartcloud_sandbox_blanks_used_total"), 1.0);
            // Its container was there before; its memory is the function's now, and what the Engine shows follows.
            let lease = node.lease(&functions[0]).await.unwrap();
            let container = node.container_of(&lease, &before).await;
            let since = Instant::now();
            loop {
                let shown = node.sandboxes.site.engine.inspect(&container).await.host_config.unwrap();
                if (shown.memory, shown.memory_swap) == (Some(64 << 20), Some(64 << 20)) {
                    break;
                }
                assert!(since.elapsed() < PATIENCE, "{:?}", shown.memory);
            }
            drop(lease);
            let exit = node.call(&functions[0], "head -c 200000000 /dev/zero | tail; echo survived").await;
            assert_eq!((exit.how, text(&exit.stdout)), (How::Exited(0), "survived\n"));
            ready(node).await;
            assert_eq!(node.call(&functions[1], "echo second").await.how, How::Exited(0));
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spare_is_as_if_started_bare() {
    on_node(
        |args| args.sandbox_blanks = 1,
        async |node| {
            ready(node).await;
            // A blank that has just become ready may still be starting its process, and is used all the same.
            let since = Instant::now();
            let (with_spare, first) = loop {
                let function = python(node, PYTHON);
                let exit = node.call(&function, "").await;
                if text(&exit.stdout).contains("/run/dartcloud/spare") {
                    break (function, exit);
                }
                assert!(since.elapsed() < PATIENCE, "no blank's spare is used");
                ready(node).await;
            };
            let mut without = python(node, PYTHON);
            // A variable that must be there when the interpreter starts: no spare is used.
            without.0.env.insert("PYTHONHASHSEED".into(), "1".into());
            let bare = node.call(&without, "").await;
            let (first, bare) = (text(&first.stdout), text(&bare.stdout));
            let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
            assert_eq!(lines(first)[..3], lines(bare)[..3]);
            assert_eq!(lines(first)[3], "['python3', '/run/dartcloud/spare']");
            assert_eq!(lines(bare)[3], "['python3', 'main.py']");
            // The next one's spare was started after this deployment's code was there.
            let since = Instant::now();
            while !text(&node.call(&with_spare, "").await.stdout).contains("/run/dartcloud/spare") {
                assert!(since.elapsed() < PATIENCE, "no spare after the first call");
            }
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_the_functions_own_hides_a_module() {
    on_node(
        |args| args.sandbox_blanks = 1,
        async |node| {
            ready(node).await;
            let function =
                python(node, "import json, base64\nprint(json.OWN, base64.b64encode(b'a'))\nraise ValueError('x')");
            std::fs::write((*function.1).as_ref().join("json.py"), "OWN = 'own'").unwrap();
            let exit = node.call(&function, "").await;
            assert_eq!((exit.how, text(&exit.stdout)), (How::Exited(1), "own b'YQ=='\n"));
            let trace = text(&exit.stderr);
            assert!(trace.contains("/function/main.py\", line 3") && !trace.contains("spare"), "{trace}");
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spare_of_node() {
    on_node(
        |args| args.sandbox_blanks = 1,
        async |node| {
            ready(node).await;
            let mut function = node.function("native");
            function.0.runtime = "node".parse().unwrap();
            function.0.entrypoint = "index.js".into();
            let code = "console.log(process.argv.slice(1), process.execArgv, process.cwd(), require.main === module, \
                        process.env.GREETING, module.parent, __filename); process.exitCode = 4;";
            std::fs::write((*function.1).as_ref().join("index.js"), code).unwrap();
            for _ in 0..3 {
                let exit = node.call(&function, "").await;
                let expected = "[ '/function/index.js' ] [] /function true hello null /function/index.js\n";
                assert_eq!((exit.how, text(&exit.stdout)), (How::Exited(4), expected), "{}", text(&exit.stderr));
            }
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blank_counts_as_what_its_process_uses() {
    on_node(
        |args| args.sandbox_blanks = 1,
        async |node| {
            let runtime: RuntimeName = "node".parse().unwrap();
            let since = Instant::now();
            loop {
                let price_mb = node.sandboxes.blanks.price_mb(&runtime);
                // The runner alone uses one or two.
                if price_mb.is_some_and(|price_mb| price_mb >= 8.0) {
                    break;
                }
                assert!(since.elapsed() < PATIENCE, "{price_mb:?}");
                tokio::task::yield_now().await;
            }
        },
    )
    .await;
}
