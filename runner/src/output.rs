//! One output stream of a process: what it prints, up to its cap; the rest is read and dropped, so that a process
//! that prints too much does not stand still.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::time::{Duration, Instant};

use runner::wire::{self, Stream};

/// How long a server's cap holds until the next begins.
const WINDOW: Duration = Duration::from_secs(1);

/// The reading end of a stream.
pub(crate) struct Output {
    stream: Stream,
    pipe: Option<File>,
    left: u64,
    truncated: bool,
    /// A server's: its cap, and since when it counts.
    window: Option<(u64, Instant)>,
}

impl Output {
    pub(crate) fn new(stream: Stream, pipe: File, cap_bytes: u64) -> Self {
        Self { stream, pipe: Some(pipe), left: cap_bytes, truncated: false, window: None }
    }

    /// The same for a server: the cap is for any one second, because its output has no end.
    pub(crate) fn endless(self, cap_bytes: u64) -> Self {
        Self { window: Some((cap_bytes, Instant::now())), ..self }
    }

    /// The pipe, as long as somebody may write to it.
    pub(crate) fn pipe(&self) -> Option<&File> {
        self.pipe.as_ref()
    }

    /// Whether something was dropped.
    pub(crate) fn truncated(&self) -> bool {
        self.truncated
    }

    /// Reads once and appends what is under the cap to `outbox`; `false` when nothing was there to read.
    pub(crate) fn pump(&mut self, buffer: &mut [u8], outbox: &mut Vec<u8>) -> bool {
        let Some(mut pipe) = self.pipe.as_ref() else { return false };
        match pipe.read(buffer) {
            Ok(count) if count > 0 => {
                if let Some((cap, since)) = self.window.as_mut().filter(|(_, since)| since.elapsed() >= WINDOW) {
                    (self.left, *since) = (*cap, Instant::now());
                }
                let kept = usize::try_from(self.left).unwrap_or(usize::MAX).min(count);
                if kept > 0 {
                    wire::encode_output(outbox, self.stream, &buffer[..kept]);
                }
                self.left -= kept as u64;
                self.truncated |= kept < count;
                true
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => false,
            // The end, or an error that will not mend itself.
            _ => {
                self.pipe = None;
                false
            }
        }
    }

    /// Takes what is left in the pipe, up to `limit_bytes`, and closes it: whoever still has its other end shall
    /// not be heard.
    pub(crate) fn finish(&mut self, buffer: &mut [u8], outbox: &mut Vec<u8>, limit_bytes: usize) {
        let mut rounds = limit_bytes / buffer.len();
        while rounds > 0 && self.pump(buffer, outbox) {
            rounds -= 1;
        }
        self.pipe = None;
    }
}
