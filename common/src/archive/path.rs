//! Paths in an archive: what one may look like, and where a link may point.

use super::Caps;

/// Longest single name of a path, in bytes: what Linux's file systems take.
const MAX_NAME_BYTES: usize = 255;

/// The clean form of an entry's name, without `.`, double and trailing slashes; `None` for the archive's own
/// root (`./`).
///
/// # Errors
/// The reason why the name is not taken.
pub(super) fn clean(name: &[u8], caps: &Caps) -> Result<Option<String>, String> {
    let text = plain_text(name, "name", caps)?;
    if text.is_empty() {
        return Err("an entry without a name".into());
    }
    if text.starts_with('/') {
        return Err("an absolute path: use one relative to the archive's root".into());
    }
    let parts: Vec<&str> = text.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.contains(&"..") {
        return Err("a path with `..`".into());
    }
    if parts.len() > caps.archive_max_depth as usize {
        return Err(format!("a path of more than {} names", caps.archive_max_depth));
    }
    if parts.iter().any(|part| part.len() > MAX_NAME_BYTES) {
        return Err(format!("a name longer than {MAX_NAME_BYTES} bytes"));
    }
    Ok((!parts.is_empty()).then(|| parts.join("/")))
}

/// Where a symbolic link points.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// As it stands in the archive.
    pub(super) text: String,
    /// How many folders it climbs before it descends.
    pub(super) climbs: usize,
}

impl Target {
    /// Reads a link's target.
    ///
    /// `..` may only stand at its beginning. There it counts from the link's own folder, which is a real one, so
    /// counting shows where it leads. After a name it would count from wherever that name leads, and that may be
    /// another link: `a -> ../..` (inside) and `b -> deep/a/../x` (inside, by its letters) together leave the tree.
    ///
    /// # Errors
    /// The reason why the target is not taken.
    pub(super) fn parse(target: &[u8], caps: &Caps) -> Result<Self, String> {
        let text = plain_text(target, "link's target", caps)?;
        if text.is_empty() {
            return Err("a link without a target".into());
        }
        if text.starts_with('/') {
            return Err("a link to an absolute path: use a relative one inside the archive".into());
        }
        let mut parts = text.split('/').filter(|part| !matches!(*part, "" | "."));
        let climbs = parts.clone().take_while(|part| *part == "..").count();
        if parts.by_ref().skip(climbs).any(|part| part == "..") {
            return Err("a link whose target has `..` after a name: write the target without the detour".into());
        }
        Ok(Self { text: text.to_owned(), climbs })
    }

    /// Whether the link at `path` leads out of the tree at whose root `path` begins.
    pub(super) fn leaves(&self, path: &str) -> bool {
        self.climbs > path.matches('/').count()
    }
}

/// Whether `path` is what macOS adds for itself: resource forks, Finder's state.
pub(super) fn is_clutter(path: &str) -> bool {
    path.split('/').any(|part| part == "__MACOSX" || part == ".DS_Store" || part.starts_with("._"))
}

fn plain_text<'a>(bytes: &'a [u8], what: &str, caps: &Caps) -> Result<&'a str, String> {
    if bytes.len() > caps.archive_max_path_bytes as usize {
        return Err(format!("a {what} longer than {} bytes", caps.archive_max_path_bytes));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| format!("a {what} that is not UTF-8"))?;
    if text.contains(char::is_control) {
        return Err(format!("a {what} with a control character"));
    }
    Ok(text)
}
