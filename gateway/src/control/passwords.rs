//! Passwords: argon2id on a few threads of their own, behind a bounded queue, so that logins can neither take the
//! cores of invocations nor pile up.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use argon2::{Algorithm, Argon2, Params, PasswordHash, PasswordHasher as _, PasswordVerifier as _, Version};
use common::error::Code;
use prometheus::{Histogram, HistogramOpts, IntCounter, Registry};
use tokio::sync::oneshot;

use super::error::Failure;

/// Memory of one hash, in KiB.
const MEMORY_KIB: u32 = 19 * 1024;
/// Passes over that memory.
const PASSES: u32 = 2;
/// Hashes that may wait for a thread.
const QUEUE: usize = 64;

/// The handle to the pool; its threads end when the last handle is gone.
#[derive(Clone)]
pub(crate) struct Passwords {
    jobs: SyncSender<Job>,
    busy: IntCounter,
}

enum Job {
    Hash { password: String, reply: oneshot::Sender<Result<String, argon2::password_hash::Error>> },
    Verify { password: String, hash: Option<String>, reply: oneshot::Sender<bool> },
}

/// The pool cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The system gives no more threads.
    #[error("cannot start a thread for passwords")]
    Thread(#[source] std::io::Error),
    /// A metric has the name of another.
    #[error("a metric of the passwords' pool is registered twice")]
    Metric(#[from] prometheus::Error),
}

impl Passwords {
    /// Starts the threads.
    pub(crate) fn start(threads: u32, registry: &Registry) -> Result<Self, StartError> {
        let busy = IntCounter::new("dartcloud_control_passwords_refused_total", "Hashes refused for a full queue")?;
        let seconds = Histogram::with_opts(
            HistogramOpts::new("dartcloud_control_password_seconds", "Time that one hash took on its thread")
                .buckets(vec![0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0]),
        )?;
        registry.register(Box::new(busy.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        let (jobs, queue) = sync_channel(QUEUE);
        let queue = Arc::new(Mutex::new(queue));
        for number in 0..threads {
            let (queue, seconds) = (Arc::clone(&queue), seconds.clone());
            std::thread::Builder::new()
                .name(format!("passwords-{number}"))
                .spawn(move || work(&queue, &seconds))
                .map_err(StartError::Thread)?;
        }
        Ok(Self { jobs, busy })
    }

    /// The hash of a new password, in PHC form.
    pub(crate) async fn hash(&self, password: String) -> Result<String, Failure> {
        let (reply, hash) = oneshot::channel();
        self.submit(Job::Hash { password, reply })?;
        let failed = |cause| Failure::caused(Code::Internal, "the password could not be hashed", cause);
        match hash.await {
            Ok(hash) => hash.map_err(|error| failed(error.to_string())),
            Err(gone) => Err(failed(gone.to_string())),
        }
    }

    /// Whether `password` is the one behind `hash`. Without a hash (nobody has that e-mail) it takes as long and is
    /// `false`, so that time does not tell who is registered.
    pub(crate) async fn verify(&self, password: String, hash: Option<String>) -> Result<bool, Failure> {
        let (reply, verdict) = oneshot::channel();
        self.submit(Job::Verify { password, hash, reply })?;
        verdict.await.map_err(|gone| Failure::caused(Code::Internal, "the password could not be checked", gone))
    }

    fn submit(&self, job: Job) -> Result<(), Failure> {
        self.jobs.try_send(job).map_err(|refused| match refused {
            TrySendError::Full(_) => {
                self.busy.inc();
                Failure::new(Code::Busy, "too many logins at once: try again in a moment")
            }
            TrySendError::Disconnected(_) => {
                Failure::caused(Code::Internal, "passwords cannot be checked", "the passwords' threads are gone")
            }
        })
    }
}

fn work(queue: &Mutex<Receiver<Job>>, seconds: &Histogram) {
    loop {
        // The lock is held while waiting: the threads take turns, and only one of them has to wake.
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        // Whoever left the queue by hanging up costs no hash.
        match job {
            Job::Hash { reply, .. } if reply.is_closed() => {}
            Job::Verify { reply, .. } if reply.is_closed() => {}
            Job::Hash { password, reply } => {
                let _timer = seconds.start_timer();
                // The receiver may have left meanwhile: then nobody needs the hash.
                let _ = reply.send(hash(&password));
            }
            Job::Verify { password, hash, reply } => {
                let _timer = seconds.start_timer();
                let _ = reply.send(verify(&password, hash.as_deref()));
            }
        }
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
