//! Paths of the requests that an agent makes on a [`Kind::Calls`](super::Kind::Calls) connection.

use crate::digest::Digest;
use crate::ids::{DeploymentId, HolderId};

/// `GET`: the archive's bytes.
pub const ARCHIVES: &str = "/archives/";
/// `GET`, `PUT`: a build as a `tar.gz`. `GET` is 404 when no node has stored it.
pub const BUILDS: &str = "/builds/";
/// `GET`: a [`DeploymentSpec`](crate::function::DeploymentSpec) as JSON; 404 when nothing serves it.
pub const DEPLOYMENTS: &str = "/deployments/";
/// `POST`: a JSON array of [`Record`](crate::invocation::Record)s; 204 when the store has them all.
pub const RECORDS: &str = "/records";
/// `PUT`: the right to build from an archive, or its renewal; 204 when it is the holder's for [`CLAIM_SECONDS`], 409 while
/// it is another's. `DELETE` ends it. An older gateway knows of no such right.
pub const CLAIMS: &str = "/claims/";
/// How long a claim lasts that nobody renews, in seconds.
pub const CLAIM_SECONDS: u32 = 60;
/// `GET`: the gateway's time, RFC 3339.
pub const CLOCK: &str = "/clock";
/// `POST`: a [`Renewal`](super::Renewal), answered by a [`Credential`](super::Credential).
pub const CERTIFICATE: &str = "/certificate";

/// The path of an archive.
#[must_use]
pub fn archive(digest: Digest) -> String {
    format!("{ARCHIVES}{digest}")
}

/// The path of a build.
#[must_use]
pub fn build(digest: Digest) -> String {
    format!("{BUILDS}{digest}")
}

/// The path of a holder's right to build from an archive.
#[must_use]
pub fn claim(archive: Digest, holder: HolderId) -> String {
    format!("{CLAIMS}{archive}/{holder}")
}

/// The path of a deployment.
#[must_use]
pub fn deployment(id: DeploymentId) -> String {
    format!("{DEPLOYMENTS}{id}")
}
