//! Archives for tests: made from a list of files, or from an example's folder.

use std::path::Path;
use std::process::Command;

use flate2::Compression;
use flate2::write::GzEncoder;

/// A `tar.gz` of these files; a name that ends in `*` is executable.
pub(crate) fn archive(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (name, contents) in files {
        let (name, mode) = name.strip_suffix('*').map_or((*name, 0o644), |name| (name, 0o755));
        let mut header = tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        header.set_mode(mode);
        tar.append_data(&mut header, name, contents.as_bytes()).expect("memory takes what is written");
    }
    tar.into_inner().and_then(GzEncoder::finish).expect("memory takes what is written")
}

/// A native function: a shell script.
pub(crate) fn script(text: &str) -> Vec<u8> {
    archive(&[("main*", &format!("#!/bin/sh\n{text}\n")), PUBLIC])
}

/// A Python function from its body, in which `request` is the request and `answer(body)` gives the result.
pub(crate) fn python(text: &str) -> Vec<u8> {
    let prelude = "import json, os, sys, time\nrequest = json.load(open('/request.json'))\n\
                   def answer(body, **more):\n    json.dump({'body': body, **more}, open('/result.json', 'w'))\n";
    archive(&[("main.py", &format!("{prelude}{text}\n")), PUBLIC])
}

/// A manifest for functions that anyone may call.
pub(crate) const PUBLIC: (&str, &str) = ("dartcloud.toml", "access = \"public\"\n");

/// What `tar` makes of a folder of `examples/`.
pub(crate) fn example(name: &str) -> Vec<u8> {
    folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name))
}

/// What `tar` makes of a folder.
pub(crate) fn folder(path: &Path) -> Vec<u8> {
    let output = Command::new("tar").args(["-cz", "-C"]).arg(path).arg(".").output().expect("tar is installed");
    assert!(output.status.success(), "tar: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}
