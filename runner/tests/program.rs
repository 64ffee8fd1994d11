//! The runner as a program, outside a sandbox: what it makes of a run, over a real socket. What takes a PID
//! namespace is tested with the node agent, in containers.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what it expects by failing loudly")]

use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use runner::wire::{self, Done, How, Report, Run, Serve, ServerOrder, Spare, Stream};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

struct Runner {
    process: Child,
    link: UnixStream,
    directory: PathBuf,
}

struct Seen {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    done: Done,
}

impl Runner {
    fn start(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("dartcloud-runner-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let socket = directory.join("agent.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_dartcloud-runner")).arg(&socket).spawn().unwrap();
        let (link, _) = listener.accept().unwrap();
        link.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { process, link, directory }
    }

    fn send(&mut self, script: &str, timeout_ms: u32, output_cap_bytes: u64) {
        let argv = ["sh", "-c", script].map(|word| word.as_bytes().to_vec()).to_vec();
        self.send_run(&Run { argv, timeout_ms, output_cap_bytes, ..environment() });
    }

    fn send_run(&mut self, run: &Run) {
        let mut frame = Vec::new();
        run.encode(&mut frame).unwrap();
        self.link.write_all(&frame).unwrap();
    }

    /// Keeps a shell with `script` ready, and waits until `script` has made the file `ready` in the directory.
    fn keep(&mut self, script: &str) {
        let argv = ["sh", "-c", script].map(|word| word.as_bytes().to_vec()).to_vec();
        let Run { env, .. } = environment();
        let mut frame = Vec::new();
        let cwd = self.directory.as_os_str().as_encoded_bytes().to_vec();
        Spare { argv, env, cwd, fork: false }.encode(&mut frame).unwrap();
        self.link.write_all(&frame).unwrap();
        self.await_spare();
    }

    fn await_spare(&mut self) {
        let (file, since) = (self.directory.join("ready"), Instant::now());
        while std::fs::remove_file(&file).is_err() {
            assert!(since.elapsed() < Duration::from_secs(20), "no spare is started");
            std::thread::yield_now();
        }
    }

    fn call(&mut self, call: &str, script: &str) -> Seen {
        let argv = ["sh", "-c", script].map(|word| word.as_bytes().to_vec()).to_vec();
        let call = call.as_bytes().to_vec();
        self.send_run(&Run { argv, call, timeout_ms: 10_000, output_cap_bytes: 100, ..environment() });
        self.outcome()
    }

    fn outcome(&mut self) -> Seen {
        let (mut stdout, mut stderr, mut inbox) = (Vec::new(), Vec::new(), Vec::new());
        loop {
            while let Some((body, used)) = wire::split(&inbox).unwrap() {
                match Report::decode(body).unwrap() {
                    Report::Output { stream: Stream::Stdout, bytes } => stdout.extend(bytes),
                    Report::Output { stream: Stream::Stderr, bytes } => stderr.extend(bytes),
                    Report::Done(done) => return Seen { stdout, stderr, done },
                    other => panic!("{other:?} comes of no run"),
                }
                inbox.drain(..used);
            }
            let mut buffer = [0; 4096];
            let count = self.link.read(&mut buffer).unwrap();
            assert!(count > 0, "the runner hung up");
            inbox.extend_from_slice(&buffer[..count]);
        }
    }

    fn run(&mut self, script: &str) -> Seen {
        self.send(script, 10_000, 1 << 20);
        self.outcome()
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.link.shutdown(std::net::Shutdown::Both).unwrap();
        self.process.wait().unwrap();
        std::fs::remove_dir_all(&self.directory).unwrap();
    }
}

fn environment() -> Run {
    Run { env: vec![b"PATH=/usr/local/bin:/usr/bin:/bin".to_vec()], cwd: b"/".to_vec(), ..Run::default() }
}

fn check(runner: &mut Runner, script: &str, how: How, stdout: &str, stderr: &str) {
    let seen = runner.run(script);
    assert_eq!(seen.done.how, how, "{script}");
    assert_eq!(String::from_utf8(seen.stdout).unwrap(), stdout, "{script}");
    assert_eq!(String::from_utf8(seen.stderr).unwrap(), stderr, "{script}");
    assert!(seen.done.clean && !seen.done.truncated && seen.done.peak_rss_bytes > 0, "{script}: {:?}", seen.done);
}

#[test]
fn ends_and_output() {
    let runner = &mut Runner::start("ends");
    check(runner, "echo hi; echo oh >&2", How::Exited(0), "hi\n", "oh\n");
    check(runner, "exit 3", How::Exited(3), "", "");
    check(runner, "kill -9 $$", How::Signaled(9), "", "");
    check(runner, "cat", How::Exited(0), "", "");
    check(runner, "env | grep PATH; pwd", How::Exited(0), "PATH=/usr/local/bin:/usr/bin:/bin\n/\n", "");
    // What it has open is its three streams and what `ls` opens, so nothing of the runner's.
    check(runner, "ls /proc/self/fd | wc -l", How::Exited(0), "4\n", "");
    // A broken pipe kills, as it does everywhere.
    check(runner, "yes | head -n 1", How::Exited(0), "y\n", "");
}

#[test]
fn merged_output_keeps_its_order() {
    let runner = &mut Runner::start("merged");
    let argv = ["sh", "-c", "echo a; echo b >&2; echo c"].map(|word| word.as_bytes().to_vec()).to_vec();
    runner.send_run(&Run { argv, timeout_ms: 5000, output_cap_bytes: 100, merged: true, ..environment() });
    let seen = runner.outcome();
    assert_eq!((&seen.stdout[..], &seen.stderr[..]), (&b"a\nb\nc\n"[..], &b""[..]));
}

#[test]
fn what_cannot_start() {
    let runner = &mut Runner::start("start");
    let mut check = |argv: &[&str], cwd: &str, errno: i32| {
        let argv = argv.iter().map(|word| word.as_bytes().to_vec()).collect();
        let run = Run { argv, cwd: cwd.as_bytes().to_vec(), timeout_ms: 1000, ..environment() };
        runner.send_run(&run);
        assert_eq!(runner.outcome().done.how, How::SpawnFailed(errno), "{run:?}");
    };
    check(&["no-such-program"], "/", libc::ENOENT);
    check(&["/no/such/program"], "/", libc::ENOENT);
    check(&["/etc/passwd"], "/", libc::EACCES);
    check(&["sh"], "/no/such/directory", libc::ENOENT);
    check(&[], "/", libc::EINVAL);
    check(&["s\0h"], "/", libc::EINVAL);
}

#[test]
fn time_is_kept() {
    let runner = &mut Runner::start("time");
    let began = Instant::now();
    runner.send("trap '' TERM; echo on; sleep 60 & sleep 60", 200, 100);
    let seen = runner.outcome();
    assert_eq!(seen.done.how, How::TimedOut);
    assert_eq!(seen.stdout, b"on\n");
    assert!(began.elapsed() < Duration::from_secs(5) && seen.done.duration_us >= 200_000);
    check(runner, "echo again", How::Exited(0), "again\n", "");
}

#[test]
fn a_flood_is_cut_and_does_not_stand_still() {
    let runner = &mut Runner::start("flood");
    runner.send("head -c 50000000 /dev/zero; head -c 5 /dev/zero >&2", 10_000, 1000);
    let seen = runner.outcome();
    assert_eq!((seen.done.how, seen.stdout.len(), seen.stderr.len()), (How::Exited(0), 1000, 5));
    assert!(seen.done.truncated);
    runner.send("yes", 300, 1000);
    assert_eq!(runner.outcome().done.how, How::TimedOut);
}

#[test]
fn orphans_do_not_hold_the_end_up() {
    let runner = &mut Runner::start("orphans");
    let began = Instant::now();
    check(runner, "sleep 60 & echo main", How::Exited(0), "main\n", "");
    check(runner, "(sleep 60 & ) ; echo main", How::Exited(0), "main\n", "");
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_hang_up_ends_the_runner_and_what_it_runs() {
    let mut runner = Runner::start("hangup");
    runner.send("echo $$; sleep 60", 60_000, 100);
    let mut frame = [0; 64];
    let count = runner.link.read(&mut frame).unwrap();
    let (body, _) = wire::split(&frame[..count]).unwrap().unwrap();
    let Report::Output { bytes, .. } = Report::decode(body).unwrap() else { panic!("the process id comes first") };
    let pid = String::from_utf8(bytes).unwrap();
    runner.link.shutdown(std::net::Shutdown::Both).unwrap();
    assert!(runner.process.wait().unwrap().success());
    assert!(!PathBuf::from(format!("/proc/{}", pid.trim())).exists());
}

#[test]
fn a_spare_is_ready_before_each_call() {
    let runner = &mut Runner::start("spare");
    runner.keep(": >ready; read -r word <&3 && echo \"spare $word\" && exec 3<&- && exit 5");
    for word in ["one", "two"] {
        let seen = runner.call(&format!("{word}\n"), "echo bare");
        assert_eq!((seen.done.how, seen.stdout), (How::Exited(5), format!("spare {word}\n").into_bytes()));
        assert!(seen.done.clean, "nothing is left when a call is over");
        runner.await_spare();
    }
    let seen = runner.call("", "echo bare; ls -1 /proc/self/fd | wc -l");
    assert_eq!((seen.done.how, &seen.stdout[..]), (How::Exited(0), &b"bare\n4\n"[..]), "not every call may have it");
    runner.await_spare();
    runner.keep("exec 3<&-; : >ready; exit 7");
    let seen = runner.call("word\n", "echo bare");
    assert_eq!((seen.done.how, &seen.stdout[..]), (How::Exited(0), &b"bare\n"[..]), "one that is dead is not used");
}

#[test]
fn a_spare_keeps_to_the_limits() {
    let runner = &mut Runner::start("spare-limits");
    runner.keep(": >ready; read -r word <&3; sleep 60 & sleep 60");
    let argv = vec![b"true".to_vec()];
    runner.send_run(&Run { argv, call: b"x\n".to_vec(), timeout_ms: 200, ..environment() });
    let seen = runner.outcome();
    assert_eq!(seen.done.how, How::TimedOut);
    assert!(seen.done.clean && seen.done.duration_us < 10_000_000, "{:?}", seen.done);
}

#[test]
fn nonsense_ends_the_runner() {
    let mut runner = Runner::start("nonsense");
    runner.link.write_all(&[0xff; 64]).unwrap();
    assert_eq!(runner.process.wait().unwrap().code(), Some(71));
}

/// What the runner says of a server, and the connections that it hands over.
struct Served {
    runner: Runner,
    inbox: Vec<u8>,
    passed: Vec<OwnedFd>,
    printed: Vec<u8>,
}

impl Served {
    /// A server whose process is this script; it listens where the test does.
    fn start(name: &str, script: &str, port: u16) -> Self {
        let runner = Runner::start(name);
        let mut served = Self { runner, inbox: Vec::new(), passed: Vec::new(), printed: Vec::new() };
        let Run { env, cwd, .. } = environment();
        let argv = ["sh", "-c", script].map(|word| word.as_bytes().to_vec()).to_vec();
        served.ask(&ServerOrder::Serve(Serve { argv, env, cwd, port, output_cap_bytes: 100 }));
        served
    }

    fn ask(&mut self, request: &ServerOrder) {
        let mut frame = Vec::new();
        request.encode(&mut frame).unwrap();
        self.runner.link.write_all(&frame).unwrap();
    }

    /// The next word that is not output.
    fn told(&mut self) -> Report {
        loop {
            while let Some((body, used)) = wire::split(&self.inbox).unwrap() {
                let report = Report::decode(body).unwrap();
                self.inbox.drain(..used);
                match report {
                    Report::Output { bytes, .. } => self.printed.extend(bytes),
                    other => return other,
                }
            }
            let (mut buffer, mut space) = ([0; 4096], [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))]);
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let link = &self.runner.link;
            let got = recvmsg(link, &mut [IoSliceMut::new(&mut buffer)], &mut control, RecvFlags::CMSG_CLOEXEC);
            let count = got.unwrap().bytes;
            assert!(count > 0, "the runner hung up");
            self.inbox.extend_from_slice(&buffer[..count]);
            for message in control.drain() {
                let RecvAncillaryMessage::ScmRights(descriptors) = message else { panic!("only descriptors come") };
                self.passed.extend(descriptors);
            }
        }
    }

    fn connect(&mut self, timeout_ms: u32) -> Report {
        self.ask(&ServerOrder::Connect { timeout_ms });
        self.told()
    }
}

#[test]
fn a_server_is_reached_by_connections_that_are_handed_over() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let served = &mut Served::start("serve", "echo up; exec sleep 60", listener.local_addr().unwrap().port());
    for word in [b"one", b"two"] {
        assert_eq!(served.connect(5000), Report::Connected);
        let mut client = TcpStream::from(served.passed.pop().unwrap());
        client.set_nonblocking(false).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(word).unwrap();
        let mut heard = [0; 3];
        server.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, word);
    }
    // What was printed before the question is told before the answer.
    let mut waited = Instant::now() + Duration::from_secs(10);
    while served.printed != b"up\n" {
        assert!(Instant::now() < waited, "it printed {:?}", served.printed);
        served.ask(&ServerOrder::Flush);
        assert_eq!(served.told(), Report::Flushed);
    }
    waited = Instant::now() + Duration::from_secs(10);
    drop(listener);
    assert!(matches!(served.connect(50), Report::Unconnected(_)) && Instant::now() < waited);
}

#[test]
fn a_server_that_listens_late_is_waited_for() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let served = &mut Served::start("late", "exec sleep 60", port);
    assert_eq!(served.connect(30), Report::Unconnected(libc::ECONNREFUSED));
    served.ask(&ServerOrder::Connect { timeout_ms: 20_000 });
    let _listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    assert_eq!(served.told(), Report::Connected);
    assert_eq!(served.passed.len(), 1);
}

#[test]
fn the_end_of_a_server_is_told_to_who_waits_for_it() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let served = &mut Served::start("end", "echo last words; sleep 0.1; exit 7", port);
    assert_eq!(served.connect(20_000), Report::Unconnected(libc::ECONNREFUSED));
    let Report::Done(done) = served.told() else { panic!("the end comes next") };
    assert_eq!((done.how, &served.printed[..]), (How::Exited(7), &b"last words\n"[..]));
    assert_eq!(served.connect(20_000), Report::Unconnected(libc::ECONNREFUSED));
}

#[test]
fn a_servers_output_is_capped_by_the_second() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let served = &mut Served::start("chatty", "head -c 5000 /dev/zero; sleep 1.1; echo later; exit 0", port);
    let Report::Done(done) = served.told() else { panic!("the end comes first") };
    assert!(done.truncated && served.printed.len() == 106, "{} bytes", served.printed.len());
    assert!(served.printed.ends_with(b"later\n"));
}
