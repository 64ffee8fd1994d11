//! The frames between agent and runner: a length (4 bytes, little endian), a kind (1 byte), the fields.
//! Both sides bound what they take, and neither trusts the other's bytes.

mod server;

pub use server::{Serve, ServerOrder, encode_connected, encode_flushed, encode_unconnected};

/// Longest frame's body, in bytes. The largest is a [`Run`] with the most environment that a function may have.
pub const MAX_FRAME_BYTES: usize = 2 * 1024 * 1024;

/// Most bytes of output in one [`Report::Output`].
pub const MAX_OUTPUT_BYTES: usize = 64 * 1024;

const LENGTH_BYTES: usize = 4;
const RUN: u8 = 1;
const OUTPUT: u8 = 2;
const DONE: u8 = 3;
const KEEP: u8 = 4;
const CONNECTED: u8 = 7;
const UNCONNECTED: u8 = 8;
const FLUSHED: u8 = 9;

/// What the agent says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Run one process.
    Run(Run),
    /// Keep a process ready from now on.
    Keep(Spare),
    /// Something of a server.
    Server(ServerOrder),
}

/// A process that is started before its call and waits for it: at once, and again after every [`Run`]. While a run
/// lasts there is none, so that the sandbox is that run's alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spare {
    /// The program and its arguments, as in [`Run::argv`]; none: keep none.
    pub argv: Vec<Vec<u8>>,
    /// The whole environment, `KEY=VALUE` each.
    pub env: Vec<Vec<u8>>,
    /// The working directory.
    pub cwd: Vec<u8>,
    /// Whether the program is a fork server, which makes these processes and lives through the runs.
    pub fork: bool,
}

/// The descriptor on which a [`Spare`] hears what it is to do: [`Run::call`], then the end. An end without a word
/// means that it is not needed. A fork server's is a socket, on which each byte brings three descriptors and asks for
/// one process: to print to, to print errors to, and its own call descriptor. Once that process is the runner's child,
/// the answer is its id, in four bytes of the machine's order.
pub const CALL_DESCRIPTOR: i32 = 3;
/// Longest [`Run::call`], in bytes: what a pipe takes at once.
pub const MAX_CALL_BYTES: usize = 64 * 1024;

/// What the agent asks for: one process, from start to end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// The program and its arguments. A program without `/` is looked up in the `PATH` of `env`.
    pub argv: Vec<Vec<u8>>,
    /// The whole environment, `KEY=VALUE` each.
    pub env: Vec<Vec<u8>>,
    /// The working directory.
    pub cwd: Vec<u8>,
    /// Wall-clock time until everything is killed, in milliseconds.
    pub timeout_ms: u32,
    /// Most bytes that are handed on of each of stdout and stderr.
    pub output_cap_bytes: u64,
    /// Whether stderr goes where stdout goes, so that what is printed keeps its order.
    pub merged: bool,
    /// What the [`Spare`] is told, if there is one: it is this run then, and `argv`, `env` and `cwd` are not used.
    /// Empty: no spare may be used.
    pub call: Vec<u8>,
}

/// What the runner tells the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// Something was printed. Never more than the cap in all, per stream.
    Output {
        /// Where.
        stream: Stream,
        /// What; at most [`MAX_OUTPUT_BYTES`].
        bytes: Vec<u8>,
    },
    /// The process ended and nothing of it is left.
    Done(Done),
    /// The server took a connection; its descriptor comes with this frame.
    Connected,
    /// The server took none in time; the system's error number.
    Unconnected(i32),
    /// All that was printed before the question has been told.
    Flushed,
}

/// One of the two output streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// How a [`Run`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// In what way.
    pub how: How,
    /// The process's largest resident set, in bytes; 0 when it did not start.
    pub peak_rss_bytes: u64,
    /// From before the start to the end of the process, in microseconds.
    pub duration_us: u64,
    /// Whether it printed more than the cap.
    pub truncated: bool,
    /// Whether the sandbox is as it was before: no process left, its writable directories empty.
    pub clean: bool,
}

/// In what way a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It exited with this code.
    Exited(i32),
    /// This signal ended it.
    Signaled(i32),
    /// It ran into its time limit and was killed.
    TimedOut,
    /// It could not be started; the system's error number.
    SpawnFailed(i32),
}

/// The bytes are not a frame of this protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("malformed frame between agent and runner")
    }
}

impl std::error::Error for Malformed {}

/// The first whole frame's body in `buffer`, and how many bytes it takes with its length; `None` when more has
/// to arrive first.
///
/// # Errors
/// The frame is longer than [`MAX_FRAME_BYTES`].
pub fn split(buffer: &[u8]) -> Result<Option<(&[u8], usize)>, Malformed> {
    let Some((length, rest)) = buffer.split_first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
    let length = u32::from_le_bytes(*length) as usize;
    if length > MAX_FRAME_BYTES {
        return Err(Malformed);
    }
    Ok(rest.get(..length).map(|body| (body, LENGTH_BYTES + length)))
}

impl Order {
    /// Reads a frame's body.
    ///
    /// # Errors
    /// It is not an `Order`.
    pub fn decode(body: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Fields(body);
        let order = match fields.byte()? {
            RUN => Self::Run(Run {
                argv: fields.list()?,
                env: fields.list()?,
                cwd: fields.bytes()?.to_vec(),
                timeout_ms: fields.u32()?,
                output_cap_bytes: fields.u64()?,
                merged: fields.flag()?,
                call: fields.bytes()?.to_vec(),
            }),
            KEEP => Self::Keep(Spare {
                argv: fields.list()?,
                env: fields.list()?,
                cwd: fields.bytes()?.to_vec(),
                fork: fields.flag()?,
            }),
            kind => Self::Server(ServerOrder::decode(kind, &mut fields)?),
        };
        fields.end(order)
    }
}

impl Run {
    /// Appends the frame to `buffer`.
    ///
    /// # Errors
    /// It would be longer than [`MAX_FRAME_BYTES`].
    pub fn encode(&self, buffer: &mut Vec<u8>) -> Result<(), Malformed> {
        framed(buffer, RUN, |buffer| {
            put_list(buffer, &self.argv);
            put_list(buffer, &self.env);
            put_bytes(buffer, &self.cwd);
            buffer.extend(self.timeout_ms.to_le_bytes());
            buffer.extend(self.output_cap_bytes.to_le_bytes());
            buffer.push(u8::from(self.merged));
            put_bytes(buffer, &self.call);
        })
    }
}

impl Spare {
    /// Appends the frame to `buffer`.
    ///
    /// # Errors
    /// It would be longer than [`MAX_FRAME_BYTES`].
    pub fn encode(&self, buffer: &mut Vec<u8>) -> Result<(), Malformed> {
        framed(buffer, KEEP, |buffer| {
            put_list(buffer, &self.argv);
            put_list(buffer, &self.env);
            put_bytes(buffer, &self.cwd);
            buffer.push(u8::from(self.fork));
        })
    }
}

impl Report {
    /// Reads a frame's body.
    ///
    /// # Errors
    /// It is not a `Report`.
    pub fn decode(body: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Fields(body);
        let report = match fields.byte()? {
            OUTPUT => {
                let stream = match fields.byte()? {
                    1 => Stream::Stdout,
                    2 => Stream::Stderr,
                    _ => return Err(Malformed),
                };
                Self::Output { stream, bytes: fields.bytes()?.to_vec() }
            }
            DONE => {
                let word = fields.byte()?;
                let number = i32::from_le_bytes(fields.take()?);
                let how = match word {
                    1 => How::Exited(number),
                    2 => How::Signaled(number),
                    3 => How::TimedOut,
                    4 => How::SpawnFailed(number),
                    _ => return Err(Malformed),
                };
                Self::Done(Done {
                    how,
                    peak_rss_bytes: fields.u64()?,
                    duration_us: fields.u64()?,
                    truncated: fields.flag()?,
                    clean: fields.flag()?,
                })
            }
            CONNECTED => Self::Connected,
            UNCONNECTED => Self::Unconnected(fields.take().map(i32::from_le_bytes)?),
            FLUSHED => Self::Flushed,
            _ => return Err(Malformed),
        };
        fields.end(report)
    }
}

/// Appends an output frame to `buffer`; only the first [`MAX_OUTPUT_BYTES`] of `bytes` go.
pub fn encode_output(buffer: &mut Vec<u8>, stream: Stream, bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(MAX_OUTPUT_BYTES)];
    let fits = framed(buffer, OUTPUT, |buffer| {
        buffer.push(match stream {
            Stream::Stdout => 1,
            Stream::Stderr => 2,
        });
        put_bytes(buffer, bytes);
    });
    debug_assert!(fits.is_ok(), "output is cut to fit");
}

/// Appends the last frame of a run to `buffer`.
pub fn encode_done(buffer: &mut Vec<u8>, done: &Done) {
    let fits = framed(buffer, DONE, |buffer| {
        let (word, number) = match done.how {
            How::Exited(code) => (1, code),
            How::Signaled(signal) => (2, signal),
            How::TimedOut => (3, 0),
            How::SpawnFailed(errno) => (4, errno),
        };
        buffer.push(word);
        buffer.extend(number.to_le_bytes());
        buffer.extend(done.peak_rss_bytes.to_le_bytes());
        buffer.extend(done.duration_us.to_le_bytes());
        buffer.push(u8::from(done.truncated));
        buffer.push(u8::from(done.clean));
    });
    debug_assert!(fits.is_ok(), "a few bytes fit");
}

fn framed(buffer: &mut Vec<u8>, kind: u8, fields: impl FnOnce(&mut Vec<u8>)) -> Result<(), Malformed> {
    let start = buffer.len();
    buffer.extend([0; LENGTH_BYTES]);
    buffer.push(kind);
    fields(buffer);
    let length = buffer.len() - start - LENGTH_BYTES;
    if length > MAX_FRAME_BYTES {
        buffer.truncate(start);
        return Err(Malformed);
    }
    buffer[start..start + LENGTH_BYTES].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(())
}

fn put_bytes(buffer: &mut Vec<u8>, bytes: &[u8]) {
    buffer.extend((bytes.len() as u32).to_le_bytes());
    buffer.extend(bytes);
}

fn put_list(buffer: &mut Vec<u8>, items: &[Vec<u8>]) {
    buffer.extend((items.len() as u32).to_le_bytes());
    for item in items {
        put_bytes(buffer, item);
    }
}

/// What is still unread of a frame's body.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn flag(&mut self) -> Result<bool, Malformed> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.take().map(u64::from_le_bytes)
    }

    fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.u32()? as usize;
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    /// Grows with what is really there, whatever count the sender claims.
    fn list(&mut self) -> Result<Vec<Vec<u8>>, Malformed> {
        let count = self.u32()?;
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(self.bytes()?.to_vec());
        }
        Ok(items)
    }

    fn end<T>(self, whole: T) -> Result<T, Malformed> {
        if self.0.is_empty() { Ok(whole) } else { Err(Malformed) }
    }
}

#[cfg(test)]
mod tests;
