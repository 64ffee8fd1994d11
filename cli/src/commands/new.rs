//! `dartcloud new`: a folder with a function that deploys and answers as it is.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::ValueEnum;
use include_dir::{Dir, include_dir};

use crate::{failure, output};

static TEMPLATES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/templates");

/// The options of `new`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The folder to make.
    folder: PathBuf,
    /// The language.
    #[arg(long, value_enum, default_value_t = Runtime::Python)]
    runtime: Runtime,
}

/// The languages that there is a template for.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Runtime {
    Dart,
    Native,
    Node,
    Python,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let Args { folder, runtime } = args;
    write(folder, *runtime)?;
    let (shown, word) = (folder.display(), output::word(&folder.display().to_string()));
    output::line(format_args!("{shown} holds a function. Next:"))?;
    let name = super::deploy::name_of(folder).map(|name| name.to_string());
    let named = if name.is_some() { "" } else { " --name hello" };
    output::line(format_args!("  dartcloud deploy {word}{named}"))?;
    let name = name.unwrap_or_else(|| "hello".to_owned());
    output::line(format_args!("  dartcloud invoke {name} --body '{{\"name\": \"you\"}}'"))?;
    Ok(())
}

fn write(folder: &Path, runtime: Runtime) -> anyhow::Result<()> {
    match fs::read_dir(folder).map(|mut entries| entries.next().is_none()) {
        Ok(true) => {}
        Ok(false) => {
            return Err(failure::wrong(format!("{} is not empty: name a new folder", folder.display())));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        Err(error) => return Err(error).with_context(|| format!("cannot use {}", folder.display())),
    }
    let word = runtime.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    let files = TEMPLATES.get_dir(&word).into_iter().flat_map(Dir::files);
    for file in files {
        let Some(name) = file.path().file_name() else { continue };
        let path = folder.join(name);
        let failed = || format!("cannot write {}", path.display());
        fs::write(&path, file.contents()).with_context(failed)?;
        if file.contents().starts_with(b"#!") {
            // What is compiled in has no mode; a script says itself that it is one.
            fs::set_permissions(&path, Permissions::from_mode(0o755)).with_context(failed)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use common::archive;
    use common::manifest::Manifest;
    use common::runtime::Runtimes;

    use super::*;

    #[test]
    fn every_template_is_what_it_says() {
        let runtimes = Runtimes::load(None).unwrap();
        for runtime in Runtime::value_variants() {
            let folder = tempfile::tempdir().unwrap();
            write(folder.path(), *runtime).unwrap();
            let packed = crate::pack::pack(folder.path()).unwrap();
            let contents = archive::check(packed.file, &archive::Caps::default()).unwrap();
            let manifest = Manifest::from_toml(contents.manifest.as_deref().unwrap()).unwrap();
            let exists = |path: &str, executable| contents.exists(path, executable);
            let found = runtimes.detect(None, None, exists).unwrap();
            assert_eq!(Some(&found.runtime), manifest.runtime.as_ref());
            assert_eq!(Some(&found.entrypoint), manifest.entrypoint.as_ref());
        }
    }

    #[test]
    fn nothing_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), Runtime::Python).unwrap();
        let error = write(folder.path(), Runtime::Node).unwrap_err();
        assert!(error.to_string().contains("is not empty"));
    }
}
