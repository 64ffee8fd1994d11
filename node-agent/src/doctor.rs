//! What a machine is like that runs functions, or is to: facts are gathered here, and what they mean is judged in
//! [`judge`], as data.

use std::path::{Path, PathBuf};

use chrono::{TimeDelta, Utc};
use common::error::Chain;
use common::settings::Place;

use crate::Settings;
use crate::identity::Identity;
use crate::link::calls::Calls;
use crate::link::{Gateways, Way};
use crate::sandbox::{EngineFacts, examine_engine, has_runner};
use crate::station::station;

mod judge;

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How it is.
    pub grade: Grade,
    /// What it is about, in a word.
    pub about: &'static str,
    /// What was found, what it means, and the fix where there is one to be made.
    pub sentence: String,
}

/// How a thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grade {
    /// As it should be.
    Ok,
    /// Functions run, but something is worth mending.
    Warn,
    /// Functions do not run here.
    Fail,
}

impl Grade {
    /// The word before the sentence.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// What was found on a machine.
#[derive(Clone, Debug)]
struct Facts {
    /// What the Engine says of itself, or why it says nothing.
    engine: Result<EngineFacts, String>,
    /// Whether the program is there that is PID 1 of every sandbox.
    runner: Result<(), String>,
    /// Whether this process may mount.
    may_mount: bool,
    /// Swap of the machine, in MiB.
    swap_mb: u64,
    /// Where data lies, and how much room is left there, in MiB.
    disk: Result<(PathBuf, u64), String>,
    /// The gateway, if the machine has joined a fleet.
    gateway: Option<Gateway>,
}

/// A gateway, as this machine reaches it.
#[derive(Clone, Debug)]
struct Gateway {
    place: String,
    /// How far our clock is ahead of its, or why it does not say.
    clock_ahead: Result<TimeDelta, String>,
}

/// Looks at this machine, with the settings that its agent has.
pub async fn examine(settings: &Settings, place: &Place) -> Vec<Finding> {
    let facts = Facts {
        engine: examine_engine(&settings.sandbox).await.map_err(|error| Chain(&error).to_string()),
        runner: has_runner(&settings.sandbox).map_err(|error| error.to_string()),
        may_mount: judge::may_mount(&read("/proc/self/status")),
        swap_mb: judge::swap_mb(&read("/proc/meminfo")),
        disk: room(&place.data_dir),
        gateway: gateway(settings, place).await,
    };
    judge::judge(&facts)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// The room in the directory, or in the nearest one above it that is there.
fn room(data_dir: &Path) -> Result<(PathBuf, u64), String> {
    let there = data_dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let space = rustix::fs::statvfs(there).map_err(|error| format!("cannot look at {}: {error}", there.display()))?;
    Ok((data_dir.to_owned(), space.f_bavail * space.f_frsize / (1024 * 1024)))
}

/// What the gateway's clock says; a machine's own gateway has its clock.
async fn gateway(settings: &Settings, place: &Place) -> Option<Gateway> {
    match Identity::load(&place.data_dir) {
        Ok(None) => return None,
        Ok(Some(_)) => {}
        Err(error) => return Some(Gateway { place: "?".into(), clock_ahead: Err(Chain(&error).to_string()) }),
    }
    let station = match station(settings, &place.data_dir, place.link_socket()) {
        Ok(station) => station,
        Err(error) => return Some(Gateway { place: "?".into(), clock_ahead: Err(Chain(&error).to_string()) }),
    };
    let way @ Way::Tls { .. } = station.ways.first()? else { return None };
    let place = way.to_string();
    let calls = Calls::new(Gateways::new(station.node, station.ways));
    let asked = Utc::now();
    let told = calls.clock().await;
    // Half the way there and half the way back.
    let ours = asked + (Utc::now() - asked) / 2;
    calls.close().await;
    let clock_ahead = told.map(|theirs| ours - theirs).map_err(|error| Chain(&error).to_string());
    Some(Gateway { place, clock_ahead })
}
