//! What the agent asks of a runner whose function is a server, and what only such a runner answers.

use super::{CONNECTED, FLUSHED, Fields, Malformed, UNCONNECTED, framed, put_bytes, put_list};

const SERVE: u8 = 16;
const CONNECT: u8 = 17;
const FLUSH: u8 = 18;

/// What is asked of a server's runner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerOrder {
    /// Start a server, which runs until it ends by itself or the agent hangs up. [`Report::Done`](super::Report::Done)
    /// tells its end.
    Serve(Serve),
    /// Make a connection to the server, answered by [`Report::Connected`](super::Report::Connected) or
    /// [`Report::Unconnected`](super::Report::Unconnected). The agent asks for one at a time.
    Connect {
        /// How long a server that does not listen yet is given, in milliseconds.
        timeout_ms: u32,
    },
    /// Tell whatever the server has printed so far, then [`Report::Flushed`](super::Report::Flushed).
    Flush,
}

/// A server: a [`Run`](super::Run) without an end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Serve {
    /// The program and its arguments, as in [`Run::argv`](super::Run::argv).
    pub argv: Vec<Vec<u8>>,
    /// The whole environment, `KEY=VALUE` each.
    pub env: Vec<Vec<u8>>,
    /// The working directory.
    pub cwd: Vec<u8>,
    /// Where it listens, on the loopback.
    pub port: u16,
    /// Most bytes that are handed on of each of stdout and stderr, in any one second.
    pub output_cap_bytes: u64,
}

impl ServerOrder {
    pub(super) fn decode(kind: u8, fields: &mut Fields<'_>) -> Result<Self, Malformed> {
        Ok(match kind {
            SERVE => Self::Serve(Serve {
                argv: fields.list()?,
                env: fields.list()?,
                cwd: fields.bytes()?.to_vec(),
                port: fields.take().map(u16::from_le_bytes)?,
                output_cap_bytes: fields.u64()?,
            }),
            CONNECT => Self::Connect { timeout_ms: fields.u32()? },
            FLUSH => Self::Flush,
            _ => return Err(Malformed),
        })
    }

    /// Appends the frame to `buffer`.
    ///
    /// # Errors
    /// It would be longer than [`MAX_FRAME_BYTES`](super::MAX_FRAME_BYTES).
    pub fn encode(&self, buffer: &mut Vec<u8>) -> Result<(), Malformed> {
        match self {
            Self::Serve(serve) => framed(buffer, SERVE, |buffer| {
                put_list(buffer, &serve.argv);
                put_list(buffer, &serve.env);
                put_bytes(buffer, &serve.cwd);
                buffer.extend(serve.port.to_le_bytes());
                buffer.extend(serve.output_cap_bytes.to_le_bytes());
            }),
            Self::Connect { timeout_ms } => framed(buffer, CONNECT, |buffer| buffer.extend(timeout_ms.to_le_bytes())),
            Self::Flush => framed(buffer, FLUSH, |_| {}),
        }
    }
}

/// Appends the frame that a connection's descriptor goes with.
pub fn encode_connected(buffer: &mut Vec<u8>) {
    let fits = framed(buffer, CONNECTED, |_| {});
    debug_assert!(fits.is_ok(), "a byte fits");
}

/// Appends the answer to a question for a connection that there is not.
pub fn encode_unconnected(buffer: &mut Vec<u8>, errno: i32) {
    let fits = framed(buffer, UNCONNECTED, |buffer| buffer.extend(errno.to_le_bytes()));
    debug_assert!(fits.is_ok(), "a few bytes fit");
}

/// Appends the end of what was printed before the agent asked.
pub fn encode_flushed(buffer: &mut Vec<u8>) {
    let fits = framed(buffer, FLUSHED, |_| {});
    debug_assert!(fits.is_ok(), "a byte fits");
}

#[cfg(test)]
mod tests {
    use super::super::Order;
    use super::super::tests::{body, never_panics};
    use super::*;

    fn check(order: ServerOrder) {
        let mut buffer = Vec::new();
        order.encode(&mut buffer).unwrap();
        assert_eq!(Order::decode(body(&buffer)), Ok(Order::Server(order)));
        never_panics(&buffer);
    }

    #[test]
    fn a_servers_orders_survive_the_wire() {
        check(ServerOrder::Serve(Serve {
            argv: vec![b"server".to_vec()],
            env: vec![b"PORT=8080".to_vec()],
            cwd: b"/function".to_vec(),
            port: 8080,
            output_cap_bytes: 1 << 16,
        }));
        check(ServerOrder::Connect { timeout_ms: 10_000 });
        check(ServerOrder::Flush);
    }
}
