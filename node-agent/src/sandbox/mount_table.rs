//! The kernel's table of mounts, `mountinfo` (proc(5)), as far as the agent reads it.

use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

/// Whether in the mount table `mountinfo` something read-only, without setuid and devices, lies over `target`, and
/// whether every one of `others` is a mount point: an image with a symbolic link at such a place leads it astray.
pub(super) fn is_furnished(mountinfo: &str, target: &str, others: &[&str]) -> bool {
    let at = |target: &str| mountinfo.lines().rfind(|line| line.split(' ').nth(4) == Some(target)).map(str::to_owned);
    let over = at(target).is_some_and(|line| {
        let options = line.split(' ').nth(5).unwrap_or_default();
        ["ro", "nosuid", "nodev"].iter().all(|flag| options.split(',').any(|option| option == *flag))
    });
    over && others.iter().all(|other| at(other).is_some())
}

/// The mount points of a `mountinfo` at and under `path`, in the order of the table: outer before inner.
pub(super) fn mount_points(mountinfo: &[u8], path: &Path) -> Vec<PathBuf> {
    let points = mountinfo.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    points.map(unescape).filter(|point| point.starts_with(path)).collect()
}

/// Whether `path` is a mount point itself, and what is mounted in it appears elsewhere, too.
pub(super) fn is_shared_mount(mountinfo: &[u8], path: &Path) -> bool {
    let lines = mountinfo.split(|byte| *byte == b'\n');
    let mut at = lines.filter(|line| line.split(|byte| *byte == b' ').nth(4).is_some_and(|at| unescape(at) == path));
    // The last is the uppermost. Before the lone `-` are the optional fields.
    at.next_back().is_some_and(|line| {
        let mut optional = line.split(|byte| *byte == b' ').skip(6).take_while(|field| *field != b"-");
        optional.any(|field| field.starts_with(b"shared:"))
    })
}

/// The kernel writes blanks, line ends and backslashes of a path as three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let code = (byte == b'\\').then(|| std::str::from_utf8(after.get(..3)?).ok()).flatten();
        match code.and_then(|code| u8::from_str_radix(code, 8).ok()) {
            Some(byte) => {
                path.push(byte);
                rest = &after[3..];
            }
            None => {
                path.push(byte);
                rest = after;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(path))
}

#[cfg(test)]
mod tests {
    use super::super::spec::{FUNCTION, REQUEST, RESULT};
    use super::*;

    #[test]
    fn mount_tables_are_read() {
        let table = b"36 35 98:0 / /data/sandboxes rw - ext4 /dev/vda rw\n\
            37 36 0:1 / /data/sandboxes/a\\040b/function ro - ext4 /dev/vda rw\n\
            38 35 0:2 / /data/sandboxes-other rw - ext4 /dev/vda rw\n";
        let found = mount_points(table, Path::new("/data/sandboxes"));
        assert_eq!(found, ["/data/sandboxes", "/data/sandboxes/a b/function"].map(PathBuf::from));
        assert_eq!(unescape(b"a\\134b\\"), PathBuf::from("a\\b\\"));
    }

    #[test]
    fn shared_or_not() {
        let table = b"1 0 98:0 / / rw shared:1 - ext4 /dev/vda rw\n\
            2 1 98:0 /a /data rw shared:1 - ext4 /dev/vda rw\n\
            3 1 98:0 /b /own rw - ext4 /dev/vda shared:9\n\
            4 1 98:0 /c /twice rw shared:2 - ext4 /dev/vda rw\n\
            5 4 98:0 /d /twice rw master:2 - ext4 /dev/vda rw\n";
        let check = |path: &str, expected| assert_eq!(is_shared_mount(table, Path::new(path)), expected, "{path}");
        check("/data", true);
        check("/data/sandboxes", false);
        check("/own", false);
        check("/twice", false);
    }

    #[test]
    fn furnished_or_not() {
        let blank = "1 0 0:1 /x /function ro,relatime master:1 - ext4 d rw\n2 0 0:2 /y /result.json rw - tmpfs t rw\n";
        let furnished = format!("{blank}3 1 0:3 /b /function ro,nosuid,nodev,relatime master:2 - ext4 d rw\n");
        let check =
            |table: &str, others: &[&str], expected| assert_eq!(is_furnished(table, FUNCTION, others), expected);
        check(blank, &[RESULT], false);
        check(&furnished, &[RESULT], true);
        check(&furnished, &[RESULT, REQUEST], false);
        check("", &[], false);
    }
}
