//! The templates are compiled in: a new file among them has to make this crate anew.

#[allow(clippy::print_stdout, reason = "this is how a build script speaks to cargo")]
fn main() {
    println!("cargo:rerun-if-changed=templates");
}
