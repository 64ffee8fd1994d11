//! The start of a process: its program is found, its output goes into pipes.

use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::system::{self, Pid, Streams};

/// What to start.
pub(crate) struct Command<'a> {
    pub(crate) argv: &'a [Vec<u8>],
    pub(crate) env: &'a [Vec<u8>],
    pub(crate) cwd: &'a [u8],
}

/// A process that was started, and the reading ends of its output.
pub(crate) struct Process {
    pub(crate) pid: Pid,
    pub(crate) stdout: File,
    pub(crate) stderr: File,
}

impl Process {
    /// Starts it. `merged` sends its stderr where its stdout goes; `call` becomes its call descriptor.
    pub(crate) fn start(command: &Command<'_>, merged: bool, call: Option<&File>) -> io::Result<Self> {
        let argv = c_strings(command.argv)?;
        let env = c_strings(command.env)?;
        // The runner's own directory, because a child inherits it for nothing. It is looked up each time: the mount
        // at it may be new.
        std::env::set_current_dir(OsStr::from_bytes(command.cwd))?;
        let program = find(argv.first().ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?, command.env)?;
        let (stdout, stdout_writer) = system::pipe()?;
        let (stderr, stderr_writer) = system::pipe()?;
        system::never_wait(&stdout)?;
        system::never_wait(&stderr)?;
        let errors = if merged { &stdout_writer } else { &stderr_writer };
        let pid = system::spawn(&program, &argv, &env, &Streams { stdout: &stdout_writer, stderr: errors, call })?;
        Ok(Self { pid, stdout, stderr })
    }
}

fn c_strings(strings: &[Vec<u8>]) -> io::Result<Vec<CString>> {
    let c_string = |bytes: &Vec<u8>| CString::new(bytes.as_slice());
    strings.iter().map(c_string).collect::<Result<_, _>>().map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// The file behind a program's name: itself when it has a `/`, else the first executable in the `PATH` of `env`.
fn find(program: &CStr, env: &[Vec<u8>]) -> io::Result<CString> {
    if program.to_bytes().contains(&b'/') {
        return Ok(program.to_owned());
    }
    let path = env.iter().find_map(|pair| pair.strip_prefix(b"PATH=")).unwrap_or_default();
    for directory in path.split(|byte| *byte == b':').filter(|directory| !directory.is_empty()) {
        let file = [directory, b"/", program.to_bytes()].concat();
        let executable = std::fs::metadata(Path::new(OsStr::from_bytes(&file)))
            .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0);
        if executable {
            return CString::new(file).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL));
        }
    }
    Err(io::Error::from_raw_os_error(libc::ENOENT))
}
