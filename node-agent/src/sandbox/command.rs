//! The few programs of the machine that the agent runs as root: within a time limit, and with what they had to say as
//! the error.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// Runs `program` with `input` on its standard input.
pub(super) async fn run(program: &str, words: &[&str], input: &str, limit: Duration) -> io::Result<()> {
    let mut command = Command::new(program);
    // Where such programs are, also for who became root without root's PATH.
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command.args(words).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let finished = async {
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    let output = match tokio::time::timeout(limit, finished).await {
        Ok(output) => output.map_err(|error| io::Error::new(error.kind(), format!("{program}: {error}")))?,
        Err(_) => return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{program} took too long"))),
    };
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{program}: {}", said.trim().lines().next_back().unwrap_or("it failed"))))
}
