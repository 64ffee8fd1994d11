//! The client commands, a file each.

pub(crate) mod backup;
pub(crate) mod delete;
pub(crate) mod deploy;
pub(crate) mod invoke;
pub(crate) mod list;
pub(crate) mod login;
pub(crate) mod logs;
pub(crate) mod migrate;
pub(crate) mod new;
pub(crate) mod node;
pub(crate) mod restore;
pub(crate) mod whoami;
pub(crate) mod why;
