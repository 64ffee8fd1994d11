//! The secrets that `dartcloud dev` makes once: the key that signs tokens, and the operator's account.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use common::base64;
use gateway::Founder;
use rand::Rng as _;

use crate::credentials::{self, Credentials};
use crate::data;

/// The account that the first start registers, and so the operator's.
const EMAIL: &str = "operator@localhost";

/// Uses the secret that was set, else the one that an earlier start made, else a fresh one.
pub(super) fn ensure_jwt_secret(data_dir: &Path, gateway: &mut gateway::Settings) -> Result<()> {
    let path = data_dir.join(data::JWT_SECRET);
    if !path.exists() && data::has_no_secret(&gateway.jwt) {
        // tempfile creates with mode 0600, and the name appears only when the text is there.
        let mut file = tempfile::NamedTempFile::new_in(data_dir)?;
        file.write_all(random_text().as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(&path).with_context(|| format!("cannot write {}", path.display()))?;
    }
    data::use_secret(data_dir, &mut gateway.jwt);
    Ok(())
}

/// The operator's account: the one that an earlier start wrote down, else a fresh one. The gateway makes it before
/// anybody can register, and the command line logs in with it. Also returns where it is written.
pub(super) fn ensure_operator(data_dir: &Path, url: String) -> Result<(Founder, PathBuf)> {
    let path = data_dir.join(credentials::FILE);
    let mut operator = credentials::load(&path)?.unwrap_or_else(|| Credentials {
        url: String::new(),
        email: EMAIL.to_owned(),
        password: Some(random_text()),
        access_token: None,
        refresh_token: None,
    });
    operator.url = url;
    credentials::save(&path, &operator)?;
    let password = operator.password.with_context(|| {
        format!("{} holds no password: add the operator's as `password`, or remove the file", path.display())
    })?;
    Ok((Founder { email: operator.email, password }, path))
}

/// 48 random bytes, as text.
fn random_text() -> String {
    let mut bytes = [0; 48];
    rand::rng().fill_bytes(&mut bytes);
    base64::encode(bytes)
}
