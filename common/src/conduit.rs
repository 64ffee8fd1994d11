//! One connection of the link, whatever it goes over: a Unix socket on one machine, TLS over TCP between machines.
//! It can be taken off one runtime and put on another, handshake and all.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsStream;

/// How long a TCP connection may be silent until its peer is asked whether it is there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);

/// How often it is asked again, and how many times.
const KEEPALIVE: (Duration, u32) = (Duration::from_secs(5), 3);

/// How long sent bytes may go unacknowledged until the connection is given up, in milliseconds.
const UNACKNOWLEDGED_MS: u32 = 20_000;

/// A connection of the link.
#[derive(Debug)]
pub enum Conduit {
    /// Between two programs of one machine.
    Unix(UnixStream),
    /// Between two machines.
    Tls(Box<TlsStream<Socket>>),
}

/// The TCP connection under TLS.
#[derive(Debug)]
pub struct Socket(Hold);

#[derive(Debug)]
enum Hold {
    /// On the runtime that drives it.
    Bound(TcpStream),
    /// On none: it is being moved.
    Loose(std::net::TcpStream),
    /// Between the two, and for good when the move failed.
    Gone,
}

/// A connection that no runtime watches.
#[derive(Debug)]
pub struct Loose(Parts);

#[derive(Debug)]
enum Parts {
    Unix(std::os::unix::net::UnixStream),
    Tls(Box<TlsStream<Socket>>),
}

impl Socket {
    /// Wraps a connection and sets it up for the link: small frames leave at once, and a peer that vanished without
    /// a word is noticed.
    ///
    /// # Errors
    /// The connection is gone already.
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        sockopt::set_socket_keepalive(&stream, true)?;
        sockopt::set_tcp_keepidle(&stream, KEEPALIVE_IDLE)?;
        sockopt::set_tcp_keepintvl(&stream, KEEPALIVE.0)?;
        sockopt::set_tcp_keepcnt(&stream, KEEPALIVE.1)?;
        sockopt::set_tcp_user_timeout(&stream, UNACKNOWLEDGED_MS)?;
        Ok(Self(Hold::Bound(stream)))
    }

    fn loosen(&mut self) -> io::Result<()> {
        if let Hold::Bound(stream) = std::mem::replace(&mut self.0, Hold::Gone) {
            self.0 = Hold::Loose(stream.into_std()?);
        }
        Ok(())
    }

    fn bind(&mut self) -> io::Result<()> {
        if let Hold::Loose(stream) = std::mem::replace(&mut self.0, Hold::Gone) {
            self.0 = Hold::Bound(TcpStream::from_std(stream)?);
        }
        Ok(())
    }

    fn bound(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        match &mut self.0 {
            Hold::Bound(stream) => Ok(Pin::new(stream)),
            Hold::Loose(_) | Hold::Gone => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl Conduit {
    /// Takes the connection off its runtime.
    ///
    /// # Errors
    /// The runtime is gone.
    pub fn loosen(self) -> io::Result<Loose> {
        Ok(Loose(match self {
            Self::Unix(stream) => Parts::Unix(stream.into_std()?),
            Self::Tls(mut stream) => {
                stream.get_mut().0.loosen()?;
                Parts::Tls(stream)
            }
        }))
    }
}

impl Loose {
    /// Puts the connection on the runtime that this is called on.
    ///
    /// # Errors
    /// The runtime cannot watch it: out of descriptors, most likely.
    pub fn bind(self) -> io::Result<Conduit> {
        Ok(match self.0 {
            Parts::Unix(stream) => Conduit::Unix(UnixStream::from_std(stream)?),
            Parts::Tls(mut stream) => {
                stream.get_mut().0.bind()?;
                Conduit::Tls(stream)
            }
        })
    }
}

impl From<UnixStream> for Conduit {
    fn from(stream: UnixStream) -> Self {
        Self::Unix(stream)
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.bound()?.poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.bound()?.poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.bound()?.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.bound()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.bound()?.poll_shutdown(cx)
    }
}

impl AsyncRead for Conduit {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Conduit {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Unix(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
