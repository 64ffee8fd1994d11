//! Runtimes: how a language is recognised, built and started. Each is one TOML file under `deploy/runtimes`,
//! compiled in; an operator's own directory adds to them or replaces them.

use std::collections::BTreeMap;
use std::path::Path;

use include_dir::{Dir, include_dir};
use serde::Deserialize;

use crate::digest::Digest;
use crate::names::RuntimeName;

static BUILT_IN: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../deploy/runtimes");

/// One language.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Runtime {
    /// Order of detection among runtimes that all fit: lower first.
    pub priority: u32,
    /// An archive is of this runtime when all the files of one of these lists exist. A trailing `*` asks for
    /// the executable bit as well: `main*`.
    pub detect: Vec<Vec<String>>,
    /// Where the function starts when the manifest does not say: the first of these that exists.
    pub entrypoints: Vec<String>,
    /// How an archive becomes a build; without it the archive is the build.
    pub build: Option<Recipe>,
    /// How a build is started.
    pub run: Run,
}

/// How an archive becomes a build.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Container images to build in; the first that the Engine has, else the first is pulled.
    pub images: Vec<String>,
    /// Only when one of these files exists; always when empty.
    #[serde(default)]
    pub when: Vec<String>,
    /// The command, in `/build` (a writable copy of the archive). `{entrypoint}` is replaced. What it leaves in
    /// `/build` is the build, or what it leaves in `output`.
    pub command: Vec<String>,
    /// The directory, relative to `/build`, that becomes the build; all of `/build` when absent.
    pub output: Option<String>,
    /// Whether the command needs a network (package registries).
    #[serde(default)]
    pub network: bool,
    /// Added to the build's environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

/// How a build is started.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// Container images to run in; the first that the Engine has, else the first is pulled.
    pub images: Vec<String>,
    /// The command, in `/function` (the build, read-only). `{entrypoint}` is replaced.
    pub command: Vec<String>,
    /// Added to the function's environment; the function's own wins.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// What makes a process ready before its call, where starting one is slow.
    pub spare: Option<Spare>,
}

/// A process that starts before its call: an interpreter that has not loaded the function yet. Descriptor 3 tells it
/// the call, as one JSON object, when that comes: `argv` (what follows the program in `command`), `cwd`, and `env`
/// (what the function adds to the environment). It then behaves as if it had been started so. An end without a word
/// means that it is not needed.
///
/// Where `fork` is set the program may be started as a fork server instead, which starts once and is forked for each
/// call. Descriptor 3 is a Unix socket then. Each byte on it brings three descriptors and asks for one process: its
/// stdout, its stderr, and its own descriptor 3 as above. The process is a session's leader, inherits no other
/// descriptor, and is orphaned, so that the runner is its parent; then four bytes in the machine's order answer with its
/// id. The fork server lives while functions run, so it must be out of their reach (undumpable).
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spare {
    /// The command; `{script}` is replaced by a file that holds `script`.
    pub command: Vec<String>,
    /// The program that waits.
    pub script: String,
    /// Whether `script` can be a fork server.
    #[serde(default)]
    pub fork: bool,
    /// Variables of the runtime's own `env` that it starts without and is told with the call: what they name is the
    /// function's, and none of that may run before.
    #[serde(default)]
    pub late_env: Vec<String>,
    /// Beginnings of the names of variables that must be there when the program starts: a function that sets one
    /// has its processes started the ordinary way.
    #[serde(default)]
    pub reserved_env: Vec<String>,
}

impl Spare {
    /// The command that starts it, where `script` is at `path`.
    #[must_use]
    pub fn command(&self, path: &str) -> Vec<String> {
        self.command.iter().map(|word| word.replace("{script}", path)).collect()
    }

    /// Of a runtime's `env`: what it starts with, and what it is told with the call.
    #[must_use]
    pub fn split_env(&self, env: &BTreeMap<String, String>) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
        env.clone().into_iter().partition(|(name, _)| !self.late_env.contains(name))
    }

    /// Whether it can become a process of a function that sets these variables.
    #[must_use]
    pub fn fits(&self, env: &BTreeMap<String, String>) -> bool {
        !env.keys().any(|name| self.reserved_env.iter().any(|start| name.starts_with(start)))
    }
}

impl Runtime {
    /// The command that starts `entrypoint`.
    #[must_use]
    pub fn run_command(&self, entrypoint: &str) -> Vec<String> {
        fill(&self.run.command, entrypoint)
    }
}

impl Recipe {
    /// The command that builds `entrypoint`.
    #[must_use]
    pub fn build_command(&self, entrypoint: &str) -> Vec<String> {
        fill(&self.command, entrypoint)
    }

    /// Whether an archive in which `exists` holds needs this recipe.
    #[must_use]
    pub fn applies(&self, exists: impl Fn(&str) -> bool) -> bool {
        self.when.is_empty() || self.when.iter().any(|file| exists(file))
    }
}

fn fill(command: &[String], entrypoint: &str) -> Vec<String> {
    command.iter().map(|word| word.replace("{entrypoint}", entrypoint)).collect()
}

/// All runtimes that this installation knows.
#[derive(Clone, Debug)]
pub struct Runtimes(BTreeMap<RuntimeName, (Runtime, Digest)>);

/// A runtime's file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("runtime file {file}: {reason}")]
pub struct InvalidRuntime {
    file: String,
    reason: String,
}

/// No runtime fits the archive; the sentence lists what would.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoRuntime(String);

/// What an archive was found to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detected {
    /// The language.
    pub runtime: RuntimeName,
    /// The file that starts it.
    pub entrypoint: String,
}

impl Runtimes {
    /// The built-in runtimes and those of `directory` (`*.toml`), which win.
    ///
    /// # Errors
    /// A file cannot be read or is not a runtime.
    pub fn load(directory: Option<&Path>) -> Result<Self, InvalidRuntime> {
        let mut runtimes = Self(BTreeMap::new());
        for file in BUILT_IN.files() {
            runtimes.add(file.path(), file.contents())?;
        }
        let Some(directory) = directory else { return Ok(runtimes) };
        let failed =
            |error: std::io::Error| InvalidRuntime { file: directory.display().to_string(), reason: error.to_string() };
        for entry in std::fs::read_dir(directory).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|extension| extension == "toml") {
                runtimes.add(&path, &std::fs::read(&path).map_err(failed)?)?;
            }
        }
        Ok(runtimes)
    }

    /// The runtime called `name`.
    #[must_use]
    pub fn get(&self, name: &RuntimeName) -> Option<&Runtime> {
        self.0.get(name).map(|(runtime, _)| runtime)
    }

    /// Names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &RuntimeName> {
        self.0.keys()
    }

    /// Every image that some runtime may run or build in, by runtime.
    pub fn all(&self) -> impl Iterator<Item = (&RuntimeName, &Runtime)> {
        self.0.iter().map(|(name, (runtime, _))| (name, runtime))
    }

    /// Under what a build of `archive` is kept: what goes in decides, so equal input is built once.
    #[must_use]
    pub fn build_digest(&self, archive: Digest, name: &RuntimeName, entrypoint: &str) -> Option<Digest> {
        let (_, recipe) = self.0.get(name)?;
        Some(Digest::of_parts(&[BUILDER.as_bytes(), archive.bytes(), recipe.bytes(), entrypoint.as_bytes()]))
    }

    /// Finds runtime and entrypoint: what the manifest names, else what the files say. `exists(path, executable)`
    /// tells whether the archive has a file, with its executable bit where asked.
    ///
    /// # Errors
    /// No runtime fits, the named one is unknown, or the entrypoint is not in the archive.
    pub fn detect(
        &self,
        named: Option<&RuntimeName>,
        entrypoint: Option<&str>,
        exists: impl Fn(&str, bool) -> bool,
    ) -> Result<Detected, NoRuntime> {
        let name = match named {
            Some(name) if self.0.contains_key(name) => name,
            Some(name) => return Err(NoRuntime(format!("runtime `{name}` is unknown: use one of {}", self.list()))),
            None => self.matching(&exists).ok_or_else(|| NoRuntime(self.explain()))?,
        };
        let (runtime, _) = &self.0[name];
        let entrypoint = match entrypoint {
            Some(file) if exists(file, false) => file,
            Some(file) => return Err(NoRuntime(format!("entrypoint `{file}` is not in the archive"))),
            None => runtime
                .entrypoints
                .iter()
                .map(|file| split_executable(file).0)
                .find(|file| exists(file, false))
                .ok_or_else(|| {
                    NoRuntime(format!(
                        "the archive has no entrypoint for {name}: add {}, or name one in {}",
                        runtime.entrypoints.join(" or "),
                        crate::manifest::FILE
                    ))
                })?,
        };
        Ok(Detected { runtime: name.clone(), entrypoint: entrypoint.to_owned() })
    }

    fn matching(&self, exists: &impl Fn(&str, bool) -> bool) -> Option<&RuntimeName> {
        let fits = |runtime: &Runtime| {
            runtime.detect.iter().any(|files| {
                files.iter().all(|file| {
                    let (file, executable) = split_executable(file);
                    exists(file, executable)
                })
            })
        };
        let fitting = self.0.iter().filter(|(_, (runtime, _))| fits(runtime));
        fitting.min_by_key(|(_, (runtime, _))| runtime.priority).map(|(name, _)| name)
    }

    fn explain(&self) -> String {
        let mut by_priority: Vec<_> = self.0.iter().collect();
        by_priority.sort_by_key(|(_, (runtime, _))| runtime.priority);
        let lines: Vec<_> = by_priority
            .into_iter()
            .map(|(name, (runtime, _))| {
                let ways: Vec<_> = runtime.detect.iter().map(|files| describe(files)).collect();
                format!("{} ({name})", ways.join(", "))
            })
            .collect();
        format!("no runtime found: at its root the archive needs one of: {}", lines.join("; "))
    }

    fn list(&self) -> String {
        self.0.keys().map(RuntimeName::as_str).collect::<Vec<_>>().join(", ")
    }

    fn add(&mut self, path: &Path, contents: &[u8]) -> Result<(), InvalidRuntime> {
        let refuse = |reason: String| InvalidRuntime { file: path.display().to_string(), reason };
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let name: RuntimeName = stem.parse().map_err(|error| refuse(format!("{error}")))?;
        let text = std::str::from_utf8(contents).map_err(|error| refuse(error.to_string()))?;
        let runtime: Runtime = toml::from_str(text).map_err(|error| refuse(error.to_string()))?;
        if runtime.run.images.is_empty() || runtime.run.command.is_empty() || runtime.entrypoints.is_empty() {
            return Err(refuse("`entrypoints`, `run.images` and `run.command` need at least one word each".into()));
        }
        if runtime.build.as_ref().is_some_and(|build| build.images.is_empty() || build.command.is_empty()) {
            return Err(refuse("`build.images` and `build.command` need at least one word each".into()));
        }
        if runtime.run.spare.as_ref().is_some_and(|spare| spare.command.is_empty()) {
            return Err(refuse("`run.spare.command` needs at least one word".into()));
        }
        self.0.insert(name, (runtime, Digest::of(contents)));
        Ok(())
    }
}

/// Raised when the way of building changes, so that old builds are not taken for new ones.
const BUILDER: &str = "1";

fn split_executable(file: &str) -> (&str, bool) {
    file.strip_suffix('*').map_or((file, false), |file| (file, true))
}

fn describe(files: &[String]) -> String {
    let one = |file: &String| match split_executable(file) {
        (file, true) => format!("an executable {file}"),
        (file, false) => file.to_owned(),
    };
    files.iter().map(one).collect::<Vec<_>>().join(" and ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(files: &[&str], expected: Result<(&str, &str), &str>) {
        let runtimes = Runtimes::load(None).unwrap();
        let exists = |path: &str, executable: bool| {
            files.contains(&format!("{path}*").as_str()) || (!executable && files.contains(&path))
        };
        match (runtimes.detect(None, None, exists), expected) {
            (Ok(found), Ok((runtime, entrypoint))) => {
                assert_eq!((found.runtime.as_str(), found.entrypoint.as_str()), (runtime, entrypoint), "{files:?}");
            }
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error} has no {part}"),
            (got, expected) => panic!("{files:?}: {got:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn a_spare_fits_or_not() {
        let runtimes = Runtimes::load(None).unwrap();
        let spare = runtimes.get(&"node".parse().unwrap()).unwrap().run.spare.as_ref().unwrap();
        let check = |names: &[&str], expected: bool| {
            let env = names.iter().map(|name| ((*name).to_owned(), String::new())).collect();
            assert_eq!(spare.fits(&env), expected, "{names:?}");
        };
        check(&[], true);
        check(&["GREETING", "MY_NODE_NAME"], true);
        check(&["GREETING", "NODE_OPTIONS"], false);
        assert_eq!(spare.command("/x"), ["node", "/x"]);
        let python = &runtimes.get(&"python".parse().unwrap()).unwrap().run;
        let (early, late) = python.spare.as_ref().unwrap().split_env(&python.env);
        assert!(early.contains_key("HOME") && !early.contains_key("PYTHONPATH") && late.contains_key("PYTHONPATH"));
    }

    #[test]
    fn files_tell_the_runtime() {
        check(&["pubspec.yaml", "main.dart"], Ok(("dart", "main.dart")));
        check(&["pubspec.yaml", "bin/main.dart"], Ok(("dart", "bin/main.dart")));
        check(&["main.py"], Ok(("python", "main.py")));
        check(&["requirements.txt", "main.py"], Ok(("python", "main.py")));
        check(&["requirements.txt"], Err("no entrypoint for python"));
        check(&["package.json", "index.js"], Ok(("node", "index.js")));
        check(&["main.js"], Ok(("node", "main.js")));
        check(&["main*"], Ok(("native", "main")));
        check(&["bootstrap*"], Ok(("native", "bootstrap")));
        check(&["main"], Err("an executable main"));
        check(&["pubspec.yaml"], Err("pubspec.yaml and main.dart"));
        check(&[], Err("no runtime found"));
    }
}
