//! `dartcloud restore`: a backup becomes a platform again.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gateway::JwtArgs;
use store::artifacts::Artifacts;
use store::backup::{Backup, Progress};

use crate::data::{self, DataArgs, contents, so_far, warn_of_missing};
use crate::failure::wrong;
use crate::{output, progress};

/// The options of `restore`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The backup.
    file: PathBuf,
    /// Only read it and say what is in it.
    #[arg(long)]
    check: bool,
    /// Delete everything that is in the database first.
    #[arg(long)]
    replace: bool,
    /// Leave out the fleet's authority, where the JWT_SECRET is lost that it is sealed under. The next gateway makes
    /// another one, and every node has to join again.
    #[arg(long)]
    forget_authority: bool,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    jwt: JwtArgs,
}

pub(crate) async fn run(mut args: Args) -> anyhow::Result<()> {
    let far = Progress::default();
    let opening = Backup::open(&args.file, &far);
    let mut backup = progress::shown(|| so_far("reading the backup", &far), opening).await?;
    warn_of_missing(backup.summary());
    if args.check {
        let (file, age, summary) = (args.file.display(), age(backup.made_at()), backup.summary());
        let (contents, artifacts) = (contents(summary), summary.artifacts);
        output::line(format_args!("{file}: whole, {age}; {contents}, {artifacts} archives and builds"))?;
        return Ok(());
    }
    if args.forget_authority {
        backup.forget_authority();
    }
    data::use_secret(&args.data.data_dir, &mut args.jwt);
    check_secret(&args.jwt, &backup)?;

    let _held = gateway::hold(&args.data.data_dir)?;
    let artifacts = Artifacts::connect(&args.data.artifacts, args.data.functions()).await?;
    let (database, far) = (args.data.database(), Progress::default());
    let restoring = backup.restore(&database, &artifacts, args.replace, &far);
    progress::shown(|| so_far("restoring", &far), restoring).await?;
    let summary = backup.summary();
    output::line(format_args!("restored: {}, {} archives and builds", contents(summary), summary.artifacts))?;
    Ok(())
}

/// Before anything is changed: a gateway that cannot open the authority would not start.
fn check_secret(jwt: &JwtArgs, backup: &Backup) -> anyhow::Result<()> {
    let Some(authority) = backup.authority() else { return Ok(()) };
    let is = match gateway::opens(jwt, authority) {
        Ok(true) => return Ok(()),
        Ok(false) => "another one is set",
        Err(_) if data::has_no_secret(jwt) => "none is set",
        Err(error) => return Err(error.into()),
    };
    Err(wrong(format!(
        "the fleet's authority in this backup is sealed under the JWT_SECRET of its platform, and {is}: set that one \
         (JWT_SECRET or JWT_SECRET_FILE); if it is lost, --forget-authority leaves the authority out, and every node \
         has to join again"
    )))
}

/// How old a backup is.
fn age(made_at: u64) -> String {
    let age = SystemTime::now().duration_since(UNIX_EPOCH + Duration::from_secs(made_at)).unwrap_or_default();
    match age.as_secs() / 3600 {
        0 => format!("{} minutes old", age.as_secs() / 60),
        hours @ 1..48 => format!("{hours} hours old"),
        hours => format!("{} days old", hours / 24),
    }
}
