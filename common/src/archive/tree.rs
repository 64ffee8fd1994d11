//! The files of an archive as a tree: no path twice, nothing below a file or a link.

use std::collections::HashMap;

use super::Caps;
use super::entry::too_many;
use super::path::Target;
use super::refused::Refused;

/// Most links that are followed for one path, as in Linux.
const MAX_HOPS: usize = 40;

/// What stands at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Node {
    /// A folder: named by an entry, or only part of a path.
    Directory {
        named: bool,
    },
    File {
        executable: bool,
    },
    Link(Target),
}

/// All paths of an archive, from its own root.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    nodes: HashMap<String, Node>,
    most: usize,
}

impl Tree {
    pub(super) fn new(caps: &Caps) -> Self {
        Self { nodes: HashMap::new(), most: caps.archive_max_entries as usize }
    }

    pub(super) fn get(&self, path: &str) -> Option<&Node> {
        self.nodes.get(path)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(path, node)| (path.as_str(), node))
    }

    /// Adds `node` at `path`, and the folders above it. Returns the folders that are new, outermost first, as the
    /// lengths of their paths within `path`.
    pub(super) fn add(&mut self, path: &str, node: Node, caps: &Caps) -> Result<Vec<usize>, Refused> {
        let mut new = Vec::new();
        for (at, _) in path.rmatch_indices('/') {
            match self.nodes.get(&path[..at]) {
                None => new.push(at),
                // Where a folder is known, so are all above it.
                Some(Node::Directory { .. }) => break,
                Some(Node::File { .. }) => return Err(Refused::entry(path, "a path below a file of the archive")),
                Some(Node::Link(_)) => return Err(Refused::entry(path, "a path below a link of the archive")),
            }
        }
        new.reverse();
        for &at in &new {
            self.nodes.insert(path[..at].to_owned(), Node::Directory { named: false });
        }
        match (self.nodes.get(path), &node) {
            (None, Node::Directory { .. }) => new.push(path.len()),
            (None, _) | (Some(Node::Directory { named: false }), Node::Directory { .. }) => {}
            (Some(Node::Directory { .. }), Node::Directory { .. }) => {
                return Err(Refused::entry(path, "a folder that appears twice"));
            }
            (Some(Node::Directory { .. }), _) | (_, Node::Directory { .. }) => {
                return Err(Refused::entry(path, "both a folder and a file"));
            }
            _ => return Err(Refused::entry(path, "a file that appears twice")),
        }
        self.nodes.insert(path.to_owned(), node);
        if self.nodes.len() > self.most {
            return Err(too_many(caps));
        }
        Ok(new)
    }

    /// The single top folder that holds everything, if there is one.
    pub(super) fn single_top(&self) -> Option<&str> {
        let mut tops = self.nodes.iter().filter(|(path, _)| !path.contains('/'));
        match (tops.next(), tops.next()) {
            (Some((top, Node::Directory { .. })), None) => Some(top),
            _ => None,
        }
    }

    /// The file that `path` (from `root`) leads to, over links.
    pub(super) fn file(&self, root: Option<&str>, path: &str) -> Option<&Node> {
        let mut ahead: Vec<&str> = path.rsplit('/').collect();
        let mut here: Vec<&str> = root.into_iter().collect();
        let mut hops = 0;
        while let Some(part) = ahead.pop() {
            match part {
                "" | "." => continue,
                ".." => {
                    here.pop();
                    continue;
                }
                name => here.push(name),
            }
            match self.nodes.get(&here.join("/"))? {
                Node::Directory { .. } => {}
                file @ Node::File { .. } => return ahead.is_empty().then_some(file),
                Node::Link(target) => {
                    hops += 1;
                    if hops > MAX_HOPS {
                        return None;
                    }
                    here.pop();
                    ahead.extend(target.text.rsplit('/'));
                }
            }
        }
        None
    }
}
