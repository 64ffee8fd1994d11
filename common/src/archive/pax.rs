//! Pax records (POSIX.1-2001, `pax`, *extended header*): attributes of the entry that follows.

use super::refused::Refused;

/// What precedes an entry and overrides its header.
#[derive(Debug, Default)]
pub(super) struct Extended {
    /// The entry's name.
    pub(super) path: Option<Vec<u8>>,
    /// A link's target.
    pub(super) link: Option<Vec<u8>>,
    /// The entry's size, in bytes.
    pub(super) size: Option<u64>,
    /// Whether a pax header, a GNU long name and a GNU long target were read: each may stand once.
    pub(super) seen: Vec<u8>,
}

impl Extended {
    /// Takes over the attributes that matter. The others are harmless: times, owners, comments, macOS's extended
    /// attributes.
    ///
    /// # Errors
    /// `body` is not made of pax records, or says that the file is sparse.
    pub(super) fn take_records(&mut self, body: &[u8]) -> Result<(), Refused> {
        let mut rest = body;
        while !rest.is_empty() {
            let (key, value, after) =
                record(rest).ok_or_else(|| Refused::whole("a pax header that is not made of pax records"))?;
            rest = after;
            if is_sparse(key) {
                return Err(Refused::entry(self.path.as_deref().unwrap_or(b"(pax header)"), "a sparse file"));
            }
            let value = (!value.is_empty()).then_some(value);
            match key {
                b"path" => self.path = value.map(<[u8]>::to_vec),
                b"linkpath" => self.link = value.map(<[u8]>::to_vec),
                b"size" => self.size = value.map(number).transpose()?,
                _ => {}
            }
        }
        Ok(())
    }
}

/// Checks a global header: git writes one, with the commit as a comment.
///
/// # Errors
/// It is not made of pax records, or renames or resizes every entry that follows.
pub(super) fn check_global(body: &[u8]) -> Result<(), Refused> {
    let mut rest = body;
    while !rest.is_empty() {
        let (key, _, after) =
            record(rest).ok_or_else(|| Refused::whole("a global pax header that is not made of pax records"))?;
        rest = after;
        if matches!(key, b"path" | b"linkpath" | b"size") || is_sparse(key) {
            return Err(Refused::entry(key, "a global pax header with an attribute of single files"));
        }
    }
    Ok(())
}

fn is_sparse(key: &[u8]) -> bool {
    key.starts_with(b"GNU.sparse.") || key.starts_with(b"SUN.holes") || key == b"SCHILY.realsize"
}

fn number(value: &[u8]) -> Result<u64, Refused> {
    std::str::from_utf8(value)
        .ok()
        .filter(|text| text.bytes().all(|c| c.is_ascii_digit()))
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| Refused::whole("a pax header whose size is not a number"))
}

/// The first record of `rest` as key and value, and what follows it: `"<length> <key>=<value>\n"`, where the length
/// counts the whole record. A value may hold anything, newlines too.
fn record(rest: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    const MAX_LENGTH_DIGITS: usize = 10;
    let space = rest.iter().take(MAX_LENGTH_DIGITS + 1).position(|&c| c == b' ')?;
    let digits = std::str::from_utf8(&rest[..space]).ok().filter(|text| text.bytes().all(|c| c.is_ascii_digit()))?;
    let length: usize = digits.parse().ok()?;
    let (body, newline) = (rest.get(space + 1..length.checked_sub(1)?)?, rest.get(length - 1)?);
    let equals = body.iter().position(|&c| c == b'=').filter(|&at| at > 0)?;
    (*newline == b'\n').then(|| (&body[..equals], &body[equals + 1..], &rest[length..]))
}
