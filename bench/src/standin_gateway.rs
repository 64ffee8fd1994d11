//! The gateway's side of the link, and nothing else: it has an agent build one deployment and gives the connection on
//! which it takes calls, so that the agent is measured without a gateway in between.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use common::digest::Digest;
use common::function::{Contract, DeploymentSpec, Limits};
use common::ids::{DeploymentId, FunctionId, InvocationId};
use common::protocol::{
    DEPLOYMENT, FORM, FORM_HTTP, GatewayMessage, Hello, INVOCATION, Kind, MAX_HELLO_BYTES, ORDER, ORDER_BUILD,
    ORDER_INVOKE, VERSION, calls,
};

use crate::child::{Child, free_address};
use crate::http1::{self, Connection};
use crate::platform::{BODY, JSON, program};
use crate::program::Program;
use crate::stage::Stage;

/// How long the agent may take to dial, or to build.
const PATIENCE: Duration = Duration::from_secs(90);

/// An agent that serves one deployment, and the connection to it.
pub(crate) struct Agent {
    process: Child,
    connection: Connection,
    spec: DeploymentSpec,
    _others: Receiver<UnixStream>,
}

/// What the agent may ask for.
struct Served {
    spec: DeploymentSpec,
    archive: Vec<u8>,
}

impl Agent {
    /// An agent on these cores, linked with nobody but us, that has built `function`.
    pub(crate) fn start(stage: &Stage, cores: &str, function: &Program, runtime: &str) -> Result<Self> {
        let data_dir = stage.folder()?;
        let archive = function.archive()?;
        let spec = DeploymentSpec {
            deployment: DeploymentId::new(),
            function: FunctionId::new(),
            version: 1,
            runtime: runtime.parse()?,
            entrypoint: "main".to_owned(),
            archive: Digest::of(&archive),
            archive_root: None,
            contract: Contract::File,
            limits: Limits { timeout_ms: 5000, memory_mb: 128, concurrency: 10, min_warm: 0 },
            env: Default::default(),
            egress: false,
            stale_while_cold_ms: 0,
            node_selector: common::labels::Labels::NONE,
        };
        let served = Arc::new(Served { spec: spec.clone(), archive });
        let work = listen(data_dir.join("link.sock"), served)?;
        let mut command = program(stage, cores, "dartcloud-node-agent", &data_dir, free_address()?, &[]);
        command.env("RUNNER_PATH", stage.program("dartcloud-runner"));
        let process = Child::spawn(command, "agent", &data_dir)?;
        let dialled =
            work.recv_timeout(PATIENCE).with_context(|| format!("the agent did not dial: {}", process.said()))?;
        let mut agent = Self { process, connection: Connection::of(dialled)?, spec, _others: work };
        agent.build()?;
        Ok(agent)
    }

    /// The agent's process.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    fn build(&mut self) -> Result<()> {
        let order = format!("{ORDER}: {ORDER_BUILD}");
        let request = http1::request("POST", "/", &[&order, JSON], &serde_json::to_vec(&self.spec)?);
        let answer = self.connection.ask(&request)?;
        let text = String::from_utf8_lossy(&answer.body);
        ensure!(text.contains("\"built\""), "the build failed: {text}\n{}", self.process.said());
        Ok(())
    }

    /// One call, as the gateway would send it.
    pub(crate) fn call(&mut self) -> Result<Duration> {
        let headers = [
            format!("{ORDER}: {ORDER_INVOKE}"),
            format!("{DEPLOYMENT}: {}", self.spec.deployment),
            format!("{INVOCATION}: {}", InvocationId::new()),
            format!("{FORM}: {FORM_HTTP}"),
            JSON.to_owned(),
        ];
        let request = http1::request("POST", "/", &headers.each_ref().map(|one| &**one), BODY);
        let start = Instant::now();
        let answer = self.connection.ask(&request)?;
        let time = start.elapsed();
        ensure!(answer.status == 200, "status {}: {}", answer.status, String::from_utf8_lossy(&answer.body));
        Ok(time)
    }
}

/// Takes in whatever the agent dials; its work connections come out of the channel.
fn listen(socket: PathBuf, served: Arc<Served>) -> Result<Receiver<UnixStream>> {
    let listener = UnixListener::bind(socket)?;
    let (give, work) = channel();
    std::thread::spawn(move || {
        // It ends with the process: an agent's connections end when the agent does.
        for stream in listener.incoming().map_while(std::io::Result::ok) {
            let (give, served) = (give.clone(), served.clone());
            std::thread::spawn(move || welcome(stream, &give, &served));
        }
    });
    Ok(work)
}

fn welcome(mut stream: UnixStream, give: &Sender<UnixStream>, served: &Served) -> Result<()> {
    let hello = read_hello(&mut stream)?;
    match hello.kind {
        Kind::Work => give.send(stream).context("nobody waits")?,
        Kind::Calls => answer_calls(stream, served)?,
        Kind::Control => {
            let welcome = serde_json::to_vec(&GatewayMessage::Welcome { protocol: VERSION })?;
            stream.write_all(&u32::try_from(welcome.len())?.to_be_bytes())?;
            stream.write_all(&welcome)?;
            // Heartbeats are heard, and say nothing that matters here.
            std::io::copy(&mut stream, &mut std::io::sink())?;
        }
        Kind::Join => anyhow::bail!("an agent of this machine need not join"),
    }
    Ok(())
}

/// Byte by byte, so that nothing after the line is taken.
fn read_hello(stream: &mut UnixStream) -> Result<Hello> {
    let mut line = Vec::new();
    let mut byte = [0];
    while byte[0] != b'\n' {
        ensure!(line.len() < MAX_HELLO_BYTES, "the hello is too long");
        stream.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    Ok(serde_json::from_slice(&line)?)
}

/// Archives and deployments are given, builds are not there and are not kept, records are taken.
fn answer_calls(stream: UnixStream, served: &Served) -> Result<()> {
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    while let Some((method, path)) = read_request(&mut reader)? {
        let (status, body) = match (method.as_str(), path.as_str()) {
            ("GET", path) if path.starts_with(calls::ARCHIVES) => ("200 OK", served.archive.clone()),
            ("GET", path) if path.starts_with(calls::DEPLOYMENTS) => ("200 OK", serde_json::to_vec(&served.spec)?),
            ("GET", _) => ("404 Not Found", Vec::new()),
            ("PUT", _) => ("201 Created", Vec::new()),
            _ => ("204 No Content", Vec::new()),
        };
        let length =
            if status.starts_with("204") { String::new() } else { format!("content-length: {}\r\n", body.len()) };
        writer.write_all(format!("HTTP/1.1 {status}\r\n{length}\r\n").as_bytes())?;
        writer.write_all(&body)?;
    }
    Ok(())
}

/// Method and path of the next request, whose body is skipped.
fn read_request(reader: &mut BufReader<UnixStream>) -> Result<Option<(String, String)>> {
    let mut first = String::new();
    if reader.read_line(&mut first)? == 0 {
        return Ok(None);
    }
    let (mut length, mut is_chunked) = (0, false);
    loop {
        let mut line = String::new();
        ensure!(reader.read_line(&mut line)? > 0, "a request broke off");
        let line = line.trim().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse()?;
        }
        is_chunked |= line.starts_with("transfer-encoding:");
    }
    skip(reader, length)?;
    while is_chunked {
        let mut size = String::new();
        reader.read_line(&mut size)?;
        let size = u64::from_str_radix(size.trim(), 16)?;
        skip(reader, size + 2)?;
        is_chunked = size > 0;
    }
    let mut words = first.split(' ').map(str::to_owned);
    Ok(words.next().zip(words.next()))
}

fn skip(reader: &mut BufReader<UnixStream>, length: u64) -> Result<()> {
    let skipped = std::io::copy(&mut reader.by_ref().take(length), &mut std::io::sink())?;
    ensure!(skipped == length, "a body broke off");
    Ok(())
}
