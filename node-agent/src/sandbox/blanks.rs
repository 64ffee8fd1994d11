//! The blank sandboxes of a node, kept ready in the background as [`Shelves`] decides.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::names::RuntimeName;
use common::runtime::{Run, Runtime, Runtimes};
use tokio::sync::Notify;

use super::blank::Blank;
use super::docker::DockerError;
use super::shelves::Shelves;
use super::site::Fault;
use super::{SandboxArgs, Sandboxes};

/// Blanks that start at once: few, so that the starts which calls wait for are not held up by those that none waits
/// for.
const AT_ONCE: usize = 2;
/// How often the shelves are looked at.
const ROUND: Duration = Duration::from_secs(1);

/// The blanks that are ready. Runtimes whose blanks are alike share them.
#[derive(Debug)]
pub(crate) struct Blanks {
    kinds: HashMap<RuntimeName, usize>,
    /// A runtime of each kind.
    makers: Vec<RuntimeName>,
    shelves: Mutex<Shelves<Blank>>,
    /// One was taken.
    taken: Notify,
}

impl Blanks {
    pub(crate) fn new(runtimes: &Runtimes, args: &SandboxArgs) -> Self {
        let (mut kinds, mut makers) = (HashMap::new(), Vec::<(&RuntimeName, &Runtime)>::new());
        for (name, runtime) in runtimes.all() {
            let kind = makers.iter().position(|(_, other)| alike(&runtime.run, &other.run)).unwrap_or_else(|| {
                makers.push((name, runtime));
                makers.len() - 1
            });
            kinds.insert(name.clone(), kind);
        }
        let shelves = Shelves::new(makers.len(), args.sandbox_blanks as usize, args.sandbox_blanks_mb);
        let makers = makers.into_iter().map(|(name, _)| name.clone()).collect();
        Self { kinds, makers, shelves: Mutex::new(shelves), taken: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Shelves<Blank>> {
        self.shelves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A blank for a function of `runtime`, if one is ready.
    pub(crate) fn take(&self, runtime: &RuntimeName) -> Option<Blank> {
        let kind = *self.kinds.get(runtime)?;
        let (found, broken) = self.lock().take(kind, Blank::is_ready);
        drop(broken);
        self.taken.notify_one();
        found
    }

    /// How many are ready.
    pub(crate) fn ready(&self) -> usize {
        self.lock().ready()
    }

    #[cfg(test)]
    pub(crate) fn kinds(&self) -> usize {
        self.makers.len()
    }

    /// The memory that a blank for `runtime` counts as, in MiB, once one was measured.
    #[cfg(test)]
    pub(crate) fn price_mb(&self, runtime: &RuntimeName) -> Option<f64> {
        self.lock().price_mb(self.kinds[runtime])
    }

    /// Ends all of them.
    pub(crate) fn close(&self) {
        let blanks = self.lock().close();
        drop(blanks);
    }
}

/// Whether blanks of the two are the same: one image, and the same process that waits.
fn alike(one: &Run, other: &Run) -> bool {
    one.images == other.images && one.spare == other.spare && (one.spare.is_none() || one.env == other.env)
}

impl Sandboxes {
    /// Keeps the shelves filled until the node closes.
    pub(super) async fn keep_blanks(self: Arc<Self>) {
        let mut round = tokio::time::interval(ROUND);
        loop {
            tokio::select! {
                _ = round.tick() => {
                    // Reads a file for each kind, which takes microseconds.
                    let gone = self.blanks.lock().tick(Blank::is_ready, Blank::used_mb);
                    drop(gone);
                }
                () = self.blanks.taken.notified() => {}
                () = self.stop.cancelled() => return,
            }
            self.fill();
        }
    }

    fn fill(self: &Arc<Self>) {
        let starts = self.blanks.lock().plan(Instant::now(), AT_ONCE);
        for kind in starts {
            let sandboxes = Arc::clone(self);
            self.tasks.spawn_on(async move { sandboxes.start_blank(kind).await }, &self.runtime);
        }
    }

    async fn start_blank(self: &Arc<Self>, kind: usize) {
        match self.make_blank(kind).await {
            Ok(Some(blank)) => {
                let unwanted = self.blanks.lock().started(kind, blank);
                drop(unwanted);
            }
            // Nobody pulls an image for functions that there may never be: the first deploy does.
            Ok(None) => self.blanks.lock().failed(kind, Instant::now()),
            Err(fault) => {
                tracing::warn!(%fault, "a blank sandbox could not be started; trying again later");
                self.metrics.failed.inc();
                self.blanks.lock().failed(kind, Instant::now());
            }
        }
        self.fill();
    }

    async fn make_blank(&self, kind: usize) -> Result<Option<Blank>, Fault> {
        let runtime = self.runtimes.get(&self.blanks.makers[kind]).ok_or(Fault::Runtime)?;
        let image = self.site.engine.present(&runtime.run.images).await.map_err(|error: DockerError| error)?;
        let Some(image) = image else { return Ok(None) };
        let _turn = self.starts.acquire().await;
        let memory_mb = self.args.sandbox_blank_memory_mb;
        Blank::start(&self.site, &self.args, runtime, image, memory_mb, false).await.map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtimes_that_are_alike_share() {
        let runtimes = Runtimes::load(None).unwrap();
        let args = <super::super::tests::Settings as clap::Parser>::parse_from(["test"]).args;
        let blanks = Blanks::new(&runtimes, &args);
        let kind = |name: &str| blanks.kinds[&name.parse::<RuntimeName>().unwrap()];
        assert_eq!(kind("dart"), kind("native"));
        assert_ne!(kind("python"), kind("node"));
    }
}
