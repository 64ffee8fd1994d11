//! Archives that are damaged at random.

use super::maker::{Noise, Tar, gzip, mend_checksums};
use super::{caps, list, unpack};

/// Damage of every kind is refused or harmless, and never a panic.
#[test]
fn damage_is_refused_or_harmless() {
    let tar = Tar::new()
        .pax(b'g', &[("comment", "c")])
        .folder("top")
        .pax(b'x', &[("path", "top/long"), ("mtime", "1.5")])
        .file("short")
        .kind(b'L', "L", "top/longer\0")
        .mode(b'0', "short", 0o755)
        .link(b'2', "top/l", "long")
        .link(b'1', "top/h", "top/long")
        .kind(b'0', "top/dartcloud.toml", "access = 'public'")
        .tar();
    let mut noise = Noise(3);
    for round in 0..3000 {
        let mut damaged = tar.clone();
        for _ in 0..=noise.below(4) {
            let at = noise.below(damaged.len());
            match noise.below(5) {
                0 => damaged.truncate(at + 1),
                1 => damaged.insert(at, noise.byte()),
                _ => damaged[at] = noise.byte(),
            }
        }
        if round % 2 == 0 {
            mend_checksums(&mut damaged);
        }
        let mut archive = gzip(&damaged);
        if round % 5 == 0 {
            let at = noise.below(archive.len());
            archive[at] = noise.byte();
        }
        let target = tempfile::tempdir().unwrap();
        let checked = crate::archive::check(&archive[..], &caps());
        if let Ok(contents) = checked {
            unpack(&archive[..], contents.root.as_deref(), target.path(), &caps()).unwrap();
            list(target.path());
        }
    }
}
