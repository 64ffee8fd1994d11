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
    /// A server that listens on $PORT, instead of a program that is started for each call.
    #[arg(long)]
    http: bool,
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
    let Args { folder, runtime, http } = args;
    write(folder, template(*runtime, *http)?)?;
    let (shown, word) = (folder.display(), output::word(&folder.display().to_string()));
    output::line(format_args!("{shown} holds a function. Next:"))?;
    let name = super::deploy::name_of(folder).map(|name| name.to_string());
    let named = if name.is_some() { "" } else { " --name hello" };
    output::line(format_args!("  dartcloud deploy {word}{named}"))?;
    let name = name.unwrap_or_else(|| "hello".to_owned());
    output::line(format_args!("  dartcloud invoke {name} --body '{{\"name\": \"you\"}}'"))?;
    Ok(())
}

/// The files that a function begins with.
fn template(runtime: Runtime, http: bool) -> anyhow::Result<&'static Dir<'static>> {
    let word = runtime.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    let name = if http { format!("{word}-http") } else { word.clone() };
    let sentence = || format!("there is no server to begin with for {word}: --http goes with --runtime python or node");
    TEMPLATES.get_dir(&name).ok_or_else(|| failure::wrong(sentence()))
}

fn write(folder: &Path, template: &Dir<'_>) -> anyhow::Result<()> {
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
    for file in template.files() {
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
    use common::manifest::ContractWord;
    use common::manifest::Manifest;
    use common::runtime::Runtimes;

    use super::*;

    #[test]
    fn every_template_is_what_it_says() {
        let runtimes = Runtimes::load(None).unwrap();
        let kinds = Runtime::value_variants().iter().flat_map(|runtime| [(runtime, false), (runtime, true)]);
        let mut servers = 0;
        for (runtime, http) in kinds {
            let folder = tempfile::tempdir().unwrap();
            let Ok(template) = template(*runtime, http) else {
                assert!(http, "{runtime:?} has no template");
                continue;
            };
            servers += u32::from(http);
            write(folder.path(), template).unwrap();
            let packed = crate::pack::pack(folder.path()).unwrap();
            let contents = archive::check(packed.file, &archive::Caps::default()).unwrap();
            let manifest = Manifest::from_toml(contents.manifest.as_deref().unwrap()).unwrap();
            let exists = |path: &str, executable| contents.exists(path, executable);
            let found = runtimes.detect(None, None, exists).unwrap();
            assert_eq!(Some(&found.runtime), manifest.runtime.as_ref());
            assert_eq!(Some(&found.entrypoint), manifest.entrypoint.as_ref());
            assert_eq!(manifest.contract == Some(ContractWord::Http), http);
        }
        assert_eq!(servers, 2);
    }

    #[test]
    fn nothing_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), template(Runtime::Python, false).unwrap()).unwrap();
        let error = write(folder.path(), template(Runtime::Node, false).unwrap()).unwrap_err();
        assert!(error.to_string().contains("is not empty"));
    }
}
