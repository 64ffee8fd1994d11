//! What the runner asks of the kernel, and the only file of it with `unsafe`.

use std::ffi::{CStr, CString, c_char, c_int};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};

use runner::wire::CALL_DESCRIPTOR;

/// A process's id.
pub(crate) type Pid = libc::pid_t;

/// What became of the children, asked without waiting.
pub(crate) enum Waited {
    /// This one ended.
    Ended { pid: Pid, status: c_int, peak_rss_bytes: u64 },
    /// Some run.
    Running,
    /// There is none.
    Childless,
}

/// Makes the memory and the `/proc` entries of this process unreadable to its own user.
pub(crate) fn become_undumpable() -> io::Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }).map(drop)
}

/// Closes whatever descriptors this process was born with but its three streams: a container runtime that forgot
/// one must not hand it to a function.
pub(crate) fn close_inherited() {
    // SAFETY: takes numbers only, and nothing in this process owns a descriptor yet. Kernels before 5.9 do not have
    // it; there the runtime's own care has to do.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
}

/// Makes processes whose parent ended children of this one; PID 1 has them anyway.
pub(crate) fn adopt_orphans() -> io::Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }).map(drop)
}

/// Whether this process is the first of its PID namespace, so that it may signal all others in it.
pub(crate) fn is_first() -> bool {
    std::process::id() == 1
}

static CHILDREN: AtomicI32 = AtomicI32::new(-1);

/// A descriptor that is readable after a child ended, until it is read.
pub(crate) fn watch_children() -> io::Result<File> {
    // SAFETY: takes numbers only; the descriptor is new, so nobody else owns it.
    let counter = unsafe { File::from_raw_fd(check(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK))?) };
    CHILDREN.store(counter.as_raw_fd(), Ordering::Relaxed);
    // SAFETY: an all-zero `sigaction` is a valid value: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(c_int) = on_child;
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: `action` is initialised, and `on_child` does only what a signal handler may.
    check(unsafe { libc::sigaction(libc::SIGCHLD, &action, std::ptr::null_mut()) })?;
    Ok(counter)
}

extern "C" fn on_child(_: c_int) {
    let one = 1_u64.to_ne_bytes();
    // SAFETY: `write` and `errno` are async-signal-safe, `one` is valid for its eight bytes, and what was
    // interrupted finds `errno` as it was.
    unsafe {
        let errno = *libc::__errno_location();
        libc::write(CHILDREN.load(Ordering::Relaxed), one.as_ptr().cast(), one.len());
        *libc::__errno_location() = errno;
    }
}

/// Waits until one of `descriptors` is ready or `timeout_ms` is over (negative: without end). An interruption by a
/// signal counts as readiness of nothing.
pub(crate) fn poll(descriptors: &mut [libc::pollfd], timeout_ms: c_int) -> io::Result<()> {
    // SAFETY: pointer and length are of one live slice.
    let ready = unsafe { libc::poll(descriptors.as_mut_ptr(), descriptors.len() as libc::nfds_t, timeout_ms) };
    match check(ready) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {
            descriptors.iter_mut().for_each(|descriptor| descriptor.revents = 0);
            Ok(())
        }
        other => other.map(drop),
    }
}

/// A pipe, neither end of which is inherited: to read from, and to write to.
pub(crate) fn pipe() -> io::Result<(File, OwnedFd)> {
    let mut ends: [RawFd; 2] = [-1; 2];
    // SAFETY: `ends` has room for two descriptors.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    // SAFETY: both descriptors are new, so nobody else owns them.
    Ok(unsafe { (File::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

/// Makes our end of a pipe return at once where it would wait.
pub(crate) fn never_wait(end: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::fcntl(end.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) }).map(drop)
}

/// What a new program has open beside nothing on its stdin.
pub(crate) struct Streams<'a> {
    pub(crate) stdout: &'a OwnedFd,
    pub(crate) stderr: &'a OwnedFd,
    /// What is to be its descriptor [`CALL_DESCRIPTOR`].
    pub(crate) call: Option<&'a File>,
}

/// Starts a program as the leader of a session of its own, with default signals. This is `posix_spawn`, which shares
/// memory until the program is loaded, and so costs less than a fork.
pub(crate) fn spawn(program: &CStr, argv: &[CString], env: &[CString], streams: &Streams<'_>) -> io::Result<Pid> {
    let argv = pointers(argv);
    let env = pointers(env);
    let setup = Setup::new(streams)?;
    let mut pid: Pid = 0;
    // SAFETY: `setup` is initialised; `program` and the strings behind both null-ended arrays outlive the call.
    let errno = unsafe {
        libc::posix_spawn(&mut pid, program.as_ptr(), &setup.files, &setup.attributes, argv.as_ptr(), env.as_ptr())
    };
    error_number(errno).map(|()| pid)
}

/// A null-ended array of pointers, valid as long as `strings`.
fn pointers(strings: &[CString]) -> Vec<*mut c_char> {
    strings.iter().map(|string| string.as_ptr().cast_mut()).chain([std::ptr::null_mut()]).collect()
}

/// How a child differs from us.
struct Setup {
    files: libc::posix_spawn_file_actions_t,
    attributes: libc::posix_spawnattr_t,
}

impl Setup {
    fn new(streams: &Streams<'_>) -> io::Result<Self> {
        // SAFETY: both are plain C structs that `init` fills before anything reads them, and the signal sets are
        // initialised by `sigemptyset`. An error leaves them to `drop`, which is sound after `init`, and `init`
        // does not fail in glibc.
        unsafe {
            let mut setup: Self = std::mem::zeroed();
            error_number(libc::posix_spawn_file_actions_init(&mut setup.files))?;
            error_number(libc::posix_spawnattr_init(&mut setup.attributes))?;
            let files = &mut setup.files;
            error_number(libc::posix_spawn_file_actions_addopen(files, 0, c"/dev/null".as_ptr(), libc::O_RDONLY, 0))?;
            error_number(libc::posix_spawn_file_actions_adddup2(files, streams.stdout.as_raw_fd(), 1))?;
            error_number(libc::posix_spawn_file_actions_adddup2(files, streams.stderr.as_raw_fd(), 2))?;
            // The last one, since it may be the number of one of the two. One that has it already loses its
            // close-on-exec by this, too.
            if let Some(call) = streams.call {
                error_number(libc::posix_spawn_file_actions_adddup2(files, call.as_raw_fd(), CALL_DESCRIPTOR))?;
            }
            let mut signals: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut signals);
            error_number(libc::posix_spawnattr_setsigmask(&mut setup.attributes, &signals))?;
            // Rust ignores it, and what is ignored stays so in a new program.
            libc::sigaddset(&mut signals, libc::SIGPIPE);
            error_number(libc::posix_spawnattr_setsigdefault(&mut setup.attributes, &signals))?;
            let signals = libc::POSIX_SPAWN_SETSIGDEF | libc::POSIX_SPAWN_SETSIGMASK;
            let flags = signals as libc::c_short | libc::POSIX_SPAWN_SETSID;
            error_number(libc::posix_spawnattr_setflags(&mut setup.attributes, flags))?;
            Ok(setup)
        }
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        // SAFETY: `new` initialised both, and nothing uses them again.
        unsafe {
            libc::posix_spawn_file_actions_destroy(&mut self.files);
            libc::posix_spawnattr_destroy(&mut self.attributes);
        }
    }
}

/// Kills every other process of the sandbox. Outside of one, where that would be everything of this user, only the
/// process group that `leader` leads. That nothing is left to kill is no error.
pub(crate) fn kill_all(leader: Pid) {
    let whom = if is_first() { -1 } else { -leader };
    // SAFETY: takes numbers only. -1 is sent by PID 1 alone, whose namespace holds nothing but the function.
    unsafe { libc::kill(whom, libc::SIGKILL) };
}

/// Takes one ended child, of whatever kind, off the kernel's list.
pub(crate) fn reap() -> io::Result<Waited> {
    let mut status = 0;
    // SAFETY: an all-zero `rusage` is a valid value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live values of the right type. `__WALL` takes children of other exit signals
    // than SIGCHLD, too, which a function makes with `clone`.
    let pid = unsafe { libc::wait4(-1, &mut status, libc::WNOHANG | libc::__WALL, &mut usage) };
    match check(pid) {
        Ok(0) => Ok(Waited::Running),
        Ok(pid) => Ok(Waited::Ended { pid, status, peak_rss_bytes: usage.ru_maxrss.unsigned_abs() * 1024 }),
        Err(error) if error.raw_os_error() == Some(libc::ECHILD) => Ok(Waited::Childless),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Waited::Running),
        Err(error) => Err(error),
    }
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn error_number(errno: c_int) -> io::Result<()> {
    if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) }
}
