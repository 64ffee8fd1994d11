//! Archives made block by block, and damage to them.

use std::fmt::Write as _;
use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{EntryType, Header};

/// A tar under construction: every block as the test wants it.
#[derive(Clone, Default)]
pub(super) struct Tar(pub(super) Vec<u8>);

impl Tar {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn header(kind: u8, name: &str, size: u64) -> Header {
        let mut header = Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(EntryType::new(kind));
        header.set_mode(0o644);
        header.set_size(size);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header
    }

    pub(super) fn add(mut self, mut header: Header, data: impl AsRef<[u8]>) -> Self {
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data.as_ref());
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(super) fn kind(self, kind: u8, name: &str, data: impl AsRef<[u8]>) -> Self {
        let header = Self::header(kind, name, data.as_ref().len() as u64);
        self.add(header, data)
    }

    pub(super) fn file(self, name: &str) -> Self {
        self.kind(b'0', name, "x")
    }

    pub(super) fn folder(self, name: &str) -> Self {
        self.kind(b'5', name, "")
    }

    pub(super) fn mode(self, kind: u8, name: &str, mode: u32) -> Self {
        let mut header = Self::header(kind, name, 0);
        header.set_mode(mode);
        self.add(header, "")
    }

    pub(super) fn link(self, kind: u8, name: &str, target: &str) -> Self {
        let mut header = Self::header(kind, name, 0);
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        self.add(header, "")
    }

    pub(super) fn pax(self, kind: u8, records: &[(&str, &str)]) -> Self {
        let body: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value).into_bytes()).collect();
        self.kind(kind, "pax", body)
    }

    pub(super) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(super) fn tar(self) -> Vec<u8> {
        self.raw(&[0; 1024]).0
    }

    pub(super) fn done(self) -> Vec<u8> {
        gzip(&self.tar())
    }
}

fn record(key: &str, value: &str) -> String {
    let rest = key.len() + value.len() + 3;
    let length = (1..).map(|digits| rest + digits).find(|length| length.to_string().len() + rest == *length);
    format!("{} {key}={value}\n", length.unwrap())
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Lets damaged headers past the checksum, so that what is behind it meets them.
pub(super) fn mend_checksums(tar: &mut [u8]) {
    for block in tar.chunks_exact_mut(512).filter(|block| block.iter().any(|&byte| byte != 0)) {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        let mut text = String::new();
        write!(text, "{sum:06o}\0 ").unwrap();
        block[148..156].copy_from_slice(text.as_bytes());
    }
}

/// A small generator (xorshift, 64 bits), so that a failure can be repeated.
pub(super) struct Noise(pub(super) u64);

impl Noise {
    pub(super) fn byte(&mut self) -> u8 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 24) as u8
    }

    pub(super) fn below(&mut self, end: usize) -> usize {
        let number = (0..4).fold(0, |number, _| number << 8 | usize::from(self.byte()));
        number % end
    }
}

impl Iterator for Noise {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        Some(self.byte())
    }
}
