//! Builds on this node: a directory each, under the digest of what it was made from, up to a size limit. The one
//! that was not used for longest goes first; one in use never goes.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use common::digest::Digest;
use serde::{Deserialize, Serialize};

use crate::build::tree::{self, Extent};
use crate::metrics::Metrics;

/// How large the cache may become.
#[derive(Clone, Copy, Debug, clap::Args)]
#[group(id = "agent_build_cache")]
pub struct BuildCacheArgs {
    /// Most that builds take on this node's disk, in MiB, with what many small files cost; those in use stay even beyond
    /// it.
    #[arg(long, env = "BUILD_CACHE_MB", default_value_t = 10_240, value_parser = clap::value_parser!(u32).range(1..))]
    pub build_cache_mb: u32,
}

impl BuildCacheArgs {
    /// The limit, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        u64::from(self.build_cache_mb) * common::settings::MIB as u64
    }
}

/// Names of directories that are being made or removed begin so; what a crash left of them goes at start.
const UNFINISHED: &str = "tmp-";

/// A build in the cache. As long as a clone of its handle is held, it stays.
pub(crate) type BuildHandle = Arc<Build>;

/// A directory with a build, read-only by agreement.
#[derive(Debug)]
pub(crate) struct Build(PathBuf);

impl AsRef<Path> for Build {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

/// The builds of this node.
pub(crate) struct BuildCache {
    directory: PathBuf,
    max_bytes: u64,
    state: Mutex<State>,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct State {
    builds: HashMap<Digest, Cached>,
    /// Counts uses, so that later ones are larger.
    uses: u64,
}

struct Cached {
    build: BuildHandle,
    /// What it takes of the disk.
    room: u64,
    last_use: u64,
}

/// What lies beside a build: what it was when it was whole. A machine that lost power may have lost files.
#[derive(Serialize, Deserialize)]
struct Seal {
    extent: Extent,
}

impl State {
    fn room(&self) -> u64 {
        self.builds.values().map(|cached| cached.room).sum()
    }

    /// What may go first: the longest unused of those that nobody holds.
    fn evictable(&self) -> Option<Digest> {
        let unheld = self.builds.iter().filter(|(_, cached)| Arc::strong_count(&cached.build) == 1);
        unheld.min_by_key(|(_, cached)| cached.last_use).map(|(digest, _)| *digest)
    }
}

impl BuildCache {
    /// Opens the cache: removes what is unfinished or damaged, remembers the rest, the oldest as the least used.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub(crate) fn open(directory: PathBuf, max_bytes: u64, metrics: Arc<Metrics>) -> io::Result<Self> {
        std::fs::create_dir_all(&directory)?;
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&directory)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.starts_with(UNFINISHED) {
                tree::remove(&path)?;
            } else if let Ok(digest) = name.parse::<Digest>() {
                match whole(&directory, digest, &path) {
                    Ok((extent, sealed_at)) => found.push((sealed_at, digest, extent)),
                    Err(error) => {
                        tracing::warn!(%error, build = %digest, "a damaged build is removed; it is fetched or built again");
                        tree::remove(&path)?;
                    }
                }
            }
        }
        found.sort_by_key(|(sealed_at, ..)| *sealed_at);
        let mut state = State::default();
        for (_, digest, extent) in found {
            state.uses += 1;
            let build = Arc::new(Build(directory.join(digest.to_string())));
            state.builds.insert(digest, Cached { build, room: extent.room(), last_use: state.uses });
        }
        let cache = Self { directory, max_bytes, state: Mutex::new(state), metrics };
        cache.make_room(0);
        Ok(cache)
    }

    /// The build, if it is here. Holding it keeps it.
    pub(crate) fn get(&self, digest: Digest) -> Option<BuildHandle> {
        let mut state = self.lock();
        state.uses += 1;
        let now = state.uses;
        let cached = state.builds.get_mut(&digest)?;
        cached.last_use = now;
        Some(Arc::clone(&cached.build))
    }

    /// A directory for something unfinished, on the same file system; gone when it is dropped.
    ///
    /// # Errors
    /// The disk is full.
    pub(crate) fn workplace(&self) -> io::Result<tempfile::TempDir> {
        tempfile::Builder::new().prefix(UNFINISHED).tempdir_in(&self.directory)
    }

    /// Takes in a finished tree by a rename. One that is there already stays.
    ///
    /// # Errors
    /// The disk is full.
    pub(crate) fn insert(&self, digest: Digest, tree: &Path, extent: Extent) -> io::Result<BuildHandle> {
        if let Some(build) = self.get(digest) {
            return Ok(build);
        }
        self.make_room(extent.room());
        let seal = serde_json::to_vec(&Seal { extent }).map_err(io::Error::from)?;
        let path = self.directory.join(digest.to_string());
        let mut state = self.lock();
        state.uses += 1;
        let now = state.uses;
        if let Some(cached) = state.builds.get_mut(&digest) {
            // Somebody else was quicker.
            cached.last_use = now;
            return Ok(Arc::clone(&cached.build));
        }
        std::fs::write(seal_path(&self.directory, digest), seal)?;
        std::fs::rename(tree, &path)?;
        let build = Arc::new(Build(path));
        state.builds.insert(digest, Cached { build: Arc::clone(&build), room: extent.room(), last_use: now });
        self.show(&state);
        Ok(build)
    }

    /// Removes every build that nobody holds; whether there was one.
    pub(crate) fn evict_unused(&self) -> bool {
        let had = self.lock().evictable().is_some();
        self.make_room(u64::MAX);
        had
    }

    /// Removes builds until `coming` bytes more fit, or until all that are left are in use.
    fn make_room(&self, coming: u64) {
        let mut graves = Vec::new();
        {
            let mut state = self.lock();
            while state.room().saturating_add(coming) > self.max_bytes {
                let Some(digest) = state.evictable() else { break };
                match self.bury(digest) {
                    Ok(grave) => graves.push(grave),
                    Err(error) => {
                        tracing::warn!(%error, build = %digest, "a build that is not needed could not be removed");
                        break;
                    }
                }
                state.builds.remove(&digest);
                self.metrics.build_cache_evicted.inc();
            }
            self.show(&state);
        }
        // What takes long comes after the lock.
        for grave in graves {
            if let Err(error) = tree::remove(grave.path()) {
                tracing::warn!(%error, "a build that was evicted is left behind until the next start");
            }
        }
    }

    /// Takes a build away from its name in one step, so that half a build never bears a digest. It is called under the
    /// lock: the same build may come in again at any moment.
    fn bury(&self, digest: Digest) -> io::Result<tempfile::TempDir> {
        let grave = self.workplace()?;
        gone(std::fs::remove_file(seal_path(&self.directory, digest)))?;
        gone(std::fs::rename(self.directory.join(digest.to_string()), grave.path().join("build")))?;
        Ok(grave)
    }

    fn show(&self, state: &State) {
        self.metrics.build_cache_bytes.set(i64::try_from(state.room()).unwrap_or(i64::MAX));
    }

    /// The state is only touched by code that cannot panic half way, so a poisoned lock is as good as any.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is not there needs no removal.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn seal_path(directory: &Path, digest: Digest) -> PathBuf {
    directory.join(format!("{digest}.json"))
}

/// What a build's seal says, if the build is still that; and when it was sealed.
fn whole(directory: &Path, digest: Digest, path: &Path) -> io::Result<(Extent, std::time::SystemTime)> {
    let seal_path = seal_path(directory, digest);
    let seal: Seal = serde_json::from_slice(&std::fs::read(&seal_path)?)?;
    let extent = tree::measure(path)?;
    if extent != seal.extent {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "files of the build are missing or cut"));
    }
    Ok((extent, std::fs::metadata(&seal_path)?.modified()?))
}

#[cfg(test)]
mod tests {
    use prometheus::Registry;

    use super::*;

    fn open(directory: &Path, max_bytes: u64) -> BuildCache {
        let metrics = Metrics::new(&Registry::new()).unwrap();
        BuildCache::open(directory.to_owned(), max_bytes, metrics).unwrap()
    }

    fn add(cache: &BuildCache, name: &str, bytes: usize) -> BuildHandle {
        let place = cache.workplace().unwrap();
        let tree = place.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        std::fs::write(tree.join("main"), vec![b'x'; bytes]).unwrap();
        let extent = tree::measure(&tree).unwrap();
        cache.insert(Digest::of(name.as_bytes()), &tree, extent).unwrap()
    }

    fn check(cache: &BuildCache, expected: &[&str]) {
        let state = cache.lock();
        let here: Vec<_> = ["a", "b", "c", "d"]
            .into_iter()
            .filter(|name| state.builds.contains_key(&Digest::of(name.as_bytes())))
            .collect();
        assert_eq!(here, expected);
        for name in here {
            assert!(state.builds[&Digest::of(name.as_bytes())].build.0.join("main").exists());
        }
        let directories = std::fs::read_dir(&cache.directory)
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_type().unwrap().is_dir());
        assert_eq!(directories.count(), expected.len());
    }

    #[test]
    fn the_longest_unused_goes_and_never_one_in_use() {
        let directory = tempfile::tempdir().unwrap();
        let cache = open(directory.path(), 75_000);
        let held = add(&cache, "a", 20_000);
        drop(add(&cache, "b", 20_000));
        drop(add(&cache, "c", 20_000));
        cache.get(Digest::of(b"b")).unwrap();
        drop(add(&cache, "d", 20_000));
        check(&cache, &["a", "b", "d"]);
        drop(held);
        drop(add(&cache, "c", 60_000));
        check(&cache, &["c"]);
    }

    #[test]
    fn what_goes_may_come_in_again_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let cache = open(directory.path(), 6_000_000);
        for number in 0..300 {
            drop(add(&cache, &number.to_string(), 100));
        }
        drop(add(&cache, "a", 100));
        std::thread::scope(|scope| {
            // All of them make room for this one, `a` as the last.
            scope.spawn(|| drop(add(&cache, "large", 5_990_000)));
            while cache.lock().builds.contains_key(&Digest::of(b"a")) {
                std::thread::yield_now();
            }
            assert!(add(&cache, "a", 100).0.join("main").exists());
        });
        assert!(cache.lock().builds.values().all(|cached| cached.build.0.join("main").exists()));
    }

    #[test]
    fn a_restart_keeps_what_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let cache = open(directory.path(), 100_000);
        add(&cache, "a", 1000);
        let cut = add(&cache, "b", 1000);
        std::fs::write(cut.0.join("main"), "cut").unwrap();
        let unsealed = directory.path().join(Digest::of(b"c").to_string());
        std::fs::create_dir(unsealed).unwrap();
        std::fs::create_dir(directory.path().join("tmp-left")).unwrap();
        check(&open(directory.path(), 100_000), &["a"]);
        check(&open(directory.path(), 500), &[]);
    }
}
