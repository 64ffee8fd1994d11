//! Python's processes come from a fork server: each is as if it had been started bare, ends so, and cannot reach it.

use super::*;

/// What a process can see of how it was started.
const STATE: &str = r"
import os, sys
modules = {name: sorted(vars(sys.modules[name])) for name in ('builtins', 'sys')}
import gc, locale, resource, signal, threading
print(os.getppid(), os.getsid(0) == os.getpgrp() == os.getpid(), os.getpriority(0, 0), os.sched_getscheduler(0))
print(os.sched_getaffinity(0), os.getuid() == os.geteuid(), len(os.getgroups()), os.umask(0o22), os.getcwd(), modules)
print(sorted(pair for pair in os.environ.items() if pair[0] != 'PYTHONHASHSEED'), list(vars(sys.modules['__main__'])))
print(sys.argv, sys.orig_argv, sys.path, sys.warnoptions, sys._xoptions, len(sys.meta_path), len(sys.path_hooks))
main = sys.modules['__main__']
print(sys.flags, main.__loader__.path, main.__spec__, main.__package__, main.__doc__, main.__file__, main.__cached__)
print([signal.getsignal(number) for number in sorted(signal.valid_signals())], signal.pthread_sigmask(0, []))
print([resource.getrlimit(number) for number in range(16)], locale.setlocale(locale.LC_ALL))
print(gc.isenabled(), gc.get_threshold(), gc.garbage, sys.getrecursionlimit(), sys.getswitchinterval())
print(threading.active_count(), threading.current_thread() is threading.main_thread(), sys.getfilesystemencoding())
for stream in sys.stdin, sys.stdout, sys.stderr:
    print(stream, stream.line_buffering, stream.write_through, stream.errors, stream.fileno(), stream.isatty())
    print(os.readlink(f'/proc/self/fd/{stream.fileno()}').partition(':')[0], stream.buffer)
print(os.listdir('/proc/self/fd'), os.stat('/proc/self/mem').st_uid == os.getuid(), open('/proc/self/comm').read())
told = ('Sig', 'Shd', 'Cap', 'NoN', 'Sec', 'Thr', 'Cpu')
print([line for line in open('/proc/self/status') if line[:3] in told])
print(sys.excepthook is sys.__excepthook__, sys.displayhook, sys.gettrace(), sys.getprofile(), __builtins__.__name__)
try:
    print(os.wait())
except ChildProcessError:
    print('no children')
";

/// How programs end: `__del__`, buffers, threads and hooks in all the ways that a program may lean on.
const ENDS: [&str; 19] = [
    "import sys; print('hello'); sys.exit(3)",
    "import sys; sys.exit()",
    "import sys; sys.exit('last words')",
    "import sys; sys.exit(True)",
    "import sys; sys.exit(263)",
    "raise ValueError('why')",
    "import os; os._exit(4)",
    "import os; os.kill(os.getpid(), 15)",
    "import os; file = os.fdopen(os.dup(1), 'w'); file.write('unflushed')",
    "import os, sys; sys.stdout = os.fdopen(os.dup(1), 'w'); print('my own stdout')",
    "class A:\n    def __del__(self): print('gone')\na = A(); a.cycle = a; b = A()",
    "x = 'kept'\nclass A:\n    def __del__(self): print(x, __name__)\na = A()\ndef f(): return a",
    "import sys, types\nown = sys.modules['own'] = types.ModuleType('own')\n\
     exec('import os; file = os.fdopen(os.dup(1), \"w\"); file.write(\"own\")', vars(own))",
    "import concurrent.futures as c\npool = c.ThreadPoolExecutor(2)\nprint(*pool.map(abs, [-1, 2]))",
    "import multiprocessing as m\nm = m.get_context('fork')\nr, w = m.Pipe()\n\
     p = m.Process(target=w.send, args=(7,)); p.start(); print(r.recv()); p.join(); print(p.exitcode)",
    "import atexit, sys; atexit.register(print, 'first'); atexit.register(sys.stderr.write, 'last'); 1 / 0",
    "import threading, time\ndef late():\n    time.sleep(0.05)\n    print('a thread')\n\
     threading.Thread(target=late).start()",
    "import os, sys\nchild = os.fork()\nif child: os.waitpid(child, 0)\n\
     print('parent' if child else 'child')\nsys.exit(5)",
    "import ctypes, os, socket; print(ctypes.CDLL(None).getpid() == os.getpid())",
];

/// Begins a program that knows the fork server, where there is one.
const SERVER: &str = r"
import os, signal
def is_spare(pid):
    return pid.isdigit() and 'spare' in open(f'/proc/{pid}/cmdline').read()
spares = [int(pid) for pid in os.listdir('/proc') if is_spare(pid)]
server = next((pid for pid in spares if pid != os.getpid()), None)
ready = os.getpid() in spares
";

/// The same function twice: its processes come from a fork server, or are started bare.
fn both(node: &Node) -> [(DeploymentSpec, Build); 2] {
    let (forked, mut bare) = (node.function("python"), node.function("python"));
    bare.0.env.insert("PYTHONHASHSEED".into(), "1".into());
    [forked, bare]
}

/// Runs `program` once it has a fork server.
async fn served(lease: &mut Lease, program: &str) -> String {
    let since = Instant::now();
    loop {
        let program =
            format!("{SERVER}\nif server is None or not ready: print('cold')\nelse:\n    pass\n    {program}");
        let exit = lease.invoke(program.as_bytes(), RESULT_CAP).await.unwrap();
        if text(&exit.stdout) != "cold\n" {
            return format!("{}{}", text(&exit.stdout), text(&exit.stderr));
        }
        assert!(since.elapsed() < PATIENCE, "there is no fork server");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forked_process_is_as_if_started_bare() {
    on_node(
        |_| {},
        async |node| {
            let [forked, bare] = both(node);
            let mut lease = node.lease(&forked).await.unwrap();
            assert_eq!(served(&mut lease, "print('served')").await, "served\n");
            let bare = node.call(&bare, STATE).await;
            for _ in 0..2 {
                let exit = lease.invoke(STATE.as_bytes(), RESULT_CAP).await.unwrap();
                let (lines, expected) = (text(&exit.stdout).lines(), text(&bare.stdout).lines());
                for (line, expected) in lines.zip(expected) {
                    assert_eq!(line, expected);
                }
                assert_eq!((text(&exit.stderr), exit.how), (text(&bare.stderr), bare.how.clone()));
                assert_eq!(text(&exit.stdout).lines().last(), Some("no children"));
            }
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forked_process_ends_as_if_started_bare() {
    on_node(
        |_| {},
        async |node| {
            let [forked, bare] = both(node);
            let (mut forked, mut bare) = (node.lease(&forked).await.unwrap(), node.lease(&bare).await.unwrap());
            for program in ENDS {
                served(&mut forked, "pass").await;
                let mine = forked.invoke(program.as_bytes(), RESULT_CAP).await.unwrap();
                let theirs = bare.invoke(program.as_bytes(), RESULT_CAP).await.unwrap();
                assert_eq!(
                    (&mine.how, text(&mine.stdout), text(&mine.stderr)),
                    (&theirs.how, text(&theirs.stdout), text(&theirs.stderr)),
                    "{program}"
                );
            }
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_cannot_reach_the_fork_server() {
    on_node(
        |_| {},
        async |node| {
            let lease = &mut node.lease(&node.function("python")).await.unwrap();
            let attempts = "
    files = ('mem', 'rb'), ('mem', 'r+b'), ('maps', 'rb'), ('environ', 'rb'), ('oom_score_adj', 'wb'), ('fd', '')
    for path, mode in files:
        try:
            open(f'/proc/{server}/{path}', mode).read(1) if mode else os.listdir(f'/proc/{server}/{path}')
            print(path, 'is open')
        except PermissionError:
            pass";
            assert_eq!(served(lease, attempts.trim_start()).await, "");
            // What it can do to it does nothing to the calls that follow.
            let state = "print(os.getpriority(0, 0), os.sched_getscheduler(0), len(os.sched_getaffinity(0)) > 1)";
            let untouched = served(lease, state).await;
            for deed in [
                "os.kill(server, signal.SIGKILL)",
                "os.kill(server, signal.SIGSTOP)",
                "os.kill(server, signal.SIGINT)",
                "os.setpriority(os.PRIO_PROCESS, server, 10)",
                "os.sched_setaffinity(server, {min(os.sched_getaffinity(0))})",
                "os.sched_setscheduler(server, os.SCHED_IDLE, os.sched_param(0))",
                "import subprocess; subprocess.Popen(['sleep', '60'])",
                "os.spawnlp(os.P_NOWAIT, 'sh', 'sh', '-c', 'setsid sleep 60 & kill -9 $0', str(server))",
            ] {
                assert_eq!(served(lease, &format!("{deed}; print('done')")).await, "done\n", "{deed}");
                let exit = lease.invoke(format!("import os; {state}").as_bytes(), RESULT_CAP).await.unwrap();
                assert_eq!(text(&exit.stdout), untouched, "{deed}: {}", text(&exit.stderr));
                assert_eq!(served(lease, state).await, untouched, "{deed}");
            }
            let leave =
                "import json; print(hasattr(json, 'mark'), 'MARK' in os.environ); json.mark = os.environ['MARK'] = 'x'";
            for _ in 0..2 {
                assert_eq!(served(lease, leave).await, "False False\n");
            }
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_function_has_no_fork_server() {
    on_node(
        |_| {},
        async |node| {
            let mut function = node.function("python");
            function.0.limits.memory_mb = 24;
            let lease = &mut node.lease(&function).await.unwrap();
            let since = Instant::now();
            loop {
                let exit =
                    lease.invoke(format!("{SERVER}\nprint(server, ready)").as_bytes(), RESULT_CAP).await.unwrap();
                match text(&exit.stdout) {
                    "None True\n" => break,
                    "None False\n" => assert!(since.elapsed() < PATIENCE, "there is no spare"),
                    other => panic!("{other}: {}", text(&exit.stderr)),
                }
            }
        },
    )
    .await;
}
