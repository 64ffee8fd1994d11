//! The file contract's cost: a warm call through the whole platform, beside a bare loop of write, spawn, wait, read
//! of the same program, in interleaved rounds of one run. `bench/run` sets the stage.
#![allow(clippy::print_stdout, reason = "a benchmark's product is what it prints")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

/// What `bench/run` passes.
#[derive(Parser)]
struct Arguments {
    /// The platform's address, `127.0.0.1:8080`.
    #[arg(long)]
    address: String,
    /// An access token.
    #[arg(long, env = "DARTCLOUD_TOKEN", hide_env_values = true)]
    token: String,
    /// The deployed no-op function's name.
    #[arg(long)]
    function: String,
    /// The same program on this machine.
    #[arg(long)]
    program: PathBuf,
    /// Interleaved rounds of each side.
    #[arg(long, default_value_t = 7)]
    rounds: u32,
    /// Calls of each side in a round.
    #[arg(long, default_value_t = 500)]
    calls: u32,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut platform = Platform::connect(&arguments)?;
    let folder = std::env::temp_dir().join(format!("dartcloud-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let bare = Bare { program: arguments.program.clone(), folder: folder.clone() };
    for _ in 0..50 {
        platform.call()?;
        bare.call()?;
    }
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..arguments.rounds {
        ours.push(median((0..arguments.calls).map(|_| timed(|| platform.call())).collect::<Result<_>>()?));
        theirs.push(median((0..arguments.calls).map(|_| timed(|| bare.call())).collect::<Result<_>>()?));
    }
    std::fs::remove_dir_all(&folder)?;
    let (ours, theirs) = (median(ours), median(theirs));
    println!(
        "file contract, native no-op, p50 at one connection, {} rounds of {} calls:",
        arguments.rounds, arguments.calls
    );
    println!("  through the platform      {:>8.1} µs", micros(ours));
    println!("  write, spawn, wait, read  {:>8.1} µs", micros(theirs));
    println!("  ratio                     {:>8.2}", ours.as_secs_f64() / theirs.as_secs_f64());
    Ok(())
}

fn timed(call: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    call()?;
    Ok(start.elapsed())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// One kept-alive connection to the gateway.
struct Platform {
    stream: BufReader<TcpStream>,
    request: Vec<u8>,
}

impl Platform {
    fn connect(arguments: &Arguments) -> Result<Self> {
        let stream = TcpStream::connect(&arguments.address)?;
        stream.set_nodelay(true)?;
        let body = r#"{"body":{"name":"Ada"}}"#;
        let request = format!(
            "POST /api/functions/{}/invoke HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            arguments.function,
            arguments.address,
            arguments.token,
            body.len()
        );
        Ok(Self { stream: BufReader::new(stream), request: request.into_bytes() })
    }

    fn call(&mut self) -> Result<()> {
        self.stream.get_mut().write_all(&self.request)?;
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let well = line.starts_with("HTTP/1.1 200");
        let mut length = 0;
        loop {
            let mut header = String::new();
            self.stream.read_line(&mut header)?;
            if header.trim().is_empty() {
                break;
            }
            if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().context("a length")?;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        ensure!(well, "{line}{}", String::from_utf8_lossy(&body));
        Ok(())
    }
}

/// The least that the file contract could cost: no sandbox, no network, no record.
struct Bare {
    program: PathBuf,
    folder: PathBuf,
}

impl Bare {
    fn call(&self) -> Result<()> {
        let request = self.folder.join("request.json");
        let result = self.folder.join("result.json");
        std::fs::write(&request, br#"{"body":{"name":"Ada"}}"#)?;
        std::fs::write(&result, b"")?;
        let status = Command::new(&self.program).arg(&request).arg(&result).status()?;
        ensure!(status.success(), "the program failed");
        let result: serde_json::Value = serde_json::from_slice(&std::fs::read(&result)?)?;
        ensure!(result.get("body").is_some(), "no body");
        Ok(())
    }
}
