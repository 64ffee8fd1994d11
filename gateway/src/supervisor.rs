//! What a supervisor has of this program: the signal that has it start its own successor, and, of systemd, the word that it
//! is ready.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use tokio::process::Command;

/// The flag of a successor.
const TAKE_OVER: &str = "--take-over";

/// Tells systemd, if that started us, that we are ready; and, once another process was the unit's, that now this one is.
pub(crate) fn ready() {
    if let Some(socket) = std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty()) {
        if let Err(error) = notify(&socket, &format!("MAINPID={}\nREADY=1", std::process::id())) {
            tracing::warn!(%error, "systemd cannot be told that this gateway is ready");
        }
    }
}

fn notify(socket: &OsStr, words: &str) -> io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(words.as_bytes(), &address).map(drop)
}

/// Starts the program that lies where this one was started from, with the same settings, to take our place; and waits for
/// its end, or until we have ended.
pub(crate) async fn start_successor() {
    let words: Vec<_> = std::env::args_os().collect();
    let Some((program, settings)) = words.split_first() else {
        return tracing::error!("it is not known how this program was started");
    };
    let settings = settings.iter().filter(|word| *word != TAKE_OVER);
    match Command::new(program).args(settings).arg(TAKE_OVER).spawn() {
        Err(error) => tracing::error!(%error, ?program, "no successor can be started: this gateway goes on"),
        Ok(mut successor) => {
            tracing::info!(pid = successor.id(), ?program, "a successor is started");
            match successor.wait().await {
                Ok(status) => tracing::warn!(%status, "the successor has ended"),
                Err(error) => tracing::warn!(%error, "the successor cannot be watched"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        notify(path.as_os_str(), "READY=1").unwrap();
        let mut words = [0; 64];
        let length = socket.recv(&mut words).unwrap();
        assert_eq!(&words[..length], b"READY=1");

        let name = format!("dartcloud-test-{}", std::process::id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        notify(OsStr::new(&format!("@{name}")), "READY=1").unwrap();
        assert_eq!(socket.recv(&mut words).unwrap(), length);
        assert!(notify(OsStr::new("/nowhere/notify"), "READY=1").is_err());
    }
}
