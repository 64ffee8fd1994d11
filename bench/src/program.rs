//! The functions that are measured: a folder each, and how the same program starts without the platform.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use common::runtime::Runtimes;
use flate2::Compression;
use flate2::write::GzEncoder;

use crate::child::{bounded, run};
use crate::stage::Stage;

/// The npm package that holds a genuine Dart program, compiled ahead of time.
const SASS: &str = "sass-embedded-linux-x64@1.108.2";

/// How long a download may take, and a question to the Engine, in seconds.
const DOWNLOAD: u32 = 300;
const ANSWERS: u32 = 30;

/// A function, ready to be deployed and to be run bare.
pub(crate) struct Program {
    /// What a reader knows it by.
    pub(crate) language: &'static str,
    /// What its archive holds.
    pub(crate) folder: PathBuf,
    /// The image that its sandboxes have.
    pub(crate) image: String,
    /// How it starts, in `/function`.
    pub(crate) command: Vec<String>,
    /// What the runtime sets for it, `KEY=VALUE`.
    pub(crate) env: Vec<String>,
}

impl Program {
    /// The least: `noop.c`.
    pub(crate) fn native(stage: &Stage) -> Result<Self> {
        let folder = stage.folder()?;
        stage.compile(include_str!("../noop.c"), &folder.join("main"))?;
        Self::of("native", "native", "main", folder)
    }

    /// One that rests and needs no processor: `rest.c`.
    pub(crate) fn rest(stage: &Stage) -> Result<Self> {
        let folder = stage.folder()?;
        stage.compile(include_str!("../rest.c"), &folder.join("main"))?;
        Self::of("native", "native", "main", folder)
    }

    /// The least of the http contract: `server.c`.
    pub(crate) fn server(stage: &Stage) -> Result<Self> {
        let folder = stage.folder()?;
        stage.compile(include_str!("../server.c"), &folder.join("main"))?;
        Self::of("native server", "native", "main", folder)
    }

    pub(crate) fn python(stage: &Stage) -> Result<Self> {
        let folder = stage.folder()?;
        std::fs::write(folder.join("main.py"), include_str!("../functions/main.py"))?;
        Self::of("Python", "python", "main.py", folder)
    }

    pub(crate) fn node(stage: &Stage) -> Result<Self> {
        let folder = stage.folder()?;
        std::fs::write(folder.join("index.js"), include_str!("../functions/index.js"))?;
        Self::of("Node.js", "node", "index.js", folder)
    }

    /// Dart Sass behind a small shell script; no Dart SDK is needed to run it.
    pub(crate) fn dart(stage: &Stage) -> Result<Self> {
        let kept = stage.kept.join(SASS.replace('@', "-"));
        let source = kept.join("package/dart-sass/src");
        if !source.join("sass.snapshot").exists() {
            std::fs::create_dir_all(&kept)?;
            npm_unpack(SASS, &kept)?;
        }
        let folder = stage.folder()?;
        for name in ["dart", "sass.snapshot"] {
            std::fs::copy(source.join(name), folder.join(name)).with_context(|| format!("{SASS} without {name}"))?;
        }
        std::fs::write(folder.join("main"), include_str!("../functions/sass.sh"))?;
        run(Command::new("chmod").arg("+x").arg(folder.join("main")))?;
        Self::of("Dart", "native", "main", folder)
    }

    fn of(language: &'static str, runtime: &str, entrypoint: &str, folder: PathBuf) -> Result<Self> {
        let runtimes = Runtimes::load(None)?;
        let runtime = runtimes.get(&runtime.parse()?).context("no such runtime")?;
        // An image may run its program as somebody else.
        run(Command::new("chmod").args(["-R", "a+rX"]).arg(&folder))?;
        Ok(Self {
            language,
            folder,
            image: present(&runtime.run.images)?,
            command: runtime.run_command(entrypoint),
            env: runtime.run.env.iter().map(|(key, value)| format!("{key}={value}")).collect(),
        })
    }

    /// The language as a function's name may hold it.
    pub(crate) fn slug(&self) -> String {
        self.language.to_lowercase().replace('.', "")
    }

    /// The folder as `tar.gz`.
    pub(crate) fn archive(&self) -> Result<Vec<u8>> {
        let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        archive.append_dir_all("", &self.folder)?;
        Ok(archive.into_inner()?.finish()?)
    }
}

/// The first of these images that the Engine has.
fn present(images: &[String]) -> Result<String> {
    let there = |image: &&String| {
        bounded(ANSWERS, "docker")
            .args(["image", "inspect", image])
            .output()
            .is_ok_and(|output| output.status.success())
    };
    images.iter().find(there).cloned().with_context(|| format!("none of {images:?} is there: run `script/images`"))
}

/// Fetches a package by the npm of the Node.js image, so that the machine needs none of its own.
fn npm_unpack(package: &str, into: &Path) -> Result<()> {
    let runtimes = Runtimes::load(None)?;
    let image = present(&runtimes.get(&"node".parse()?).context("no runtime `node`")?.run.images)?;
    let authorities = Path::new("/etc/ssl/certs/ca-certificates.crt");
    let mut command = bounded(DOWNLOAD, "docker");
    command.args(["run", "--rm", "-v"]).arg(format!("{}:/out", into.display()));
    if authorities.exists() {
        command.arg("-v").arg(format!("{}:/authorities.crt:ro", authorities.display()));
        command.args(["-e", "NODE_EXTRA_CA_CERTS=/authorities.crt"]);
    }
    let fetch = "npm pack \"$0\" --pack-destination /out && tar -xzf /out/*.tgz -C /out --no-same-owner";
    run(command.args([&image, "sh", "-c", fetch, package])).map(|_| ())
}
