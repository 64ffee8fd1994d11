//! The one walk over an archive that checking and unpacking share, so that neither can be laxer than the other.

use std::io::Read;

use super::Caps;
use super::entry::{Entries, Entry, Kind};
use super::path::{self, Target};
use super::refused::{Refused, Stop};
use super::stream::{Data, Stream};
use super::tree::{Node, Tree};

/// What is done with the entries of an archive. Paths are clean and unique; a path's folder comes before it.
pub(super) trait Sink {
    fn directory(&mut self, path: &str) -> Result<(), Stop>;
    /// The sink may leave data unread.
    fn file<R: Read>(&mut self, path: &str, executable: bool, data: &mut Data<'_, '_, R>) -> Result<(), Stop>;
    fn link(&mut self, path: &str, target: &Target) -> Result<(), Stop>;
    /// `earlier` is a file that the sink has seen.
    fn hard_link(&mut self, path: &str, earlier: &str) -> Result<(), Stop>;
}

/// Reads all of `archive`, refuses what is not harmless, and shows the rest to `sink` as it comes.
pub(super) fn walk<R: Read, S: Sink>(archive: R, caps: &Caps, sink: &mut S) -> Result<Tree, Stop> {
    let mut stream = Stream::new(archive, caps);
    let mut entries = Entries::new(caps);
    let mut tree = Tree::new(caps);
    while let Some(Entry { path, kind, size }) = entries.next(&mut stream)? {
        let mut data = stream.data(size);
        if let Some(path) = path.filter(|path| !path::is_clutter(path)) {
            place(&path, kind, &mut data, &mut tree, caps, sink)?;
        }
        data.skip()?;
    }
    stream.finish()?;
    Ok(tree)
}

fn place<R: Read, S: Sink>(
    path: &str,
    kind: Kind,
    data: &mut Data<'_, '_, R>,
    tree: &mut Tree,
    caps: &Caps,
    sink: &mut S,
) -> Result<(), Stop> {
    let node = match &kind {
        Kind::Directory => Node::Directory { named: true },
        Kind::File { executable } => Node::File { executable: *executable },
        Kind::Link(target) if target.leaves(path) => {
            return Err(Refused::entry(path, "a link that leaves the archive").into());
        }
        Kind::Link(target) => Node::Link(target.clone()),
        Kind::HardLink(earlier) => match tree.get(earlier) {
            Some(file @ Node::File { .. }) => file.clone(),
            _ => return Err(Refused::entry(path, "a hard link to what is no earlier file of the archive").into()),
        },
    };
    for length in tree.add(path, node, caps)? {
        sink.directory(&path[..length])?;
    }
    match kind {
        Kind::Directory => Ok(()),
        Kind::File { executable } => sink.file(path, executable, data),
        Kind::Link(target) => sink.link(path, &target),
        Kind::HardLink(earlier) => sink.hard_link(path, &earlier),
    }
}
