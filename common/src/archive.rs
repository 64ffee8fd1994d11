//! The archive check: what an uploaded `tar.gz` holds, decided before anything of it is unpacked.
