//! `dartcloud backup`: everything that the platform keeps, in one file.

use std::path::PathBuf;

use store::artifacts::Artifacts;
use store::backup::{self, Progress};

use crate::data::{DataArgs, contents, mib, so_far, warn_of_missing};
use crate::{output, progress};

/// The options of `backup`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The file to write, a `tar.gz`; it must not be there. Passwords' hashes are in it, but not JWT_SECRET.
    file: PathBuf,
    #[command(flatten)]
    data: DataArgs,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let far = Progress::default();
    // The gateway may run, and the directory is its own.
    let artifacts = Artifacts::beside(&args.data.artifacts, args.data.functions())?;
    let database = args.data.database();
    let writing = backup::write(&database, &artifacts, &args.file, &far);
    let summary = progress::shown(|| so_far("backing up", &far), writing).await?;
    warn_of_missing(&summary);
    let size = tokio::fs::metadata(&args.file).await?.len();
    let (file, artifacts) = (args.file.display(), summary.artifacts);
    output::line(format_args!("{file}: {}, {artifacts} archives and builds; {}", contents(&summary), mib(size)))?;
    Ok(())
}
