//! The load: kept connections that send one request over and over, either as fast as answers come or at a set rate.
//! It checks that every answer is a 200.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

use crate::http1::{Address, Connection, Whole};
use crate::machine;
use crate::stats::Latencies;

/// How long an answer may take beyond the time of a round.
const PATIENCE: Duration = Duration::from_secs(30);

/// Smallest slack of a timer, in nanoseconds, as the kernel takes it; its own default is 50 µs.
const TIMER_SLACK: &str = "1";

/// What is sent, and where to.
#[derive(Clone, Debug)]
pub(crate) struct Aim {
    pub(crate) address: Address,
    pub(crate) request: Arc<[u8]>,
}

impl Aim {
    pub(crate) fn new(address: Address, request: Vec<u8>) -> Self {
        Self { address, request: request.into() }
    }

    /// Calls on one connection, one after the other, with a pause before each.
    pub(crate) fn one_by_one(&self, calls: usize, pause: Duration) -> Result<Latencies> {
        let mut connection = Connection::open(&self.address)?;
        let mut times = Vec::with_capacity(calls);
        for _ in 0..calls {
            if !pause.is_zero() {
                std::thread::sleep(pause);
            }
            times.push(self.once(&mut connection)?);
        }
        Ok(Latencies::of(&times))
    }

    /// A connection to where it is sent.
    pub(crate) fn open(&self) -> Result<Connection> {
        Connection::open(&self.address)
    }

    /// One call on a connection that is there.
    pub(crate) fn once(&self, connection: &mut Connection) -> Result<Duration> {
        let start = Instant::now();
        let answer = connection.ask(&self.request)?;
        let time = start.elapsed();
        ensure!(answer.status == 200, "status {}: {}", answer.status, String::from_utf8_lossy(&answer.body));
        Ok(time)
    }
}

/// What one round of load gave.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) per_second: f64,
    pub(crate) latencies: Latencies,
    /// CPU time of the watched processes, in microseconds a request.
    pub(crate) cpu_us: f64,
}

/// As many requests as are answered: each of `connections` sends its next one when it has its answer.
pub(crate) fn closed(aim: &Aim, connections: usize, time: Duration, watched: &[u32]) -> Result<Sample> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let cpu_before = machine::cpu_times(watched)?;
    let start = Instant::now();
    let nanoseconds = runtime.block_on(async {
        let tasks: Vec<_> = (0..connections).map(|_| tokio::spawn(send_until(aim.clone(), start + time))).collect();
        let mut all = Vec::new();
        for task in tasks {
            all.extend(tokio::time::timeout(time + PATIENCE, task).await.context("no answer in time")???);
        }
        anyhow::Ok(all)
    })?;
    sample(nanoseconds, start.elapsed(), machine::cpu_times(watched)?.saturating_sub(cpu_before))
}

fn sample(nanoseconds: Vec<u64>, elapsed: Duration, cpu: Duration) -> Result<Sample> {
    ensure!(!nanoseconds.is_empty(), "not one request was answered");
    let count = nanoseconds.len() as f64;
    Ok(Sample {
        per_second: count / elapsed.as_secs_f64(),
        cpu_us: cpu.as_secs_f64() * 1e6 / count,
        latencies: Latencies::new(nanoseconds),
    })
}

async fn send_until(aim: Aim, end: Instant) -> Result<Vec<u64>> {
    match &aim.address {
        Address::Tcp(address) => {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            exchange(stream, &aim.request, end).await
        }
        Address::Unix(path) => exchange(UnixStream::connect(path).await?, &aim.request, end).await,
    }
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &[u8], end: Instant) -> Result<Vec<u64>> {
    let mut times = Vec::with_capacity(64 * 1024);
    let mut buffer = Vec::with_capacity(16 * 1024);
    loop {
        let start = Instant::now();
        if start >= end {
            return Ok(times);
        }
        stream.write_all(request).await?;
        buffer.clear();
        let whole = loop {
            ensure!(stream.read_buf(&mut buffer).await? > 0, "the connection was closed");
            if let Some(whole) = Whole::of(&buffer)? {
                break whole;
            }
        };
        times.push(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
        if whole.status != 200 {
            bail!("status {}: {}", whole.status, String::from_utf8_lossy(&buffer));
        }
    }
}

/// As many requests as are answered, sent as [`paced`] sends them, with a thread for each connection, but for the waiting:
/// what can be had of that load. It costs a machine more than [`closed`], which has one thread for all.
pub(crate) fn unpaced(aim: &Aim, connections: usize, time: Duration) -> Result<Sample> {
    let start = Instant::now();
    let times = on_threads(connections, || {
        let mut connection = Connection::open(&aim.address)?;
        let mut times = Vec::new();
        while start.elapsed() < time {
            times.push(u64::try_from(aim.once(&mut connection)?.as_nanos()).unwrap_or(u64::MAX));
        }
        Ok(times)
    })?;
    sample(times, start.elapsed(), Duration::ZERO)
}

/// The times of all connections, each with a thread.
fn on_threads(connections: usize, one: impl Fn() -> Result<Vec<u64>> + Sync) -> Result<Vec<u64>> {
    let times = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..connections).map(|_| scope.spawn(&one)).collect();
        threads.into_iter().map(|thread| thread.join().expect("it does not panic")).collect::<Result<Vec<_>>>()
    })?;
    Ok(times.concat())
}

/// `per_second` requests, spread evenly over time, whether or not earlier ones were answered. A request's time counts
/// from when it was due, if its connection was still busy then; else from when it left, so that a late timer of the
/// load is not taken for the server's.
pub(crate) fn paced(aim: &Aim, connections: usize, per_second: f64, time: Duration) -> Result<Sample> {
    ensure!(per_second > 0.0, "no rate");
    let step = Duration::from_secs_f64(1.0 / per_second);
    let last = (per_second * time.as_secs_f64()) as u64;
    let next = AtomicU64::new(0);
    let start = Instant::now() + Duration::from_millis(10);
    let times = on_threads(connections, || take_turns(aim, &next, last, start, step))?;
    sample(times, start.elapsed(), Duration::ZERO)
}

/// Takes the next request that is due, waits until then, sends it.
fn take_turns(aim: &Aim, next: &AtomicU64, last: u64, start: Instant, step: Duration) -> Result<Vec<u64>> {
    // Without it the load would be a little more ragged.
    let _ = std::fs::write("/proc/thread-self/timerslack_ns", TIMER_SLACK);
    let mut connection = Connection::open(&aim.address)?;
    let mut times = Vec::new();
    loop {
        let turn = next.fetch_add(1, Ordering::Relaxed);
        if turn >= last {
            return Ok(times);
        }
        let due = start + Duration::from_secs_f64(step.as_secs_f64() * turn as f64);
        let wait = due.saturating_duration_since(Instant::now());
        std::thread::sleep(wait);
        let began = if wait.is_zero() { due } else { Instant::now() };
        aim.once(&mut connection)?;
        times.push(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }
}
