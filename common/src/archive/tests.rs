//! Archives by hand, and by `tar` and `git`, through one `check`.

use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use self::maker::{Noise, Tar, gzip};
use super::*;

mod damage;
mod maker;

/// Small caps, so that small archives reach them.
fn caps() -> Caps {
    Caps { max_archive_mb: 1, archive_max_unpacked_mb: 20, archive_max_entries: 50, ..Caps::default() }
}

/// Checks `archive` and unpacks it; both must agree with `expected`: the listing of files and links, or a part of
/// the refusal.
fn check(archive: &[u8], expected: Result<&str, &str>) {
    let checked = super::check(archive, &caps());
    let target = tempfile::tempdir().unwrap();
    let root = checked.as_ref().ok().and_then(|contents| contents.root.clone());
    let unpacked = unpack(archive, root.as_deref(), target.path(), &caps());
    match (checked, unpacked, expected) {
        (Ok(_), Ok(()), Ok(listing)) => assert_eq!(list(target.path()), listing),
        (Err(refused), Err(UnpackError::Refused(again)), Err(part)) => {
            assert!(refused.to_string().contains(part), "{refused}: no `{part}`");
            assert!(refused == again || part.contains("top folder"), "{refused}; unpacking: {again}");
        }
        // Only checking knows that a link leaves a top folder that nobody has named, and that nothing is there.
        (Err(refused), Ok(()), Err(part)) if part.contains("top folder") || part.contains("no files") => {
            assert!(refused.to_string().contains(part), "{refused}: no `{part}`");
        }
        (checked, unpacked, expected) => panic!("{checked:?}, {unpacked:?}, expected {expected:?}"),
    }
}

fn list(directory: &Path) -> String {
    let mut lines = Vec::new();
    let mut ahead = vec![directory.to_path_buf()];
    while let Some(next) = ahead.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let kind = path.symlink_metadata().unwrap();
            let mode = kind.permissions().mode() & 0o7777;
            let name = path.strip_prefix(directory).unwrap().display().to_string();
            if kind.is_symlink() {
                lines.push(format!("{name} -> {}", path.read_link().unwrap().display()));
            } else if kind.is_dir() {
                assert_eq!(mode, 0o755, "{name}");
                ahead.push(path);
            } else {
                assert!(mode == 0o755 || mode == 0o644, "{name} {mode:o}");
                lines.push(if mode == 0o755 { format!("{name}*") } else { name });
            }
        }
    }
    lines.sort();
    lines.join(" ")
}

#[test]
fn sound_archives() {
    check(&Tar::new().file("main.py").file("lib/a.py").done(), Ok("lib/a.py main.py"));
    check(&Tar::new().file("./main.py").folder("./lib/").file("./lib/a.py").done(), Ok("lib/a.py main.py"));
    check(&Tar::new().folder("./").file("a//b/./c").file("d").done(), Ok("a/b/c d"));
    check(&Tar::new().folder("top").file("top/main.py").done(), Ok("main.py"));
    check(&Tar::new().file("top/main.py").folder("top/").done(), Ok("main.py"));
    check(&Tar::new().file("f").link(b'2', "a/l", "../f").done(), Ok("a/l -> ../f f"));
    check(&Tar::new().file("f").link(b'2', "here", ".").done(), Ok("f here -> ."));
    check(&Tar::new().mode(b'0', "run", 0o700).link(b'1', "again", "./run").done(), Ok("again* run*"));
    check(&Tar::new().mode(b'0', "a", 0o777).mode(b'0', "b", 0).file("c").done(), Ok("a* b c"));
    check(&Tar::new().mode(b'5', "d", 0o2770).file("d/f").file("g").done(), Ok("d/f g"));
    check(&Tar::new().kind(0, "old/", "").kind(0, "old/f", "x").kind(b'7', "g", "x").done(), Ok("g old/f"));
    check(&Tar::new().file("ünï/côdé").file("-rf").file("a b").done(), Ok("-rf a b ünï/côdé"));
}

#[test]
fn what_tools_add_is_harmless() {
    let mac = Tar::new()
        .file("._main.py")
        .pax(b'x', &[("SCHILY.xattr.com.apple.quarantine", "a\nb=c\n"), ("LIBARCHIVE.creationtime", "1.5")])
        .file("main.py")
        .file("lib/.DS_Store")
        .file("__MACOSX/x");
    check(&mac.done(), Ok("main.py"));
    let git = Tar::new().pax(b'g', &[("comment", "2fd4e1c67a2d28fced849ee1bb76e7391b93eb12")]).file("main.py");
    check(&git.done(), Ok("main.py"));
    check(&gzip(&Tar::new().file("f").raw(&[0; 20 * 512]).0), Ok("f"));
    check(&[Tar::new().file("f").done(), vec![0; 4096]].concat(), Ok("f"));
    check(&gzip(&Tar::new().file("f").raw(&[0; 512]).0), Ok("f"));
}

#[test]
fn long_names() {
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(200));
    check(&Tar::new().pax(b'x', &[("path", &long)]).file("short").file("g").done(), Ok(&format!("{long} g")));
    check(&Tar::new().kind(b'L', "L", format!("{long}\0")).file("short").file("g").done(), Ok(&format!("{long} g")));
    let target = Tar::new().pax(b'x', &[("linkpath", &long)]).link(b'2', "l", "x").file("f");
    check(&target.done(), Ok(&format!("f l -> {long}")));
    let mut sized = Tar::new().pax(b'x', &[("size", "3")]);
    sized = sized.add(Tar::header(b'0', "f", 0), "abc").file("g");
    check(&sized.done(), Ok("f g"));
}

#[test]
fn paths_that_lead_out() {
    check(&Tar::new().file("/etc/passwd").done(), Err("`/etc/passwd`: an absolute path"));
    check(&Tar::new().file("../x").done(), Err("a path with `..`"));
    check(&Tar::new().file("a/../../x").done(), Err("a path with `..`"));
    check(&Tar::new().file("a/..").done(), Err("a path with `..`"));
    check(&Tar::new().pax(b'x', &[("path", "/abs")]).file("f").done(), Err("`/abs`: an absolute path"));
    check(&Tar::new().kind(b'L', "L", "../up\0").file("f").done(), Err("`../up`: a path with `..`"));
    check(&Tar::new().file("").done(), Err("without a name"));
    check(&Tar::new().file(".").done(), Err("in place of the archive's root"));
}

#[test]
fn links_that_lead_out() {
    let link = |kind, name, target| Tar::new().file("f").link(kind, name, target).done();
    check(&link(b'2', "l", "/etc"), Err("`l`: a link to an absolute path"));
    check(&link(b'2', "l", ".."), Err("a link that leaves the archive"));
    check(&link(b'2', "a/b/l", "../../../x"), Err("a link that leaves the archive"));
    check(&link(b'2', "a/l", "b/../../../x"), Err("`..` after a name"));
    check(&link(b'2', "l", ""), Err("without a target"));
    check(&link(b'2', "l", "a\u{7}"), Err("control character"));
    check(&link(b'1', "l", "/etc/passwd"), Err("a hard link to an absolute path"));
    check(&link(b'1', "l", "../x"), Err("a hard link to a path with `..`"));
    check(&link(b'1', "l", "missing"), Err("no earlier file"));
    check(&Tar::new().file("f").link(b'2', "s", "f").link(b'1', "l", "s").done(), Err("no earlier file"));
    check(&Tar::new().file("t/f").link(b'2', "t/l", "../f").done(), Err("leaves the archive's top folder"));
    check(&Tar::new().link(b'2', "l", "d").file("l/f").done(), Err("`l/f`: a path below a link"));
    check(&Tar::new().file("l/f").link(b'2', "l", "d").done(), Err("both a folder and a file"));
    let chained = Tar::new().link(b'2', "deep/er/s", "../..").link(b'2', "x", "deep/er/s/../y").file("f");
    check(&chained.done(), Err("`..` after a name"));
}

#[test]
fn kinds_that_no_function_needs() {
    check(&Tar::new().kind(b'3', "tty", "").done(), Err("`tty`: a device"));
    check(&Tar::new().kind(b'4', "sda", "").done(), Err("a device"));
    check(&Tar::new().kind(b'6', "fifo", "").done(), Err("a named pipe"));
    check(&Tar::new().kind(b'S', "holes", "").done(), Err("a sparse file"));
    check(&Tar::new().kind(b'V', "label", "").done(), Err("unknown kind `V`"));
    check(&Tar::new().kind(b'\n', "x", "").done(), Err("unknown kind `\\n`"));
    check(&Tar::new().pax(b'x', &[("GNU.sparse.major", "1")]).file("f").done(), Err("a sparse file"));
    check(&Tar::new().pax(b'g', &[("path", "x")]).file("f").done(), Err("global pax header"));
    check(&Tar::new().mode(b'0', "su", 0o4755).done(), Err("`su`: a setuid"));
    check(&Tar::new().mode(b'0', "sg", 0o2755).done(), Err("setgid"));
    check(&Tar::new().mode(b'5', "d", 0o4755).done(), Err("setuid"));
    check(&Tar::new().kind(b'5', "d", "data").done(), Err("data in an entry that is no file"));
    check(&Tar::new().kind(b'2', "l", "data").done(), Err("without a target"));
}

#[test]
fn paths_twice() {
    check(&Tar::new().file("f").file("f").done(), Err("`f`: a file that appears twice"));
    check(&Tar::new().file("f").file("./f").done(), Err("a file that appears twice"));
    check(&Tar::new().folder("d").folder("d/").done(), Err("a folder that appears twice"));
    check(&Tar::new().file("f").folder("f").done(), Err("both a folder and a file"));
    check(&Tar::new().file("f").file("f/g").done(), Err("`f/g`: a path below a file"));
    check(&Tar::new().file("f/g").file("f").done(), Err("both a folder and a file"));
    check(&Tar::new().file("f").link(b'2', "f", "g").done(), Err("a file that appears twice"));
}

#[test]
fn names() {
    let named = |bytes: &[u8]| {
        let mut header = Tar::header(b'0', "", 0);
        header.as_old_mut().name[..bytes.len()].copy_from_slice(bytes);
        Tar::new().add(header, "").done()
    };
    check(&named(b"a\xff"), Err("`a\\xff`: a name that is not UTF-8"));
    check(&named(b"a\nb"), Err("`a\\nb`: a name with a control character"));
    check(&named("a\u{9b}31m".as_bytes()), Err("control character"));
    check(&Tar::new().pax(b'x', &[("path", "a\0b")]).file("f").done(), Err("control character"));
    let pax = |path: &str| Tar::new().pax(b'x', &[("path", path)]).file("f").done();
    check(&pax(&"n".repeat(256)), Err("longer than 255 bytes"));
    check(&pax(&"n/".repeat(400)), Err("longer than 512 bytes"));
    check(&pax(&"n/".repeat(65)), Err("more than 64 names"));
    let shown = super::check(&pax(&"n".repeat(4000))[..], &caps()).unwrap_err().entry.unwrap();
    assert_eq!(shown.chars().count(), 121);
}

#[test]
fn headers() {
    let mut damaged = Tar::new().file("f").tar();
    damaged[3] ^= 1;
    check(&gzip(&damaged), Err("wrong checksum"));
    let mut header = Tar::header(b'0', "f", 0);
    header.as_old_mut().size = *b"not a number";
    check(&Tar::new().add(header, "").done(), Err("a size that is not a number"));
    let body = |body: &[u8]| Tar::new().kind(b'x', "pax", body).file("f").done();
    for bad in
        ["nonsense", "5 a=b", "99 a=b\n", "6 a=b\nx", "0 a=b\n", "4 a\n", "6 =bc\n", "+6 a=b\n", "99999999999 a=b\n"]
    {
        check(&body(bad.as_bytes()), Err("not made of pax records"));
    }
    check(&Tar::new().pax(b'x', &[("size", "-1")]).file("f").done(), Err("size is not a number"));
    let twice = Tar::new().pax(b'x', &[("path", "a")]).pax(b'x', &[("path", "b")]).file("f");
    check(&twice.done(), Err("two extended headers"));
    check(&Tar::new().file("g").pax(b'x', &[("path", "a")]).done(), Err("cut off"));
    check(&Tar::new().kind(b'x', "pax", vec![b'x'; 257 * 1024]).done(), Err("`pax`: an extended header over 256 KiB"));
    // 2^63 bytes of long name, announced in 12 bytes.
    let mut header = Tar::header(b'L', "name", 0);
    header.set_size(1 << 63);
    check(&Tar::new().add(header, "").done(), Err("an extended header over 256 KiB"));
}

#[test]
fn streams() {
    let sound = Tar::new().file("f").done();
    check(b"", Err("cut off"));
    check(b"PK\x03\x04 is a zip file", Err("not a sound gzip stream"));
    check(&Tar::new().file("f").tar(), Err("not a sound gzip stream"));
    check(&gzip(b""), Err("cut off"));
    check(&gzip(b"no tar"), Err("cut off"));
    check(&gzip(&[b'x'; 512]), Err("wrong checksum"));
    check(&gzip(&Tar::new().file("f").0), Err("cut off"));
    check(&gzip(&Tar::new().file("f").tar()[..700]), Err("cut off"));
    for end in 0..sound.len() {
        assert!(super::check(&sound[..end], &caps()).is_err(), "the first {end} bytes of an archive");
    }
    let mut wrong_sum = sound.clone();
    let sum = wrong_sum.len() - 8;
    wrong_sum[sum] ^= 1;
    check(&wrong_sum, Err("not a sound gzip stream"));
    check(&[&sound[..], b"garbage"].concat(), Err("data after the end of the gzip stream"));
    check(&[&sound[..], &sound[..]].concat(), Err("data after the end of the gzip stream"));
    check(&gzip(&[Tar::new().file("f").tar(), b"garbage".to_vec()].concat()), Err("data after the end of the tar"));
    check(&gzip(&Tar::new().file("f").raw(&[0; 512]).file("g").tar()), Err("data after the end of the tar"));
    check(&Tar::new().done(), Err("no files"));
    check(&Tar::new().folder("d").done(), Err("no files"));
}

#[test]
fn caps_hold() {
    let zeros = |mib: usize| Tar::new().kind(b'0', "zeros", vec![0; mib << 20]).done();
    check(&zeros(9), Ok("zeros"));
    check(&zeros(15), Err("more than 100 times"));
    check(&zeros(25), Err("more than 20 MiB"));
    let noise: Vec<u8> = Noise(1).take(1_100_000).collect();
    check(&Tar::new().kind(b'0', "noise", noise).done(), Err("larger than 1 MiB"));
    let many = |count| (0..count).fold(Tar::new(), |tar, at| tar.file(&format!("f{at}"))).done();
    check(&many(51), Err("more than 50 files"));
    assert!(super::check(&many(50)[..], &caps()).is_ok());
    let deep = format!("{}f", "d/".repeat(60));
    check(&Tar::new().file(&format!("{}f", "d/".repeat(49))).done().clone(), Ok(&format!("{}f", "d/".repeat(48))));
    check(&Tar::new().pax(b'x', &[("path", &deep)]).file("f").done(), Err("more than 50 files"));
    let mut global = Tar::new();
    for _ in 0..60 {
        global = global.pax(b'g', &[("comment", "c")]);
    }
    check(&global.file("f").done(), Err("more than 50 files"));
}

/// A bomb is refused long before it is read: the source counts what was taken from it.
#[test]
fn bombs_cost_little() {
    struct Counted<'a>(&'a [u8], usize);
    impl Read for Counted<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let read = self.0.read(into)?;
            self.1 += read;
            Ok(read)
        }
    }
    let bombs = [
        ("zeros", Tar::new().kind(b'0', "zeros", vec![0; 64 << 20]).done(), 16 << 10),
        ("padding", gzip(&[Tar::new().file("f").tar(), vec![0; 64 << 20]].concat()), 16 << 10),
        ("pax", Tar::new().kind(b'x', "pax", vec![b'9'; 64 << 20]).done(), 8 << 10),
        ("long name", Tar::new().kind(b'L', "name", vec![b'n'; 64 << 20]).done(), 8 << 10),
        ("noise behind", [Tar::new().file("f").done(), Noise(2).take(8 << 20).collect()].concat(), 8 << 10),
    ];
    for (what, bomb, most) in bombs {
        let mut source = Counted(&bomb, 0);
        assert!(super::check(&mut source, &caps()).is_err(), "{what}");
        assert!(source.1 <= most, "{what}: {} of {} bytes read", source.1, bomb.len());
    }
}

#[test]
fn manifests() {
    let of = |tar: Tar| super::check(&tar.done()[..], &caps()).map(|contents| contents.manifest);
    let text = "runtime = 'python'";
    let with = |path| Tar::new().kind(b'0', path, text);
    assert_eq!(of(with("dartcloud.toml")), Ok(Some(text.into())));
    assert_eq!(of(with("top/dartcloud.toml").file("top/main.py")), Ok(Some(text.into())));
    assert_eq!(of(with("a/dartcloud.toml").file("main.py")), Ok(None));
    assert_eq!(of(with("top/a/dartcloud.toml").file("top/main.py")), Ok(None));
    let refused = |tar, part: &str| assert!(of(tar).unwrap_err().to_string().contains(part), "{part}");
    refused(Tar::new().kind(b'0', "dartcloud.toml", vec![b' '; 70_000]), "larger than 64 KiB");
    refused(Tar::new().kind(b'0', "dartcloud.toml", b"\xff"), "not UTF-8");
    refused(Tar::new().file("f").link(b'2', "dartcloud.toml", "f"), "must be a plain file");
    refused(Tar::new().file("f").folder("dartcloud.toml"), "must be a plain file");
}

#[test]
fn files_are_found_over_links() {
    let tar = Tar::new()
        .mode(b'0', "top/bin/run", 0o755)
        .file("top/main.py")
        .link(b'2', "top/main", "bin/run")
        .link(b'2', "top/to-bin", "bin")
        .link(b'2', "top/loop", "loop")
        .link(b'2', "top/nowhere", "missing");
    let contents = super::check(&tar.done()[..], &caps()).unwrap();
    assert_eq!(contents.root.as_deref(), Some("top"));
    let found = |path: &str| (contents.exists(path, false), contents.exists(path, true));
    let cases = [
        ("main.py", (true, false)),
        ("main", (true, true)),
        ("to-bin/run", (true, true)),
        ("./bin//run", (true, true)),
        ("bin", (false, false)),
        ("main.py/x", (false, false)),
        ("loop", (false, false)),
        ("nowhere", (false, false)),
        ("top/main.py", (false, false)),
        ("../top/main.py", (false, false)),
        ("/main.py", (false, false)),
        ("", (false, false)),
    ];
    for (path, expected) in cases {
        assert_eq!(found(path), expected, "{path}");
    }
}

#[test]
fn what_real_tools_make() {
    let source = tempfile::tempdir().unwrap();
    let at = |name: &str| source.path().join(name);
    let deep = format!("pkg/{}/{}", "d".repeat(150), "f".repeat(150));
    std::fs::create_dir_all(at(&deep).parent().unwrap()).unwrap();
    for name in ["main.py", &deep, "run"] {
        std::fs::write(at(name), name).unwrap();
    }
    std::fs::set_permissions(at("run"), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("../main.py", at("pkg/link")).unwrap();
    let run = |script: &str| {
        let mut shell = Command::new("sh");
        let output =
            shell.args(["-ec", script]).current_dir(source.path()).env("HOME", source.path()).output().unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let mut lines = ["main.py", "pkg/link -> ../main.py", &deep, "run*"];
    lines.sort_unstable();
    let expected = lines.join(" ");
    for format in ["gnu", "pax", "posix"] {
        check(&run(&format!("tar --format={format} -czf - *")), Ok(&expected));
        check(&run(&format!("tar --format={format} -czf - .")), Ok(&expected));
    }
    check(&run("ln main.py twin; tar -czf - main.py twin; rm twin"), Ok("main.py twin"));
    run("git init -q . && git add -A && git -c user.name=n -c user.email=e@example.org commit -qm m");
    check(&run("git archive --format=tar.gz HEAD"), Ok(&expected));
    check(&run("git archive --format=tar.gz --prefix=project-1.0/ HEAD"), Ok(&expected));
}
