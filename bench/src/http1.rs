//! HTTP/1.1 as the load speaks it: a request is bytes, an answer is a status and a body of known length, on a
//! connection that is kept.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// How long an answer may stand still. Longer than any deploy or cold start that is measured.
const SILENCE: Duration = Duration::from_secs(120);

/// Largest answer, in bytes.
const MAX_ANSWER: usize = 16 * 1024 * 1024;

/// Where a server is.
#[derive(Clone, Debug)]
pub(crate) enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// What a connection is made of.
trait Pipe: Read + Write + Send {}
impl Pipe for TcpStream {}
impl Pipe for UnixStream {}

/// One kept connection, one request at a time.
pub(crate) struct Connection {
    stream: Box<dyn Pipe>,
    buffer: Vec<u8>,
}

/// An answer that is whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The answer's JSON, if it is one of these statuses.
    pub(crate) fn expect(self, statuses: &[u16]) -> Result<Value> {
        let text = String::from_utf8_lossy(&self.body);
        ensure!(statuses.contains(&self.status), "status {}: {text}", self.status);
        if text.trim().is_empty() { Ok(Value::Null) } else { serde_json::from_str(&text).context("JSON") }
    }
}

impl Connection {
    pub(crate) fn open(address: &Address) -> Result<Self> {
        let stream: Box<dyn Pipe> = match address {
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(SILENCE))?;
                stream.set_write_timeout(Some(SILENCE))?;
                Box::new(stream)
            }
            Address::Unix(path) => Self::unix(path)?,
        };
        Ok(Self { stream, buffer: Vec::with_capacity(4096) })
    }

    fn unix(path: &Path) -> Result<Box<dyn Pipe>> {
        let stream = UnixStream::connect(path).with_context(|| path.display().to_string())?;
        stream.set_read_timeout(Some(SILENCE))?;
        Ok(Box::new(stream))
    }

    /// A connection that the other side has dialled.
    pub(crate) fn of(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(SILENCE))?;
        Ok(Self { stream: Box::new(stream), buffer: Vec::with_capacity(4096) })
    }

    /// Sends a whole request and reads the whole answer.
    pub(crate) fn ask(&mut self, request: &[u8]) -> Result<Answer> {
        self.stream.write_all(request)?;
        self.buffer.clear();
        let mut chunk = [0; 16 * 1024];
        loop {
            let count = self.stream.read(&mut chunk)?;
            ensure!(count > 0, "the connection was closed: {}", String::from_utf8_lossy(&self.buffer));
            self.buffer.extend_from_slice(&chunk[..count]);
            if let Some(whole) = Whole::of(&self.buffer)? {
                return Ok(Answer { status: whole.status, body: whole.body(&self.buffer) });
            }
            ensure!(self.buffer.len() < MAX_ANSWER, "the answer is over {MAX_ANSWER} bytes");
        }
    }
}

/// A whole answer in a buffer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Whole {
    pub(crate) status: u16,
    head: usize,
    /// Bytes of the answer, its head included.
    pub(crate) length: usize,
    chunked: bool,
}

impl Whole {
    /// The answer that `buffer` begins with, once it is there to its end.
    pub(crate) fn of(buffer: &[u8]) -> Result<Option<Self>> {
        let Some(head) = find(buffer, b"\r\n\r\n").map(|at| at + 4) else { return Ok(None) };
        let text = std::str::from_utf8(&buffer[..head]).context("the head is not text")?;
        let status = text.get(9..12).and_then(|code| code.parse().ok()).context("no status")?;
        let header = |name: &str| {
            text.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim())
            })
        };
        if header("transfer-encoding").is_some() {
            let end = chunks(&buffer[head..]).map(|(_, end)| end);
            return Ok(end.map(|end| Self { status, head, length: head + end, chunked: true }));
        }
        let body = match header("content-length") {
            Some(length) => length.parse().context("a length")?,
            None if status == 204 || status == 304 => 0,
            None => anyhow::bail!("an answer without a length: {text}"),
        };
        let length = head + body;
        Ok((buffer.len() >= length).then_some(Self { status, head, length, chunked: false }))
    }

    fn body(&self, buffer: &[u8]) -> Vec<u8> {
        let body = &buffer[self.head..self.length];
        if self.chunked { chunks(body).map(|(body, _)| body).unwrap_or_default() } else { body.to_vec() }
    }
}

/// The data of a chunked body and where it ends, once it is there to its end.
fn chunks(mut rest: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (all, mut data) = (rest.len(), Vec::new());
    loop {
        let line = find(rest, b"\r\n")?;
        let size = std::str::from_utf8(&rest[..line]).ok()?.split(';').next()?.trim();
        let size = usize::from_str_radix(size, 16).ok()?;
        let chunk = rest.get(line + 2..line + 2 + size)?;
        rest = rest.get(line + 2 + size + 2..)?;
        if size == 0 {
            return Some((data, all - rest.len()));
        }
        data.extend_from_slice(chunk);
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// The bytes of a request; `headers` are whole lines without their ends.
pub(crate) fn request(method: &str, target: &str, headers: &[&str], body: &[u8]) -> Vec<u8> {
    let mut text = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n");
    for header in headers.iter().filter(|header| !header.is_empty()) {
        text.push_str(header);
        text.push_str("\r\n");
    }
    if !body.is_empty() || method == "POST" {
        text.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    text.push_str("\r\n");
    let mut bytes = text.into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<(u16, usize, &str)>) {
        let whole = Whole::of(text.as_bytes()).unwrap();
        let seen = whole.map(|whole| {
            let body = String::from_utf8(whole.body(text.as_bytes())).unwrap();
            (whole.status, whole.length, body)
        });
        assert_eq!(seen, expected.map(|(status, length, body)| (status, length, body.to_owned())), "{text}");
    }

    #[test]
    fn answers() {
        check("HTTP/1.1 200 OK\r\n", None);
        check("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n1", None);
        check("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n12", Some((200, 40, "12")));
        check("HTTP/1.1 204 No Content\r\n\r\n", Some((204, 27, "")));
        check("HTTP/1.1 502 Bad\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n", None);
        check("HTTP/1.1 502 Bad\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", Some((502, 61, "abc")));
        assert!(Whole::of(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }

    #[test]
    fn requests() {
        let bytes = request("POST", "/a", &["A: b", ""], b"{}");
        let expected = "POST /a HTTP/1.1\r\nHost: localhost\r\nA: b\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(String::from_utf8(bytes).unwrap(), expected);
    }
}
