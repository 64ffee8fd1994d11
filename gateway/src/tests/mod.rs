//! The gateway from its front door: a real one in this process, on SQLite in a directory of its own, with a peer of
//! the link protocol in the node's place.

mod calls;
mod connections;
mod drain;
mod failure;
mod fleet;
mod goodbye;
mod house;
mod labels;
mod node;
mod once;
mod proxies;
mod raw;
mod rotation;
mod sessions;
mod shares;
mod stop;
mod targets;
mod tls;
