//! The options of a program, from its command line and its environment.

use std::ffi::OsStr;
use std::net::{IpAddr, SocketAddr};

use clap::{Command, Parser};

/// Reads them. A variable that is set but empty counts as not set: so compose files pass what nobody set.
///
/// # Errors
/// They are wrong, or the help or the version was asked for.
pub fn parse<P: Parser>() -> Result<P, clap::Error> {
    let mut command = without(P::command(), &|name| std::env::var_os(name).is_some_and(|value| value.is_empty()));
    let matches = command.try_get_matches_from_mut(std::env::args_os())?;
    P::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

/// The command that asks for no variable which is empty.
fn without(command: Command, is_empty: &dyn Fn(&OsStr) -> bool) -> Command {
    command
        .mut_args(|arg| if arg.get_env().is_some_and(is_empty) { arg.env(None::<&'static str>) } else { arg })
        .mut_subcommands(|command| without(command, is_empty))
}

/// An address with its port.
///
/// # Errors
/// It is none; the sentence shows one.
pub fn socket_address(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse().map_err(|_| "write an IP address with its port, such as 127.0.0.1:9464, 0.0.0.0:9464 or [::1]:9464")
}

/// An address.
///
/// # Errors
/// It is none; the sentence shows one.
pub fn ip_address(text: &str) -> Result<IpAddr, &'static str> {
    text.parse().map_err(|_| "write an IP address, such as 127.0.0.1, or 0.0.0.0 for every one of this machine")
}

#[cfg(test)]
mod tests {
    use clap::Arg;

    use super::*;

    fn check(empty: &[&str], expected: [Option<&str>; 2]) {
        let inner = Command::new("inner").arg(Arg::new("port").env("PORT"));
        let command = Command::new("outer").arg(Arg::new("place").env("PLACE")).subcommand(inner);
        let command = without(command, &|name| empty.iter().any(|empty| name == *empty));
        let asks = |command: &Command| {
            let asked = command.get_arguments().filter_map(Arg::get_env).next();
            asked.map(|name| name.to_string_lossy().into_owned())
        };
        let inner = command.get_subcommands().next().unwrap();
        assert_eq!([asks(&command).as_deref(), asks(inner).as_deref()], expected, "{empty:?}");
    }

    #[test]
    fn empty_is_not_set() {
        check(&[], [Some("PLACE"), Some("PORT")]);
        check(&["PORT"], [Some("PLACE"), None]);
        check(&["PORT", "PLACE"], [None, None]);
    }

    #[test]
    fn addresses() {
        assert!(socket_address("127.0.0.1:80").is_ok() && socket_address("[::1]:80").is_ok());
        for wrong in ["9464", "localhost:9464", ""] {
            assert!(socket_address(wrong).unwrap_err().contains("127.0.0.1:9464"), "{wrong}");
        }
        assert!(ip_address("::").is_ok());
        assert!(ip_address("localhost").unwrap_err().contains("127.0.0.1"));
    }
}
