//! The places that a function can write to besides its result: emptied after each run, so that the next finds them
//! as the first did, and so that what it forgot there does not eat its memory.

use std::fs;
use std::io;
use std::path::Path;

/// Directories of a sandbox that live in memory and are writable to everyone.
const PLACES: [&str; 3] = ["/tmp", "/dev/shm", "/dev/mqueue"];

/// Empties all places; `false` when something could not be removed. Only the first process of a sandbox may ask.
pub(crate) fn empty_all() -> bool {
    PLACES.iter().all(|place| match empty(Path::new(place)) {
        Ok(()) => true,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    })
}

/// Removes everything in `directory`. No process of the function is alive, so nothing changes underneath.
fn empty(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_and_links_are_not_followed() {
        let root = std::env::temp_dir().join(format!("dartcloud-scratch-{}", std::process::id()));
        let (outside, inside) = (root.join("outside"), root.join("inside"));
        fs::create_dir_all(inside.join("a/b/c")).unwrap();
        fs::create_dir_all(&outside).unwrap();
        fs::write(outside.join("kept"), "x").unwrap();
        fs::write(inside.join("file"), "x").unwrap();
        std::os::unix::fs::symlink(&outside, inside.join("link")).unwrap();
        std::os::unix::fs::symlink(&outside, inside.join("a/b/link")).unwrap();
        empty(&inside).unwrap();
        assert_eq!(fs::read_dir(&inside).unwrap().count(), 0);
        assert!(outside.join("kept").exists());
        assert!(empty(&root.join("none")).is_err());
        fs::remove_dir_all(root).unwrap();
    }
}
