//! Two gateways' limits over a real Redis, which is there, hangs, is gone, and comes back.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use clap::Parser;
use rustix::process::{Pid, Signal, kill_process};

use super::*;
use crate::edge::limits::{Admission, Permit};

/// How long any one wait may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A Redis of this test's own.
pub(crate) struct Redis {
    process: Child,
    port: u16,
    directory: tempfile::TempDir,
}

impl Redis {
    pub(crate) fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let directory = tempfile::tempdir().unwrap();
        Self { process: Self::spawn(port, &directory), port, directory }
    }

    fn spawn(port: u16, directory: &tempfile::TempDir) -> Child {
        let mut command = Command::new("redis-server");
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"]);
        command.arg(directory.path()).stdin(Stdio::null()).stdout(Stdio::null());
        command.spawn().expect("Debian's redis-server is installed: script/setup test")
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }

    /// Ends it, with all that it knew.
    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn again(&mut self) {
        self.process = Self::spawn(self.port, &self.directory);
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // One that was ended already is no trouble.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[derive(clap::Parser)]
struct Arguments {
    #[command(flatten)]
    limits: LimitArgs,
}

struct Gateway {
    shared: Arc<SharedLimits>,
    end: CancellationToken,
}

impl Gateway {
    /// One that has found Redis.
    async fn start(redis: &Redis, flags: &[&str]) -> Self {
        let args = Arguments::parse_from([&["test"], flags].concat()).limits;
        let metrics = Metrics::register(&Registry::new()).unwrap();
        let shared = Arc::new(SharedLimits::new(&redis.url(), &args, &Handle::current(), metrics).unwrap());
        let end = CancellationToken::new();
        tokio::spawn(shared.clone().run(end.clone()));
        let gateway = Self { shared, end };
        gateway.until(true, |shared| shared.answers.load(Ordering::Relaxed)).await;
        gateway
    }

    async fn until(&self, expected: bool, of: impl Fn(&SharedLimits) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while of(&self.shared) != expected {
            assert!(Instant::now() < deadline, "not in time");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn knows(&self, gateways: u32) {
        self.until(true, |shared| shared.share.load().gateways == gateways).await;
    }

    async fn hold(&self, function: &Function) -> Option<Permit> {
        let (slot, limit) = self.shared.hold_of(function.id, function.limit).await?;
        let mut permit = function.admission.admit(limit)?;
        permit.fill(slot);
        Some(permit)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

/// A function as one gateway has it.
struct Function {
    id: common::ids::FunctionId,
    admission: Arc<Admission>,
    limit: u32,
}

fn function(limit: u32) -> [Function; 2] {
    let id = common::ids::FunctionId::new();
    [(); 2].map(|()| Function { id, admission: Arc::default(), limit })
}

fn somebody() -> Client {
    Client::User(common::ids::UserId::new())
}

/// How many of `wanted` requests are let in, in turn at each of these.
async fn let_in(gateways: &[&Gateway], client: Client, wanted: usize) -> usize {
    let mut count = 0;
    for number in 0..wanted {
        count += usize::from(gateways[number % gateways.len()].shared.client(client).await.is_ok());
    }
    count
}

#[tokio::test]
async fn a_rate_holds_over_two_gateways() {
    let redis = Redis::start();
    let flags = ["--rate-limit-per-client", "50", "--rate-limit-login", "4"];
    let (one, two) = (Gateway::start(&redis, &flags).await, Gateway::start(&redis, &flags).await);
    let (ann, began) = (somebody(), Instant::now());
    let count = let_in(&[&one, &two], ann, 400).await;
    let most = 100 + (began.elapsed().as_secs_f64() * 50.0) as usize + 1;
    assert!((95..=most).contains(&count), "{count}, most {most}");
    let refused = one.shared.client(ann).await.unwrap_err();
    assert_eq!(refused.retry_after, Some(1));
    assert_eq!(let_in(&[&one, &two], somebody(), 50).await, 50);
    // Hundreds of requests, and a few questions.
    let questions = one.shared.metrics.rate_leases.get() + two.shared.metrics.rate_leases.get();
    assert!(questions < 60, "{questions}");

    let here = Client::Address("192.0.2.1".parse().unwrap());
    let mut entered = 0;
    for gateway in [&one, &two].into_iter().cycle().take(12) {
        entered += usize::from(gateway.shared.login(here).await.is_ok());
    }
    assert_eq!(entered, 4);
    // Four a minute: the next in a quarter of one, whoever asks.
    for gateway in [&one, &two, &one] {
        let wait = gateway.shared.login(here).await.unwrap_err().retry_after.unwrap();
        assert!((10..=15).contains(&wait), "{wait}");
    }
}

#[tokio::test]
async fn concurrency_holds_over_two_gateways() {
    let redis = Redis::start();
    let (one, two) = (Gateway::start(&redis, &[]).await, Gateway::start(&redis, &[]).await);
    let [here, there] = function(5);
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(one.hold(&here).await.expect("there is room"));
    }
    let other = [two.hold(&there).await, two.hold(&there).await];
    assert!(other.iter().all(Option::is_some), "what one does not use the other may");
    assert!(two.hold(&there).await.is_none() && one.hold(&here).await.is_none());
    // What one gives back the other gets.
    drop(held);
    let deadline = Instant::now() + PATIENCE;
    let third = loop {
        if let Some(permit) = two.hold(&there).await {
            break permit;
        }
        assert!(Instant::now() < deadline, "the slots did not come back");
    };
    // A gateway that is no more holds nothing.
    drop((other, third, two));
    let deadline = Instant::now() + PATIENCE;
    let mut held = Vec::new();
    while held.len() < 5 {
        held.extend(one.hold(&here).await);
        assert!(Instant::now() < deadline, "{} of 5", held.len());
    }
}

#[tokio::test]
async fn a_warm_function_asks_seldom() {
    let redis = Redis::start();
    let one = Gateway::start(&redis, &[]).await;
    let [here, _] = function(100);
    for _ in 0..1000 {
        assert!(one.hold(&here).await.is_some());
    }
    let questions = one.shared.metrics.slot_leases.get();
    assert!((1..=20).contains(&questions), "{questions} questions for 1000 calls");
}

#[tokio::test]
async fn without_redis_each_has_its_share() {
    let mut redis = Redis::start();
    let flags = ["--rate-limit-per-client", "50"];
    let (one, two) = (Gateway::start(&redis, &flags).await, Gateway::start(&redis, &flags).await);
    one.knows(2).await;
    two.knows(2).await;
    let [here, _] = function(5);

    // It hangs: who asks finds out soon, and nobody waits after him.
    redis.signal(Signal::STOP);
    let began = Instant::now();
    let count = let_in(&[&one], somebody(), 200).await;
    assert!(began.elapsed() < PATIENCE / 4, "{:?}", began.elapsed());
    assert!((45..=70).contains(&count), "{count} of a share of 25 a second, in bursts of 50");
    let held = [one.hold(&here).await, one.hold(&here).await, one.hold(&here).await];
    assert_eq!(held.each_ref().map(Option::is_some), [true, true, false]);
    assert!(one.shared.metrics.alone.get() >= 200);

    // However many find out at once, each waits once.
    let began = Instant::now();
    let ann = somebody();
    let all = (0..100).map(|_| two.shared.client(ann));
    futures_util::future::join_all(all).await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    redis.signal(Signal::CONT);
    one.until(true, |shared| shared.answers.load(Ordering::Relaxed)).await;

    // It is gone, and comes back without what it knew.
    drop(held);
    redis.kill();
    one.until(false, |shared| shared.answers.load(Ordering::Relaxed)).await;
    assert!(one.shared.client(somebody()).await.is_ok());
    redis.again();
    one.until(true, |shared| shared.answers.load(Ordering::Relaxed)).await;
    let held = [one.hold(&here).await, one.hold(&here).await, one.hold(&here).await];
    assert!(held.iter().all(Option::is_some));
}

#[test]
fn shares() {
    let check = |limit, gateways, expected| assert_eq!(share(limit, gateways), expected, "{limit} of {gateways}");
    check(10, 1, 10);
    check(10, 3, 3);
    check(1, 3, 1);
    check(10, 0, 10);
}

#[test]
fn a_url_that_is_none() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let args = RedisArgs { redis_url: Some("http://localhost".into()), redis_url_file: None };
    let limits = Arguments::parse_from(["test"]).limits;
    let error = args.open(&limits, runtime.handle(), &Registry::new()).err().expect("it is no URL of Redis");
    assert!(error.to_string().contains("redis://"), "{error}");
}
