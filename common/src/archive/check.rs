//! Checking an archive without unpacking it.

use std::io::Read;

use super::path::Target;
use super::refused::{Refused, Stop};
use super::stream::Data;
use super::tree::{Node, Tree};
use super::walk::{Sink, walk};
use super::{Caps, path};
use crate::manifest;

/// What a sound archive holds.
#[derive(Clone, Debug)]
pub struct Contents {
    /// The single top folder that holds everything, if there is one; it is stripped.
    pub root: Option<String>,
    /// The text of `dartcloud.toml`, if there is one at the root.
    pub manifest: Option<String>,
    tree: Tree,
}

impl Contents {
    /// Whether there is a file at `path`, relative to the root and over links inside the archive; where
    /// `executable` is asked for, one with the executable bit.
    #[must_use]
    pub fn exists(&self, path: &str, executable: bool) -> bool {
        let Ok(Some(path)) = path::clean(path.as_bytes(), &Caps::default()) else { return false };
        match self.tree.file(self.root.as_deref(), &path) {
            Some(Node::File { executable: has }) => *has || !executable,
            _ => false,
        }
    }
}

/// Reads a whole `tar.gz` and says what it holds.
///
/// # Errors
/// It is over a cap, damaged, or holds what no function needs and an attacker might: see [`Refused`]. An archive
/// that cannot be read is refused, too.
pub fn check(archive: impl Read, caps: &Caps) -> Result<Contents, Refused> {
    let mut manifests = Manifests::default();
    let tree = walk(archive, caps, &mut manifests).map_err(|stop| match stop {
        Stop::Refused(refused) => refused,
        Stop::Read(error) | Stop::Write(_, error) => Refused::whole(format!("it could not be read: {error}")),
    })?;
    if !tree.iter().any(|(_, node)| matches!(node, Node::File { .. })) {
        return Err(Refused::whole("it holds no files"));
    }
    let root = tree.single_top().map(str::to_owned);
    if root.is_some() {
        for (path, node) in tree.iter() {
            let below = path.split_once('/').map_or("", |(_, below)| below);
            if matches!(node, Node::Link(target) if target.leaves(below)) {
                return Err(Refused::entry(path, "a link that leaves the archive's top folder"));
            }
        }
    }
    let manifest = manifests.at(root.as_deref(), &tree)?;
    Ok(Contents { root, manifest, tree })
}

/// Keeps the text of the manifests that may turn out to be the archive's: the one at its root, and the one in the
/// first top folder.
#[derive(Default)]
struct Manifests {
    at_root: Option<Result<String, Refused>>,
    in_top: Option<Result<String, Refused>>,
}

impl Manifests {
    fn at(self, root: Option<&str>, tree: &Tree) -> Result<Option<String>, Refused> {
        let (path, text) = match root {
            Some(root) => (format!("{root}/{}", manifest::FILE), self.in_top),
            None => (manifest::FILE.to_owned(), self.at_root),
        };
        match (tree.get(&path), text) {
            (None, _) => Ok(None),
            (Some(Node::File { .. }), Some(text)) => text.map(Some),
            (Some(_), _) => Err(Refused::entry(path, "this must be a plain file")),
        }
    }
}

impl Sink for Manifests {
    fn directory(&mut self, _: &str) -> Result<(), Stop> {
        Ok(())
    }

    fn file<R: Read>(&mut self, path: &str, _: bool, data: &mut Data<'_, '_, R>) -> Result<(), Stop> {
        let slot = match path.split_once('/') {
            None if path == manifest::FILE => &mut self.at_root,
            Some((_, manifest::FILE)) if self.in_top.is_none() => &mut self.in_top,
            _ => return Ok(()),
        };
        *slot = Some(text(path, data)?);
        Ok(())
    }

    fn link(&mut self, _: &str, _: &Target) -> Result<(), Stop> {
        Ok(())
    }

    fn hard_link(&mut self, _: &str, _: &str) -> Result<(), Stop> {
        Ok(())
    }
}

fn text<R: Read>(path: &str, data: &mut Data<'_, '_, R>) -> Result<Result<String, Refused>, Stop> {
    let mut text = vec![0; manifest::MAX_BYTES + 1];
    let mut filled = 0;
    while filled < text.len() {
        match data.read(&mut text[filled..])? {
            0 => break,
            read => filled += read,
        }
    }
    text.truncate(filled);
    if filled > manifest::MAX_BYTES {
        return Ok(Err(Refused::entry(path, format!("this is larger than {} KiB", manifest::MAX_BYTES / 1024))));
    }
    Ok(String::from_utf8(text).map_err(|_| Refused::entry(path, "this is not UTF-8")))
}
