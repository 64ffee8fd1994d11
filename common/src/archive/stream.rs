//! The archive's bytes: gzip, undone under the caps on both of its sides.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::GzDecoder;

use super::Caps;
use super::refused::{Refused, Stop};
use crate::settings::MIB;

/// A tar's unit, in bytes.
pub(super) const BLOCK: usize = 512;

/// What may be unpacked whatever the ratio, in bytes: small archives of very regular files are no bombs.
const RATIO_FREE_BYTES: u64 = 10 * MIB as u64;

/// How much is skipped or looked through at once, in bytes.
const CHUNK: usize = 32 * 1024;

/// The unpacked bytes of an archive.
pub(super) struct Stream<'c, R> {
    gzip: GzDecoder<Input<R>>,
    unpacked: u64,
    caps: &'c Caps,
}

impl<'c, R: Read> Stream<'c, R> {
    pub(super) fn new(archive: R, caps: &'c Caps) -> Self {
        let input =
            Input { reader: BufReader::new(archive), left: caps.archive_bytes(), taken: 0, over: false, failed: None };
        Self { gzip: GzDecoder::new(input), unpacked: 0, caps }
    }

    /// The next block; `None` at the end.
    pub(super) fn block(&mut self) -> Result<Option<[u8; BLOCK]>, Stop> {
        let mut block = [0; BLOCK];
        match self.fill(&mut block)? {
            0 => Ok(None),
            BLOCK => Ok(Some(block)),
            _ => Err(cut_off().into()),
        }
    }

    /// The next `size` bytes and the padding behind them. The caller has put a cap on `size`.
    pub(super) fn body(&mut self, size: usize) -> Result<Vec<u8>, Stop> {
        let mut body = vec![0; size.next_multiple_of(BLOCK)];
        if self.fill(&mut body)? < body.len() {
            return Err(cut_off().into());
        }
        body.truncate(size);
        Ok(body)
    }

    /// The data of a file of `size` bytes.
    pub(super) fn data(&mut self, size: u64) -> Data<'_, 'c, R> {
        Data { stream: self, left: size, padding: size.next_multiple_of(BLOCK as u64) - size }
    }

    /// Whether `size` more bytes are within the caps; saves reading what would be refused at its end.
    pub(super) fn has_room(&self, size: u64) -> bool {
        self.unpacked.saturating_add(size) <= self.caps.unpacked_bytes()
    }

    /// Reads what follows the tar's end, on both sides of gzip.
    ///
    /// # Errors
    /// It is anything but padding, or the checksum of gzip is wrong.
    pub(super) fn finish(mut self) -> Result<(), Stop> {
        let mut chunk = vec![0; CHUNK];
        loop {
            let read = self.read(&mut chunk)?;
            if chunk[..read].iter().any(|&byte| byte != 0) {
                return Err(Refused::whole("there is data after the end of the tar").into());
            }
            if read == 0 {
                break;
            }
        }
        let mut input = self.gzip.into_inner();
        loop {
            let rest = input.fill_buf().map(<[u8]>::to_vec);
            match rest {
                Ok(rest) if rest.is_empty() => return Ok(()),
                Ok(rest) if rest.iter().all(|&byte| byte == 0) => input.consume(rest.len()),
                Ok(_) => {
                    return Err(Refused::whole(
                        "there is data after the end of the gzip stream: pack it as one stream",
                    )
                    .into());
                }
                Err(error) => return Err(input.stop(&error, self.caps)),
            }
        }
    }

    fn fill(&mut self, into: &mut [u8]) -> Result<usize, Stop> {
        let mut filled = 0;
        while filled < into.len() {
            match self.read(&mut into[filled..])? {
                0 => break,
                read => filled += read,
            }
        }
        Ok(filled)
    }

    fn read(&mut self, into: &mut [u8]) -> Result<usize, Stop> {
        let read = match self.gzip.read(into) {
            Ok(read) => read,
            Err(error) => return Err(self.gzip.get_mut().stop(&error, self.caps)),
        };
        self.unpacked += read as u64;
        if self.unpacked > self.caps.unpacked_bytes() {
            return Err(too_large(self.caps).into());
        }
        let allowed = self.gzip.get_ref().taken.saturating_mul(u64::from(self.caps.archive_max_ratio));
        if self.unpacked > RATIO_FREE_BYTES.saturating_add(allowed) {
            let ratio = self.caps.archive_max_ratio;
            return Err(Refused::whole(format!("it unpacks to more than {ratio} times its compressed size")).into());
        }
        Ok(read)
    }
}

/// The data of one file. What is not read of it has to be skipped with [`Data::skip`].
pub(super) struct Data<'s, 'c, R> {
    stream: &'s mut Stream<'c, R>,
    left: u64,
    padding: u64,
}

impl<R: Read> Data<'_, '_, R> {
    /// Reads some bytes; 0 at the end of the file's data.
    pub(super) fn read(&mut self, into: &mut [u8]) -> Result<usize, Stop> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(into.len());
        if most == 0 {
            return Ok(0);
        }
        match self.stream.read(&mut into[..most])? {
            0 => Err(cut_off().into()),
            read => {
                self.left -= read as u64;
                Ok(read)
            }
        }
    }

    /// Goes to the next block behind the file's data.
    pub(super) fn skip(mut self) -> Result<(), Stop> {
        self.left += std::mem::take(&mut self.padding);
        let mut chunk = vec![0; CHUNK.min(usize::try_from(self.left).unwrap_or(CHUNK))];
        while self.read(&mut chunk)? > 0 {}
        Ok(())
    }
}

pub(super) fn cut_off() -> Refused {
    Refused::whole("it ends too early: it was cut off")
}

pub(super) fn too_large(caps: &Caps) -> Refused {
    Refused::whole(format!("it unpacks to more than {} MiB", caps.archive_max_unpacked_mb))
}

/// The compressed side: counts what the decoder takes, and keeps the reader's own errors apart from gzip's.
struct Input<R> {
    reader: BufReader<R>,
    left: u64,
    taken: u64,
    over: bool,
    failed: Option<io::Error>,
}

impl<R> Input<R> {
    fn stop(&mut self, error: &io::Error, caps: &Caps) -> Stop {
        if let Some(failed) = self.failed.take() {
            return Stop::Read(failed);
        }
        if self.over {
            return Refused::whole(format!("it is larger than {} MiB", caps.max_archive_mb)).into();
        }
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return cut_off().into();
        }
        Refused::whole(format!("it is not a sound gzip stream ({error}): pack it with `tar -czf`")).into()
    }
}

impl<R: Read> BufRead for Input<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.reader.buffer().is_empty() {
            match self.reader.fill_buf() {
                Ok([]) => return Ok(&[]),
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.failed = Some(error);
                    return Err(io::Error::other("the archive could not be read"));
                }
            }
        }
        if self.left == 0 {
            self.over = true;
            return Err(io::Error::other("the archive is too large"));
        }
        let buffer = self.reader.buffer();
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        Ok(&buffer[..most])
    }

    fn consume(&mut self, amount: usize) {
        self.reader.consume(amount);
        self.left = self.left.saturating_sub(amount as u64);
        self.taken += amount as u64;
    }
}

impl<R: Read> Read for Input<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(into)?;
        self.consume(read);
        Ok(read)
    }
}
