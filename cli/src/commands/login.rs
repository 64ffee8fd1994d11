//! `dartcloud login`: trades e-mail and password for tokens, and keeps those. `dartcloud register` makes the account first.

use std::path::PathBuf;

use reqwest::Url;

use crate::api::{self, Server};
use crate::{credentials, failure, output, progress, prompt};

/// Where a server on this machine listens that nobody has configured.
const DEFAULT_URL: &str = "http://127.0.0.1:8080/";

/// The options of `login` and of `register`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    server: Server,
    /// Your e-mail address; asked for when absent.
    #[arg(long)]
    email: Option<String>,
    /// Read the password from standard input instead of asking for it.
    #[arg(long)]
    password_stdin: bool,
}

/// Whether there is an account already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Account {
    New,
    Known,
}

pub(crate) async fn run(args: Args, account: Account) -> anyhow::Result<()> {
    let path = credentials::user_file()
        .ok_or_else(|| failure::wrong("nowhere to keep the credentials: set HOME or XDG_CONFIG_HOME"))?;
    let url = server(&args.server, &path)?;
    let email = match args.email {
        Some(email) => email,
        None => prompt::line("E-mail: ", "name the account with `--email`")?,
    };
    let password = if args.password_stdin { prompt::password_from_stdin()? } else { prompt::password("Password: ")? };
    let ca = args.server.ca_file.as_deref();
    let signed_in = async {
        if account == Account::New {
            api::register(&url, ca, &email, &password).await?;
        }
        api::sign_in_as(&url, ca, &email, &password).await
    };
    let credentials = progress::shown(|| format!("waiting for {url}"), signed_in).await?;
    credentials::save(&path, &credentials)?;
    output::line(format_args!("Signed in to {url} as {email}."))?;
    Ok(())
}

/// The server that is named, else the one of the last login, else the one on this machine.
fn server(server: &Server, path: &std::path::Path) -> anyhow::Result<Url> {
    if let Some(url) = &server.url {
        return Ok(url.clone());
    }
    let of_dev: PathBuf = server.data_dir.join(credentials::FILE);
    for path in [path, &of_dev] {
        // A damaged file is what a login mends.
        if let Ok(Some(stored)) = credentials::load(path) {
            return Ok(api::base_url(&stored.url).unwrap_or(Url::parse(DEFAULT_URL)?));
        }
    }
    Ok(Url::parse(DEFAULT_URL)?)
}
