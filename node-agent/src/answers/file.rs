//! A kept answer on disk: a line of JSON that says which call began, and, once it has ended, length, checksum, status,
//! header lines and body. What is torn or damaged reads as an answer that is lost.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use common::digest::Digest;
use common::ids::{FunctionId, InvocationId};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use serde::{Deserialize, Serialize};

/// Longest first line, in bytes; four ids and a number have less.
const MAX_HEAD_BYTES: usize = 512;
/// Length and CRC-32 of what follows, both little-endian.
const FRAME_BYTES: usize = 12;

/// Which call it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) function: FunctionId,
    pub(super) print: Digest,
    pub(super) id: InvocationId,
    /// By the machine's clock, in milliseconds since 1970.
    pub(super) began_ms: u64,
}

/// Where the answer of a key lies.
pub(super) fn path(directory: &Path, key: Digest) -> PathBuf {
    directory.join(key.to_string())
}

/// Writes that a call begins; how long the file is then. Answers may be secret, so it is its owner's only.
pub(super) fn begin(path: &Path, head: &Head) -> io::Result<u64> {
    let mut line = serde_json::to_vec(head).expect("ids and a number always serialise");
    line.push(b'\n');
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    if let Err(error) = file.write_all(&line) {
        // Nobody knows it yet. What cannot be removed is dropped at the next start.
        let _ = std::fs::remove_file(path);
        return Err(error);
    }
    Ok(line.len() as u64)
}

/// Writes how it ended, after the first `at` bytes; how much that was.
pub(super) fn end(path: &Path, at: u64, answer: &Response<Bytes>) -> io::Result<u64> {
    let bytes = encode(answer);
    OpenOptions::new().write(true).open(path)?.write_all_at(&bytes, at)?;
    Ok(bytes.len() as u64)
}

/// The answer that a file holds.
pub(super) fn read(mut file: File) -> io::Result<Option<Response<Bytes>>> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(parse_head(&bytes).and_then(|(_, length)| decode(&bytes[length..])))
}

/// What is in `directory`, the oldest first, with each file's length. What is no answer is removed.
pub(super) fn list(directory: &Path) -> io::Result<Vec<(Digest, Head, u64)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let key = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let mut first = Vec::with_capacity(MAX_HEAD_BYTES);
        File::open(entry.path())?.take(MAX_HEAD_BYTES as u64).read_to_end(&mut first)?;
        match key.zip(parse_head(&first)) {
            Some((key, (head, _))) => found.push((key, head, entry.metadata()?.len())),
            // A power cut leaves such a file, of a call that was not answered.
            None => std::fs::remove_file(entry.path())?,
        }
    }
    found.sort_by_key(|(_, head, _)| (head.began_ms, head.id));
    Ok(found)
}

/// Brings these keys' files to disk, and the directory that has their names.
pub(super) fn sync(directory: &Path, keys: impl IntoIterator<Item = Digest>) -> io::Result<()> {
    for key in keys {
        match File::open(path(directory, key)) {
            Ok(file) => file.sync_data()?,
            // It has gone again.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    File::open(directory)?.sync_all()
}

fn parse_head(bytes: &[u8]) -> Option<(Head, usize)> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    Some((serde_json::from_slice(&bytes[..end]).ok()?, end + 1))
}

fn encode(answer: &Response<Bytes>) -> Vec<u8> {
    let mut bytes = vec![0; FRAME_BYTES];
    bytes.extend(answer.status().as_str().as_bytes());
    for (name, value) in answer.headers() {
        for part in [&b"\n"[..], name.as_str().as_bytes(), b":", value.as_bytes()] {
            bytes.extend_from_slice(part);
        }
    }
    bytes.extend_from_slice(b"\n\n");
    bytes.extend_from_slice(answer.body());
    let (length, checksum) = ((bytes.len() - FRAME_BYTES) as u64, crc32fast::hash(&bytes[FRAME_BYTES..]));
    bytes[..8].copy_from_slice(&length.to_le_bytes());
    bytes[8..FRAME_BYTES].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<Response<Bytes>> {
    let (length, rest) = bytes.split_first_chunk()?;
    let (checksum, rest) = rest.split_first_chunk()?;
    let answer = rest.get(..usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    if crc32fast::hash(answer) != u32::from_le_bytes(*checksum) {
        return None;
    }
    let end = answer.windows(2).position(|pair| pair == b"\n\n")?;
    let mut lines = answer[..end].split(|byte| *byte == b'\n');
    let mut response = Response::new(Bytes::copy_from_slice(&answer[end + 2..]));
    *response.status_mut() = StatusCode::from_bytes(lines.next()?).ok()?;
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(&line[colon + 1..]));
        response.headers_mut().append(name.ok()?, value.ok()?);
    }
    Some(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(body: &'static [u8]) -> Response<Bytes> {
        let lines = [("x-a", "1"), ("set-cookie", "a=b: c"), ("set-cookie", ""), ("x-b", "caf\u{e9}")];
        let mut response = Response::builder().status(207);
        for (name, value) in lines {
            response = response.header(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        response.body(Bytes::from_static(body)).unwrap()
    }

    #[test]
    fn an_answer_comes_back_as_it_was() {
        for body in [&b""[..], b"a\n\nb", b"\n", &[0xff, 0]] {
            let (written, again) = (answer(body), decode(&encode(&answer(body))).unwrap());
            assert_eq!((again.status(), again.headers()), (written.status(), written.headers()));
            assert_eq!(again.body(), written.body());
        }
        assert_eq!(decode(&encode(&Response::new(Bytes::new()))).unwrap().status(), 200);
    }

    #[test]
    fn what_is_torn_is_lost() {
        let whole = encode(&answer(b"body"));
        for length in 0..whole.len() {
            assert!(decode(&whole[..length]).is_none(), "{length}");
        }
        let mut damaged = whole.clone();
        *damaged.last_mut().unwrap() ^= 1;
        assert!(decode(&damaged).is_none());
        assert!(decode(&[0xff; 64]).is_none());
        assert!(decode(&[0; 64]).is_none());
    }
}
