//! Clients that make one call after the other until they are told to stop. None has a second try: what other clients do
//! again by themselves is a failed call here.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context as _, Result, ensure};
use reqwest::Version;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use super::PATIENCE;
use crate::platform::until;

/// Clients that keep their connection, and clients that open one for each call.
const CALLERS: (usize, usize) = (5, 3);

/// Who makes one call at a time, and gives its id.
pub(super) trait Calls: Send + 'static {
    fn call(&mut self) -> impl Future<Output = Result<String>> + Send;
}

/// Where a client connects to.
#[derive(Clone)]
pub(super) enum Server {
    Plain(u16),
    Tls(u16, TlsConnector),
}

/// A connection of either sort.
trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Connection for S {}

impl Server {
    async fn connect(&self) -> Result<Box<dyn Connection>> {
        let (Self::Plain(port) | Self::Tls(port, _)) = self;
        let stream = TcpStream::connect(("127.0.0.1", *port)).await?;
        let connection: Box<dyn Connection> = match self {
            Self::Plain(_) => Box::new(stream),
            Self::Tls(_, connector) => Box::new(connector.connect("localhost".try_into()?, stream).await?),
        };
        Ok(connection)
    }
}

/// A client of HTTP/1.1.
pub(super) struct Caller {
    server: Server,
    path: String,
    keeps: bool,
    stream: Option<Box<dyn Connection>>,
    /// Whether the last answer was to be the connection's last.
    pub(super) closes: bool,
}

impl Caller {
    /// `keeps`: its calls are on one connection.
    pub(super) fn new(server: &Server, path: &str, keeps: bool) -> Self {
        Self { server: server.clone(), path: path.to_owned(), keeps, stream: None, closes: false }
    }
}

impl Calls for Caller {
    /// One call, on the connection of the call before unless that was to be the last.
    async fn call(&mut self) -> Result<String> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => self.server.connect().await.context("no connection")?,
        };
        stream.write_all(format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", self.path).as_bytes()).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(
                stream.read_u8().await.with_context(|| format!("cut after {:?}", String::from_utf8_lossy(&head)))?,
            );
        }
        let head = String::from_utf8(head)?;
        let header = |name: &str| {
            let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(&format!("{name}: ")));
            line.and_then(|line| line.split_once(": ")).map(|(_, value)| value.to_owned())
        };
        let length = header("content-length").context("no length")?.parse()?;
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        ensure!(head.starts_with("HTTP/1.1 200 "), "{head}{}", String::from_utf8_lossy(&body));
        self.closes = header("connection").is_some_and(|value| value == "close");
        if self.keeps && !self.closes {
            self.stream = Some(stream);
        }
        header("x-request-id").context("no id")
    }
}

/// A client of HTTP/2. It does what the protocol says and no more: what a GOAWAY leaves out goes to another connection.
pub(super) struct Http2Caller {
    http: reqwest::Client,
    url: String,
}

impl Http2Caller {
    /// All with the same `http` share its connections.
    pub(super) fn new(http: &reqwest::Client, url: &str) -> Self {
        Self { http: http.clone(), url: url.to_owned() }
    }
}

impl Calls for Http2Caller {
    async fn call(&mut self) -> Result<String> {
        let answer = self.http.get(&self.url).send().await.context("no answer")?;
        let (version, status) = (answer.version(), answer.status());
        ensure!(version == Version::HTTP_2, "{version:?}");
        let id = answer.headers().get("x-request-id").context("no id")?.to_str()?.to_owned();
        let body = answer.text().await.context("no whole body")?;
        ensure!(status == 200, "{status}: {body}");
        Ok(id)
    }
}

/// Calls of a function, as fast as they go, until it is told to stop.
#[derive(Default)]
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    made: Arc<AtomicUsize>,
    tasks: Vec<JoinHandle<Result<Vec<String>>>>,
}

impl Load {
    /// Clients of HTTP/1.1 without TLS.
    pub(super) fn begin(port: u16, path: &str) -> Self {
        let (mut load, server) = (Self::default(), Server::Plain(port));
        for number in 0..CALLERS.0 + CALLERS.1 {
            load.add(Caller::new(&server, path, number < CALLERS.0));
        }
        load
    }

    /// One more client.
    pub(super) fn add(&mut self, mut caller: impl Calls) {
        let (stop, made) = (self.stop.clone(), self.made.clone());
        self.tasks.push(tokio::spawn(async move {
            let mut ids = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                ids.push(caller.call().await.with_context(|| format!("call {} of this client", ids.len()))?);
                made.fetch_add(1, Ordering::Relaxed);
            }
            Ok(ids)
        }));
    }

    /// Waits until so many more calls were answered; a client that failed does not.
    pub(super) async fn more(&self, calls: usize) -> Result<()> {
        let wanted = self.made.load(Ordering::Relaxed) + calls;
        until("more calls are answered", PATIENCE, async || {
            let is_over = self.tasks.iter().any(JoinHandle::is_finished);
            Ok((is_over || self.made.load(Ordering::Relaxed) >= wanted).then_some(()))
        })
        .await
    }

    /// The ids of all calls, none of which failed.
    pub(super) async fn end(self) -> Result<Vec<String>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut ids = Vec::new();
        for task in self.tasks {
            ids.extend(task.await??);
        }
        Ok(ids)
    }
}
