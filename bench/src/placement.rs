//! The placement of many functions on many nodes, simulated with the gateway's own choice: nodes of differing sizes,
//! functions of differing memory whose popularity follows Zipf's law, heartbeats that come late. `bench placement`.

use std::fmt::Write as _;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use common::function::DeploymentSpec;
use common::ids::{DeploymentId, FunctionId};
use gateway::placement::{Rankings, View, Wanted};

use self::fleet::Fleet;
use self::world::{Function, World};

mod fleet;
mod world;

/// Heartbeats come in so many groups, one after the other.
const GROUPS: usize = 20;

/// How large the simulation is.
#[derive(Clone, Copy, clap::Args)]
pub(crate) struct Arguments {
    /// Nodes.
    #[arg(long, default_value_t = 1000)]
    nodes: usize,
    /// Functions.
    #[arg(long, default_value_t = 100_000)]
    functions: usize,
    /// Calls under way, on a node in the mean.
    #[arg(long, default_value_t = 20)]
    busy: usize,
    /// Memory of one sandbox of every function together, in percent of the fleet's.
    #[arg(long, default_value_t = 85)]
    full: u64,
    /// Heartbeats of each node before the measurement, and again during it.
    #[arg(long, default_value_t = 10)]
    heartbeats: usize,
}

/// What came of it.
struct Outcome {
    /// The load of a CPU against the mean: the highest that was ever seen, and the 99th percentile of all.
    load_max: f64,
    load_p99: f64,
    /// Shares of the calls: of those whose function is warm somewhere, those that went there; and those that needed no
    /// start.
    warm: f64,
    no_start: f64,
    /// Sandboxes for which even idle ones did not make room.
    beyond: usize,
    /// MiB that hold one sandbox of every function, as far as no other had to go: ours, and first-fit decreasing.
    placed_mb: u64,
    packed_mb: u64,
    wanted_mb: u64,
    /// Shares of the functions whose home changes, with one node less and one more, and what has to change.
    leaves: (f64, f64),
    joins: (f64, f64),
}

/// Runs the simulation; the table.
pub(crate) fn report(arguments: &Arguments) -> String {
    let outcome = simulate(arguments);
    let mut table = format!("{} nodes, {} functions\n\n", arguments.nodes, arguments.functions);
    let mut row = |what: &str, value: String| writeln!(table, "{what:<72}{value:>12}").expect("memory takes all");
    let percent = |share: f64| format!("{:.2} %", share * 100.0);
    row("load of a node's CPUs against the mean: highest", format!("{:.2}", outcome.load_max));
    row("  99th percentile", format!("{:.2}", outcome.load_p99));
    row("calls of functions that are warm somewhere, that go there", percent(outcome.warm));
    row("calls that find an idle sandbox", percent(outcome.no_start));
    row("sandboxes that no memory was left for", outcome.beyond.to_string());
    let share = |part: u64| percent(part as f64 / outcome.wanted_mb as f64);
    row("memory of all functions, one sandbox each, that is in place together", share(outcome.placed_mb));
    row("  packed by first-fit decreasing", share(outcome.packed_mb));
    row("homes that change when the largest node leaves", percent(outcome.leaves.0));
    row("  what has to change", percent(outcome.leaves.1));
    row("homes that change when one like it joins", percent(outcome.joins.0));
    row("  what has to change", percent(outcome.joins.1));
    for nodes in [1, 3, 16, arguments.nodes] {
        let (known, new) = times(nodes);
        row(&format!("a choice among {nodes}, by a thread that has the function's ranking"), format!("{known:.0} ns"));
        row("  by one that has not", format!("{new:.0} ns"));
    }
    table
}

fn simulate(arguments: &Arguments) -> Outcome {
    let mut world = World::new(arguments.nodes, arguments.functions, arguments.full);
    let (placed_mb, packed_mb) = (placed(&world), world.packed_mb());
    let mut fleet = Fleet::new(&world);
    let in_flight = arguments.nodes * arguments.busy;
    // A call takes as long as a heartbeat, so that what is heard is always old.
    let group = in_flight.div_ceil(GROUPS);
    let (mut loads, mut warm, mut missed, mut no_start, mut calls) = (Vec::new(), 0, 0, 0, 0);
    for beat in 0..2 * arguments.heartbeats * GROUPS {
        fleet.hear(beat % GROUPS, GROUPS);
        let measured = beat >= arguments.heartbeats * GROUPS;
        for _ in 0..group {
            let found = fleet.call(world.popular(), in_flight);
            if measured {
                warm += usize::from(found.is_warm);
                missed += usize::from(found.is_missed);
                no_start += usize::from(found.is_idle);
                calls += 1;
            }
        }
        if measured {
            loads.extend(fleet.loads());
        }
    }
    loads.sort_by(f64::total_cmp);
    let share = |part: usize, whole: usize| part as f64 / whole as f64;
    let largest = world.nodes.iter().enumerate().max_by_key(|(_, size)| size.memory_mb).map_or(0, |(place, _)| place);
    let all = fleet.candidates();
    let (mut less, mut more) = (all.clone(), all.clone());
    less.remove(largest);
    more.push(fleet::newcomer(&world.nodes[largest]));
    let homes = |nodes| {
        let view = View::new(nodes, Arc::default());
        let home = |function: &Function| view.home(function.spec.function.uuid().as_u128());
        world.functions.iter().map(home).collect::<Vec<_>>()
    };
    let (all, less, more) = (homes(all), homes(less), homes(more));
    let moved = |others: &[_]| {
        let moved = all.iter().zip(others).filter(|(one, other)| one != other).count();
        moved as f64 / arguments.functions as f64
    };
    let (size, whole) = (world.nodes[largest].memory_mb as f64, world.memory_mb() as f64);
    Outcome {
        load_max: loads.last().copied().unwrap_or(0.0),
        load_p99: loads.get(loads.len() * 99 / 100).copied().unwrap_or(0.0),
        warm: share(warm, warm + missed),
        no_start: share(no_start, calls),
        beyond: fleet.beyond,
        placed_mb,
        packed_mb,
        wanted_mb: world.functions.iter().map(|function| function.memory_mb()).sum(),
        leaves: (moved(&less), size / whole),
        joins: (moved(&more), size / (whole + size)),
    }
}

/// Calls every function once, one call at a time; the memory of the functions that are still warm at the end, in MiB.
fn placed(world: &World) -> u64 {
    let mut fleet = Fleet::new(world);
    let group = world.functions.len().div_ceil(100);
    for (number, function) in world.functions.iter().enumerate() {
        if number % group == 0 {
            fleet.hear(0, 1);
        }
        fleet.call(function, 1);
    }
    fleet.warm_mb()
}

/// How long a choice takes, in nanoseconds: with the function's ranking at hand, and without.
fn times(nodes: usize) -> (f64, f64) {
    const CHOICES: usize = 200_000;
    let mut world = World::new(nodes, 1000, 85);
    let mut fleet = Fleet::new(&world);
    fleet.hear(0, 1);
    for _ in 0..2000 {
        fleet.call(world.popular(), nodes);
    }
    fleet.hear(0, 1);
    let view = View::new(fleet.candidates(), Arc::default());
    let time = |wanted: &[Wanted<'_>], count: usize| {
        let mut rankings = Rankings::default();
        for wanted in wanted.iter().take(1000) {
            black_box(view.choose(wanted, &mut rankings));
        }
        let begun = Instant::now();
        for wanted in wanted.iter().cycle().skip(1000 % wanted.len()).take(count) {
            black_box(view.choose(wanted, &mut rankings));
        }
        begun.elapsed().as_nanos() as f64 / count as f64
    };
    let known: Vec<_> = world.functions.iter().map(|function| Wanted::of(&function.spec)).collect();
    let fresh = || {
        let spec = world.functions[0].spec.clone();
        DeploymentSpec { function: FunctionId::new(), deployment: DeploymentId::new(), ..spec }
    };
    let specs: Vec<_> = (0..10_000).map(|_| fresh()).collect();
    let new: Vec<_> = specs.iter().map(Wanted::of).collect();
    (time(&known, CHOICES), time(&new, new.len() - 1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_fleet_is_within_bounds() {
        let arguments = Arguments { nodes: 40, functions: 4000, busy: 20, full: 85, heartbeats: 5 };
        let outcome = simulate(&arguments);
        // Of small nodes a single call is a good part of the mean.
        assert!(outcome.load_max < 1.6 && outcome.load_p99 < 1.45, "{} {}", outcome.load_max, outcome.load_p99);
        assert!(outcome.warm > 0.9, "{} of the calls find their function warm", outcome.warm);
        let placed = outcome.placed_mb as f64 / outcome.packed_mb as f64;
        assert!(placed > 0.9, "{placed} of what an ideal packing places");
        for (moved, ideal) in [outcome.leaves, outcome.joins] {
            assert!((0.6 * ideal..1.4 * ideal).contains(&moved), "{moved} of the homes move, and not {ideal}");
        }
    }
}
