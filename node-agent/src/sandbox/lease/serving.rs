//! A lease whose function is a server: it is started once, connections to it come from the runner, and its sandbox is
//! never used for anything else. Nothing that comes out of the sandbox is trusted to be what it should.

use std::io;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use runner::wire::{Report, Run, Serve, ServerOrder, Stream};
use rustix::net::{AddressFamily, SocketType, getpeername, sockopt};

use super::super::frost::Ice;
use super::super::function::{Function, how};
use super::super::runner_link;
use super::{How, Lease};

/// Where servers listen, in the network namespace of their own sandbox.
pub(crate) const PORT: u16 = 8080;

/// A server, as long as this is kept.
#[derive(Debug)]
pub(crate) struct Serving(Lease);

/// What there is to hear of a server.
#[derive(Debug)]
pub(crate) enum Word {
    /// It printed something.
    Printed(Stream, Vec<u8>),
    /// A connection that was asked for.
    Connected(TcpStream),
    /// There is none; the system's error number.
    Unconnected(i32),
    /// What was printed before the question has been heard.
    Flushed,
    /// It ended, and this is the last word.
    Ended(How),
}

/// The server that a run describes.
pub(crate) fn server(run: Run) -> ServerOrder {
    let Run { argv, mut env, cwd, output_cap_bytes, .. } = run;
    env.retain(|pair| !pair.starts_with(b"PORT="));
    env.push(format!("PORT={PORT}").into_bytes());
    ServerOrder::Serve(Serve { argv, env, cwd, port: PORT, output_cap_bytes })
}

impl Lease {
    /// Starts the server of this deployment.
    ///
    /// # Errors
    /// The sandbox is gone.
    pub(crate) async fn serve(mut self) -> io::Result<Serving> {
        // Whatever comes of it, nobody else gets this sandbox.
        self.sound = false;
        self.sandboxes.serving.fetch_add(1, Ordering::Relaxed);
        let mut serving = Serving(self);
        let function = serving.function()?;
        function.sandbox.ice().wake();
        function.sandbox.link.send(&function.frame).await?;
        Ok(serving)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.sandboxes.serving.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Serving {
    /// Asks the runner for something; the answer is a word.
    ///
    /// # Errors
    /// The sandbox is gone.
    pub(crate) async fn ask(&mut self, order: &ServerOrder) -> io::Result<()> {
        let frame = runner_link::encode(|frame| order.encode(frame))?;
        self.function()?.sandbox.link.send(&frame).await
    }

    /// The next word. Dropping this half-way loses none.
    ///
    /// # Errors
    /// The sandbox is gone, or says what it should not.
    pub(crate) async fn hear(&mut self) -> io::Result<Word> {
        let function = self.function()?;
        let heard = function.sandbox.link.hear().await;
        let out_of_memory = |function: &mut Function| function.sandbox.ran_out_of_memory();
        match heard {
            Ok((Report::Output { stream, bytes }, _)) => Ok(Word::Printed(stream, bytes)),
            Ok((Report::Connected, Some(passed))) => checked(passed).map(Word::Connected),
            Ok((Report::Connected, None)) => Err(io::ErrorKind::InvalidData.into()),
            Ok((Report::Unconnected(errno), _)) => Ok(Word::Unconnected(errno)),
            Ok((Report::Flushed, _)) => Ok(Word::Flushed),
            Ok((Report::Done(done), _)) => Ok(Word::Ended(how(&done, out_of_memory(function)))),
            // The kernel chose the runner itself.
            Err(_) if out_of_memory(function) => Ok(Word::Ended(How::OutOfMemory)),
            Err(error) => Err(error),
        }
    }

    /// Whether the server runs, rests or is frozen.
    pub(crate) fn ice(&mut self) -> io::Result<Arc<Ice>> {
        Ok(Arc::clone(self.function()?.sandbox.ice()))
    }

    fn function(&mut self) -> io::Result<&mut Function> {
        self.0.function.as_deref_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

/// A descriptor from a sandbox as what it has to be: one end of a TCP connection.
fn checked(passed: OwnedFd) -> io::Result<TcpStream> {
    let domain = sockopt::socket_domain(&passed)?;
    let is_tcp = matches!(domain, AddressFamily::INET | AddressFamily::INET6)
        && sockopt::socket_type(&passed)? == SocketType::STREAM;
    if !is_tcp {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a descriptor that is no TCP connection"));
    }
    getpeername(&passed)?;
    let stream = TcpStream::from(passed);
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    fn check(what: &str, descriptor: impl Into<OwnedFd>, good: bool) {
        assert_eq!(checked(descriptor.into()).is_ok(), good, "{what}");
    }

    #[test]
    fn only_a_connection_is_taken() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        check("a connection", TcpStream::connect(address).unwrap(), true);
        check("a listener", listener, false);
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        datagrams.connect(address).unwrap();
        check("datagrams", datagrams, false);
        check("a Unix socket", std::os::unix::net::UnixStream::pair().unwrap().0, false);
        check("a file", std::fs::File::open("/dev/null").unwrap(), false);
        check("a directory", std::fs::File::open("/").unwrap(), false);
    }

    #[test]
    fn the_platform_names_the_port() {
        let run = Run { env: vec![b"PORT=1".to_vec(), b"PORTAL=x".to_vec()], ..Run::default() };
        let ServerOrder::Serve(serve) = server(run) else { panic!("a server is served") };
        assert_eq!(serve.env, [b"PORTAL=x".to_vec(), format!("PORT={PORT}").into_bytes()]);
    }
}
