//! The archive check: what an uploaded `tar.gz` holds, decided before anything of it is unpacked; and unpacking,
//! which decides it all again.
//!
//! Both are one walk over the stream ([`walk`](walk::walk)) in constant memory but for the list of paths. A tar
//! is read block by block here and not through the `tar` crate's iterators: those take a long name or a pax
//! record into memory, and skip what they find odd, before anybody could say no.

mod caps;
mod check;
mod entry;
mod path;
mod pax;
mod refused;
mod stream;
#[cfg(test)]
mod tests;
mod tree;
mod unpack;
mod walk;

pub use caps::Caps;
pub use check::{Contents, check};
pub use refused::Refused;
pub use unpack::{UnpackError, unpack};
