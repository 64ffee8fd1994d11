//! Questions to the person at the terminal.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::failure;
use crate::output;

/// Longest password that is read from a pipe, in bytes.
const MAX_PASSWORD_BYTES: u64 = 4096;

/// Asks for a line.
///
/// # Errors
/// There is no terminal; `instead` says what to do then.
pub(crate) fn line(question: &str, instead: &str) -> anyhow::Result<String> {
    if !io::stdin().is_terminal() {
        return Err(failure::wrong(format!("there is no terminal to ask at: {instead}")));
    }
    output::note_in_place(question);
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(answer.trim_end_matches(['\r', '\n']).to_owned())
}

/// Asks for a password and does not show it.
pub(crate) fn password(question: &str) -> anyhow::Result<String> {
    let _silent = Silent::new();
    line(question, "pass the password with `--password-stdin`")
}

/// Reads the password that was piped in: the first line.
pub(crate) fn password_from_stdin() -> anyhow::Result<String> {
    let mut text = String::new();
    io::stdin().lock().take(MAX_PASSWORD_BYTES).read_to_string(&mut text)?;
    match text.lines().next() {
        Some(password) if !password.is_empty() => Ok(password.to_owned()),
        _ => Err(failure::wrong("standard input holds no password: use `--password-stdin < file`")),
    }
}

/// The terminal does not echo while this lives.
struct Silent(Option<Termios>);

impl Silent {
    fn new() -> Self {
        let Ok(before) = tcgetattr(io::stdin()) else { return Self(None) };
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        silent.local_modes.insert(LocalModes::ECHONL);
        match tcsetattr(io::stdin(), OptionalActions::Flush, &silent) {
            Ok(()) => Self(Some(before)),
            Err(_) => Self(None),
        }
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // A terminal that went away needs no echo.
            let _ = tcsetattr(io::stdin(), OptionalActions::Flush, before);
        }
    }
}
