//! What every measurement is given: the cores, how long to measure, and where things are. Whatever is made lies in two
//! folders that `bench/run` removes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::child::run;
use crate::machine::Cores;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    /// Rounds of each side, in turn.
    pub(crate) rounds: usize,
    /// One round of load.
    pub(crate) round: Duration,
    /// Calls of a round that makes them one after the other; slow programs make a tenth.
    pub(crate) calls: usize,
    /// First calls, of one function each.
    pub(crate) first_calls: usize,
    /// Functions that are called at once for the first time.
    pub(crate) at_once: usize,
    /// Deployed functions.
    pub(crate) functions: usize,
}

impl Scale {
    pub(crate) const WHOLE: Self =
        Self { rounds: 5, round: Duration::from_secs(4), calls: 500, first_calls: 7, at_once: 200, functions: 10_000 };

    pub(crate) const QUICK: Self =
        Self { rounds: 3, round: Duration::from_secs(1), calls: 100, first_calls: 3, at_once: 20, functions: 1_000 };

    /// Calls of a round, of a program that takes tens of milliseconds.
    pub(crate) fn slow_calls(&self) -> usize {
        self.calls / 10
    }
}

/// What every measurement is given.
pub(crate) struct Stage {
    pub(crate) cores: Cores,
    pub(crate) scale: Scale,
    /// The directory of the release programs.
    pub(crate) programs: PathBuf,
    /// What is kept from run to run: the downloaded Dart program.
    pub(crate) kept: PathBuf,
    /// For all that is made.
    pub(crate) folder: PathBuf,
    /// The same in memory: neither side's exchange files touch a disk.
    pub(crate) memory: PathBuf,
}

impl Stage {
    /// A release program.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// A fresh folder.
    pub(crate) fn folder(&self) -> Result<PathBuf> {
        fresh(&self.folder)
    }

    /// A fresh folder in memory.
    pub(crate) fn memory(&self) -> Result<PathBuf> {
        fresh(&self.memory)
    }

    /// Compiles C to a static program that runs here and in any image.
    pub(crate) fn compile(&self, source: &str, program: &Path) -> Result<()> {
        let file = self.folder()?.join("program.c");
        std::fs::write(&file, source)?;
        run(Command::new("cc").args(["-O2", "-static", "-pthread", "-o"]).arg(program).arg(&file)).map(|_| ())
    }
}

fn fresh(parent: &Path) -> Result<PathBuf> {
    Ok(tempfile::Builder::new().prefix("").rand_bytes(4).tempdir_in(parent)?.keep())
}

/// Rounds in turn: A B A B.
pub(crate) fn interleave<A, B>(
    rounds: usize,
    mut first: impl FnMut() -> Result<A>,
    mut second: impl FnMut() -> Result<B>,
) -> Result<(Vec<A>, Vec<B>)> {
    let (mut firsts, mut seconds) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        firsts.push(first()?);
        seconds.push(second()?);
    }
    Ok((firsts, seconds))
}
