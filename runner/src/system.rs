//! What the runner asks of the kernel, and the only file of it with `unsafe`.

use std::ffi::{CStr, CString, c_char, c_int};
use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
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

/// Begins a TCP connection that does not block; `true` when it is made already.
pub(crate) fn connect(address: SocketAddr) -> io::Result<(OwnedFd, bool)> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: takes numbers only; the descriptor is new, so nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(check(libc::socket(family, kind, 0))?) };
    let connected = match address {
        SocketAddr::V4(address) => {
            // SAFETY: an all-zero address is a valid value.
            let mut raw: libc::sockaddr_in = unsafe { std::mem::zeroed() };
            raw.sin_family = libc::AF_INET as libc::sa_family_t;
            raw.sin_port = address.port().to_be();
            raw.sin_addr.s_addr = u32::from_ne_bytes(address.ip().octets());
            connect_to(&socket, &raw)
        }
        SocketAddr::V6(address) => {
            // SAFETY: an all-zero address is a valid value.
            let mut raw: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
            raw.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            raw.sin6_port = address.port().to_be();
            raw.sin6_addr.s6_addr = address.ip().octets();
            connect_to(&socket, &raw)
        }
    };
    match connected {
        Ok(()) => Ok((socket, true)),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok((socket, false)),
        Err(error) => Err(error),
    }
}

fn connect_to<A>(socket: &OwnedFd, address: &A) -> io::Result<()> {
    let length = std::mem::size_of::<A>() as libc::socklen_t;
    // SAFETY: pointer and length are of one live value, whose type is the address of the socket's own family.
    check(unsafe { libc::connect(socket.as_raw_fd(), std::ptr::from_ref(address).cast(), length) }).map(drop)
}

/// How a connection that was begun went.
pub(crate) fn connect_error(socket: &OwnedFd) -> io::Result<()> {
    let mut errno: c_int = 0;
    let mut length = std::mem::size_of::<c_int>() as libc::socklen_t;
    // SAFETY: both pointers are to live values, and `length` is the first one's size.
    let got = unsafe {
        let errno: *mut c_int = &mut errno;
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ERROR, errno.cast(), &mut length)
    };
    check(got)?;
    error_number(errno)
}

/// Sends `bytes`, and with the first of them some descriptors.
pub(crate) fn send_with<const N: usize>(
    socket: &impl AsRawFd,
    bytes: &[u8],
    passed: [BorrowedFd<'_>; N],
) -> io::Result<usize> {
    const { assert!(N * std::mem::size_of::<RawFd>() <= 16) };
    let passed = passed.map(|descriptor| descriptor.as_raw_fd());
    let passed_bytes = std::mem::size_of_val(&passed) as libc::c_uint;
    /// Room for four descriptors and their header, aligned as headers are.
    #[repr(C)]
    union Control {
        _align: libc::cmsghdr,
        bytes: [u8; 64],
    }
    let mut control = Control { bytes: [0; 64] };
    let mut piece = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: an all-zero `msghdr` is a valid value. `control` has room for what is written: CMSG_SPACE of four
    // descriptors is 32 bytes. The kernel only reads what `piece` points to. All pointers outlive the call.
    let sent = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &mut piece;
        message.msg_iovlen = 1;
        message.msg_control = std::ptr::from_mut(&mut control).cast();
        message.msg_controllen = libc::CMSG_SPACE(passed_bytes) as _;
        let header = libc::CMSG_FIRSTHDR(&message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(passed_bytes) as _;
        libc::CMSG_DATA(header).cast::<[RawFd; N]>().write_unaligned(passed);
        libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_NOSIGNAL)
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
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

/// Whether this child stands still because a signal stopped it.
pub(crate) fn is_stopped(pid: Pid) -> bool {
    // SAFETY: an all-zero `siginfo_t` is a valid value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let how = libc::WSTOPPED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: the pointer is to a live value of the right type; WNOWAIT leaves everything as it is.
    let asked = unsafe { libc::waitid(libc::P_PID, pid.unsigned_abs(), &mut info, how) };
    asked == 0 && info.si_signo != 0
}

/// Whether this is the only child. Where the kernel does not say, it is not.
pub(crate) fn is_only_child(pid: Pid) -> bool {
    let mut text = [0; 32];
    let read = File::open("/proc/thread-self/children").and_then(|mut list| list.read(&mut text));
    let only = read.ok().and_then(|count| std::str::from_utf8(&text[..count]).ok()?.trim().parse().ok());
    only == Some(pid)
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn error_number(errno: c_int) -> io::Result<()> {
    if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) }
}
