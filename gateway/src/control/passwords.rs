//! Passwords: argon2id on a few threads of their own, behind a bounded queue, so that logins can neither take the
//! cores of invocations nor pile up. The threads run only while a core is idle: at the ordinary priority, and at the
//! lowest niceness as well, a hash keeps whoever wakes on its core waiting for a time slice. Where no core is ever idle, a
//! thread of the ordinary priority takes what has waited for long.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use argon2::{Algorithm, Argon2, Params, PasswordHash, PasswordHasher as _, PasswordVerifier as _, Version};
use common::error::Code;
use prometheus::{Histogram, HistogramOpts, IntCounter, Registry};
use thread_priority::{
    NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy, set_thread_priority_and_policy, thread_native_id,
};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::error::Failure;

/// Memory of one hash, in KiB.
const MEMORY_KIB: u32 = 19 * 1024;
/// Passes over that memory.
const PASSES: u32 = 2;
/// Hashes that may wait for a thread.
const QUEUE: usize = 64;
/// How long one waits for an idle core.
const PATIENCE: Duration = Duration::from_secs(1);

/// The handle to the pool; its threads end when the last handle is gone.
#[derive(Clone)]
pub(crate) struct Passwords {
    jobs: SyncSender<Job>,
    /// Those that waited for long.
    late: SyncSender<Job>,
    busy: IntCounter,
    seconds: Histogram,
}

/// A hash to be made or checked, where somebody waits for it still.
type Job = Box<dyn FnOnce() + Send>;

/// The pool cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PasswordsError {
    /// The system gives no more threads.
    #[error("cannot start a thread for passwords")]
    Thread(#[source] std::io::Error),
    /// A metric has the name of another.
    #[error("a metric of the passwords' pool is registered twice")]
    Metric(#[from] prometheus::Error),
}

impl Passwords {
    /// Starts the threads.
    pub(crate) fn start(threads: u32, registry: &Registry) -> Result<Self, PasswordsError> {
        let busy = IntCounter::new("dartcloud_control_passwords_refused_total", "Hashes refused for a full queue")?;
        let seconds = Histogram::with_opts(
            HistogramOpts::new("dartcloud_control_password_seconds", "Time that one hash took on its thread")
                .buckets(vec![0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0]),
        )?;
        registry.register(Box::new(busy.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        let (jobs, queue) = sync_channel(QUEUE);
        let queue = Arc::new(Mutex::new(queue));
        let (late, late_queue) = sync_channel(QUEUE);
        let spawn = |name: String, work: Job| {
            std::thread::Builder::new().name(name).spawn(work).map(drop).map_err(PasswordsError::Thread)
        };
        for number in 0..threads {
            let queue = Arc::clone(&queue);
            let work = move || {
                run_when_idle();
                work(&queue);
            };
            spawn(format!("passwords-{number}"), Box::new(work))?;
        }
        spawn("passwords-late".into(), Box::new(move || work(&Mutex::new(late_queue))))?;
        Ok(Self { jobs, late, busy, seconds })
    }

    /// The hash of a new password, in PHC form.
    pub(crate) async fn hash(&self, password: String) -> Result<String, Failure> {
        let hashed = self.done(move || hash(&password)).await?;
        let failed = "the password could not be hashed";
        hashed.map_err(|error| Failure::caused(Code::Internal, failed, error.to_string()))
    }

    /// Whether `password` is the one behind `hash`. Without a hash (nobody has that e-mail) it takes as long and is
    /// `false`, so that time does not tell who is registered.
    pub(crate) async fn verify(&self, password: String, hash: Option<String>) -> Result<bool, Failure> {
        self.done(move || verify(&password, hash.as_deref())).await
    }

    /// What a thread makes of `task`.
    async fn done<T: Send + 'static>(&self, task: impl Fn() -> T + Send + Sync + 'static) -> Result<T, Failure> {
        let gone = || Failure::caused(Code::Internal, "passwords cannot be checked", "the passwords' threads are gone");
        let task = Arc::new(task);
        let submit = |queue: &SyncSender<Job>| {
            let ((reply, done), task, seconds) = (oneshot::channel(), Arc::clone(&task), self.seconds.clone());
            let job = move || {
                // Whoever left the queue by hanging up costs no hash.
                if !reply.is_closed() {
                    let _timer = seconds.start_timer();
                    // The receiver may have left meanwhile: then nobody needs it.
                    let _ = reply.send(task());
                }
            };
            queue.try_send(Box::new(job)).map(|()| done)
        };
        let mut first = submit(&self.jobs).map_err(|refused| match refused {
            TrySendError::Full(_) => {
                self.busy.inc();
                Failure::new(Code::Busy, "too many logins at once: try again in a moment")
            }
            TrySendError::Disconnected(_) => gone(),
        })?;
        if let Ok(done) = timeout(PATIENCE, &mut first).await {
            return done.map_err(|_| gone());
        }
        // Whoever is second finds that nobody waits, or works for nothing.
        let done = match submit(&self.late) {
            Ok(second) => tokio::select! { done = first => done, done = second => done },
            Err(_) => first.await,
        };
        done.map_err(|_| gone())
    }
}

/// From now on this thread runs on idle cores only (`SCHED_IDLE`, sched(7)).
fn run_when_idle() {
    let idle = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
    if let Err(error) = set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, idle) {
        tracing::debug!(?error, "passwords are hashed at the ordinary priority");
    }
}

fn work(queue: &Mutex<Receiver<Job>>) {
    loop {
        // The lock is held while waiting: the threads take turns, and only one of them has to wake.
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        job();
    }
}

fn argon2() -> Argon2<'static> {
    let params = Params::new(MEMORY_KIB, PASSES, 1, None).expect("19 MiB, 2 passes and 1 lane are valid parameters");
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

fn hash(password: &str) -> Result<String, argon2::password_hash::Error> {
    Ok(argon2().hash_password(password.as_bytes())?.to_string())
}

fn verify(password: &str, phc: Option<&str>) -> bool {
    match phc.map(PasswordHash::new) {
        Some(Ok(phc)) => argon2().verify_password(password.as_bytes(), &phc).is_ok(),
        Some(Err(error)) => {
            tracing::error!(%error, "a stored password hash is not in PHC form");
            false
        }
        None => {
            // Only its cost is wanted.
            let _ = hash(password);
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_and_its_hash() {
        let passwords = Passwords::start(1, &Registry::new()).unwrap();
        let hash = passwords.hash("correct horse".into()).await.unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert!(passwords.verify("correct horse".into(), Some(hash.clone())).await.unwrap());
        assert!(!passwords.verify("wrong horse".into(), Some(hash)).await.unwrap());
        assert!(!passwords.verify("correct horse".into(), Some("damaged".into())).await.unwrap());
        assert!(!passwords.verify("correct horse".into(), None).await.unwrap());
    }

    #[tokio::test]
    async fn without_an_idle_core_a_password_is_checked_all_the_same() {
        // A thread that never comes to it.
        let (jobs, _kept) = sync_channel(QUEUE);
        let passwords = Passwords { jobs, ..Passwords::start(1, &Registry::new()).unwrap() };
        let hash = passwords.hash("correct horse".into()).await.unwrap();
        assert!(passwords.verify("correct horse".into(), Some(hash)).await.unwrap());
    }

    #[tokio::test]
    async fn a_full_queue_is_busy_and_then_works_again() {
        let passwords = Passwords::start(1, &Registry::new()).unwrap();
        let calls = (0..QUEUE + 10).map(|_| passwords.verify("x".into(), None));
        let answers = futures_util::future::join_all(calls).await;
        let busy = answers.iter().filter(|answer| answer.as_ref().is_err_and(|e| e.code() == Code::Busy)).count();
        // The thread takes none, one or a few while the others queue up.
        assert!((1..=10).contains(&busy), "{busy} refused");
        assert_eq!(passwords.busy.get(), busy as u64);
        assert!(!passwords.verify("x".into(), None).await.unwrap());
    }
}
