//! Signs of life from what takes long.

use std::fmt::Display;
use std::io::{self, IsTerminal as _};
use std::time::Duration;

use tokio::time::{Instant, interval_at};

use crate::output;

/// Until here nobody wonders.
const QUIET: Duration = Duration::from_secs(2);
/// How often a terminal is told.
const TERMINAL: Duration = Duration::from_millis(500);
/// How often a log is told.
const LOG: Duration = Duration::from_secs(10);

/// Waits for `work`; past two seconds it says so on standard error, by `doing`, again and again.
pub(crate) async fn shown<T, D: Display>(doing: impl Fn() -> D, work: impl Future<Output = T>) -> T {
    let terminal = io::stderr().is_terminal();
    let begun = Instant::now();
    let mut ticks = interval_at(begun + QUIET, if terminal { TERMINAL } else { LOG });
    let mut shown = false;
    tokio::pin!(work);
    let done = loop {
        tokio::select! {
            done = &mut work => break done,
            _ = ticks.tick() => {
                let text = format!("{} ({} s)", doing(), begun.elapsed().as_secs());
                if terminal { output::note_in_place(text) } else { output::note(text) }
                shown = true;
            }
        }
    };
    if shown && terminal {
        output::note_in_place("");
    }
    done
}
