//! Placement, as data.

use super::ranking::score;
use super::*;

/// A node as a test says it: busy calls, CPUs, memory in all, used and idle, and whether the version is warm there.
#[derive(Clone, Copy, Default)]
struct Facts {
    busy: u32,
    cpus: Option<u32>,
    memory: (u64, u64, Option<u64>),
    is_warm: bool,
    duty: Duty,
    is_avoided: bool,
    has_no_engine: bool,
    /// Of the version that is placed, or of another.
    hands_over: Option<bool>,
    labels: &'static str,
    has_build: bool,
    takes_over: bool,
}

static NONE: Labels = Labels::NONE;

fn wanted() -> Wanted<'static> {
    let (key, deployment) = (NodeId::new().uuid().as_u128(), DeploymentId::new());
    Wanted { key, deployment, memory_mb: 128, selector: &NONE }
}

fn view(nodes: impl IntoIterator<Item = (NodeId, Facts)>, wanted: &Wanted<'_>) -> View {
    let candidate = |(node, facts): (NodeId, Facts)| {
        let load = Arc::new(Load::default());
        load.heard(facts.busy);
        let (memory_total_mb, memory_used_mb, memory_idle_mb) = facts.memory;
        let warm = if facts.is_warm { vec![wanted.deployment] } else { Vec::new() };
        let Facts { busy, cpus, duty, is_avoided, .. } = facts;
        let hands_over = facts.hands_over.map(|this| if this { wanted.deployment } else { DeploymentId::new() });
        let hands_over = hands_over.into_iter().collect();
        let state =
            NodeState { busy, cpus, memory_total_mb, memory_used_mb, memory_idle_mb, warm, ..NodeState::default() };
        let state = NodeState { engine_answers: facts.has_no_engine.then_some(false), ..state };
        let labels = Arc::new(facts.labels.parse().unwrap());
        let (state, labelled) = (Arc::new(state), facts.labels.len() as u64);
        let placed = Arc::new(facts.has_build.then_some(wanted.deployment).into_iter().collect());
        let takes_over = facts.takes_over.then_some(wanted.deployment).into_iter().collect();
        Candidate { node, state, load, duty, is_avoided, hands_over, takes_over, labels, labelled, placed }
    };
    View::new(nodes.into_iter().map(candidate).collect(), Arc::default())
}

/// Chooses among nodes with these facts, the first in the ranking first; `expected` is a rank.
fn check(facts: &[Facts], expected: Option<usize>, why: &str) {
    check_for(wanted(), facts, expected, why);
}

fn check_for(wanted: Wanted<'_>, facts: &[Facts], expected: Option<usize>, why: &str) {
    let mut nodes: Vec<_> = facts.iter().map(|_| NodeId::new()).collect();
    // As if all had the same memory, which in these tests they have.
    nodes.sort_by(|a, b| score(*b, 1.0, wanted.key).total_cmp(&score(*a, 1.0, wanted.key)));
    let view = view(nodes.into_iter().zip(facts.iter().copied()), &wanted);
    assert_eq!(view.choose(&wanted, &mut Rankings::default()), expected, "{why}");
}

#[test]
fn choices() {
    let cold = Facts::default();
    let warm = Facts { is_warm: true, ..cold };
    let busy = |busy| Facts { busy, ..cold };
    check(&[], None, "no node");
    check(&[busy(1000)], Some(0), "the only one");
    check(&[cold, cold, cold], Some(0), "the first in the ranking");
    check(&[cold, cold, warm], Some(2), "the warm one");
    check(&[cold, warm, warm], Some(1), "the first warm one");
    check(&[cold, cold, Facts { busy: 100, ..warm }], Some(0), "the warm one carries too much");
    check(&[busy(10), busy(10), busy(10)], Some(0), "all carry the mean");
    check(&[busy(15), busy(10), busy(10)], Some(1), "over 1.25 times the mean");
    check(&[busy(13), busy(10), busy(10)], Some(0), "not yet");
    let cpus = |busy, cpus| Facts { busy, cpus: Some(cpus), ..cold };
    check(&[cpus(20, 8), cpus(10, 4), cpus(10, 4)], Some(0), "twice the CPUs carry twice the calls");
    check(&[cpus(20, 4), cpus(10, 8), cpus(10, 4)], Some(1), "and no more");
    check(&[cpus(10, 4), Facts { busy: 10, ..cold }], Some(0), "unknown CPUs are not none");
    check(&[cpus(14, 4), Facts { busy: 1, ..cold }], Some(1), "unknown CPUs are not none");

    let built = Facts { has_build: true, ..cold };
    check(&[cold, built, built], Some(1), "the first of those that have the build");
    check(&[cold, built, warm], Some(2), "a warm one needs none");
    check(&[cold, Facts { busy: 100, ..built }], Some(0), "it carries too much");
    check(&[cold, Facts { memory: (1024, 1024, Some(1024)), ..built }], Some(0), "room is worth more");

    let memory = |total, used, idle| Facts { memory: (total, used, idle), ..cold };
    check(&[memory(1024, 1000, Some(500)), memory(1024, 0, Some(0))], Some(1), "memory that is free");
    check(&[memory(1024, 1000, Some(0)), memory(1024, 1000, Some(500))], Some(1), "memory that can be had");
    check(&[memory(1024, 1000, None), memory(1024, 1000, Some(500))], Some(0), "an older agent does not say");
    check(&[Facts { is_warm: true, ..memory(1024, 1024, Some(0)) }, memory(1024, 0, None)], Some(0), "warm needs none");
    check(&[memory(1024, 1024, Some(0)), memory(1024, 1024, Some(0))], Some(0), "nowhere: the agent lets it wait");
}

#[test]
fn a_start_needs_an_engine() {
    let cold = Facts::default();
    let lame = Facts { has_no_engine: true, ..cold };
    check(&[lame, cold], Some(1), "one that can start it");
    check(&[lame, Facts { busy: 1000, ..cold }], Some(1), "whatever that carries");
    check(&[Facts { has_build: true, ..lame }, cold], Some(1), "a build starts nothing");
    check(&[cold, Facts { is_warm: true, ..lame }], Some(1), "what is warm needs no start");
    check(&[lame, lame], Some(0), "nobody has one: the node says so");
    check(&[lame], Some(0), "the only one");
}

#[test]
fn who_is_silent_or_fails_is_avoided() {
    let cold = Facts::default();
    let avoided = Facts { is_avoided: true, is_warm: true, ..cold };
    check(&[avoided], Some(0), "the only one");
    check(&[avoided, cold], Some(1), "nothing new, warm or not");
    check(&[avoided, Facts { busy: 1000, ..cold }], Some(1), "whatever the other one carries");
    check(&[Facts { is_warm: false, ..avoided }, avoided], Some(1), "all are: as if none were");
    check(&[avoided, Facts { duty: Duty::Draining, ..cold }], Some(0), "there is no other");
}

#[test]
fn another_node_than_the_one_that_failed() {
    let check = |facts: &[Facts], failed: usize, expected: Option<usize>| {
        let wanted = wanted();
        let nodes: Vec<_> = facts.iter().map(|_| NodeId::new()).collect();
        let view = view(nodes.iter().copied().zip(facts.iter().copied()), &wanted);
        assert_eq!(view.choose_other(&wanted, nodes[failed]), expected, "{}", facts.len());
    };
    let (cold, busy) = (Facts::default(), Facts { busy: 10, ..Facts::default() });
    check(&[cold], 0, None);
    check(&[cold, cold], 0, Some(1));
    check(&[cold, cold], 1, Some(0));
    check(&[cold, busy], 0, Some(1));
    check(&[cold, Facts { is_avoided: true, ..cold }], 0, None);
    let cordoned = Facts { duty: Duty::Cordoned, is_warm: true, ..cold };
    check(&[cordoned, cordoned], 0, Some(1));
    check(&[cold, cordoned], 0, Some(1));
    check(&[cordoned], 0, None);
    // One that is gone already is no other's place.
    let (wanted, gone) = (wanted(), NodeId::new());
    assert_eq!(view([(NodeId::new(), cold)], &wanted).choose_other(&wanted, gone), Some(0));
}

#[test]
fn duties() {
    use Duty::{Active, Cordoned, Draining, Removed};
    let cold = |duty| Facts { duty, ..Facts::default() };
    let warm = |duty| Facts { is_warm: true, ..cold(duty) };
    check(&[warm(Cordoned)], Some(0), "the last resort");
    check(&[cold(Cordoned)], None, "nothing new");
    check(&[warm(Draining)], None, "nothing at all");
    check(&[warm(Cordoned), cold(Active)], Some(1), "not while there is another");
    check(&[warm(Cordoned), Facts { busy: 9, ..cold(Active) }], Some(1), "whatever that carries");
    check(&[cold(Cordoned), warm(Cordoned), warm(Draining)], Some(1), "of two the warm one");
    check(&[warm(Draining), warm(Removed)], None, "nothing at all");
}

#[test]
fn what_is_handed_over_goes_on_until_it_is_warm_elsewhere() {
    let cold = Facts::default();
    let warm = Facts { is_warm: true, ..cold };
    let drained = Facts { duty: Duty::Draining, ..warm };
    let (hands_over, done) =
        (Facts { hands_over: Some(true), ..drained }, Facts { hands_over: Some(false), ..drained });
    check(&[hands_over], Some(0), "the only one");
    check(&[done], None, "nothing else");
    check(&[cold, hands_over], Some(1), "warm there, and not yet elsewhere");
    check(&[cold, Facts { busy: 1000, ..hands_over }], Some(1), "whatever it carries");
    check(&[warm, hands_over], Some(0), "the first warm one");
    check(&[Facts { takes_over: true, ..warm }, hands_over], Some(1), "it is about to be warm");
    check(&[Facts { busy: 1000, ..warm }, hands_over], Some(1), "what is warm elsewhere carries too much");
    check(&[done, cold], Some(1), "what is not handed over goes elsewhere");
    check(&[done, Facts { busy: 1000, ..cold }], Some(1), "whatever that carries");
    check(&[Facts { is_avoided: true, ..hands_over }, cold], Some(1), "it fails");
}

#[test]
fn who_takes_over() {
    let check = |facts: &[Facts], expected: Option<usize>, why: &str| {
        let wanted = wanted();
        let nodes = facts.iter().map(|facts| (NodeId::new(), *facts));
        assert_eq!(view(nodes, &wanted).successor(&wanted), expected, "{why}");
    };
    let cold = Facts::default();
    let warm = Facts { is_warm: true, ..cold };
    let drained = Facts { duty: Duty::Draining, hands_over: Some(true), ..warm };
    let full = Facts { memory: (1024, 1024, Some(0)), ..cold };
    check(&[drained], None, "nobody");
    check(&[drained, Facts { duty: Duty::Cordoned, ..warm }], None, "nothing new there");
    check(&[drained, cold], Some(1), "one that has room");
    check(&[drained, cold, warm], Some(2), "one that has it warm");
    check(&[drained, full], None, "no room");
    check(&[drained, Facts { is_warm: true, ..full }], Some(1), "warm needs none");
    check(&[drained, full, Facts { memory: (1024, 1024, Some(512)), ..cold }], Some(2), "room can be had");
    check(&[drained, Facts { is_avoided: true, ..cold }, cold], Some(2), "the other one fails");
}

#[test]
fn only_nodes_with_the_labels() {
    let (cold, selector) = (Facts::default(), "gpu=true".parse().unwrap());
    let check = |facts: &[Facts], expected, why: &str| {
        check_for(Wanted { selector: &selector, ..wanted() }, facts, expected, why);
    };
    let gpu = Facts { labels: "zone=a,gpu=true", ..cold };
    check(&[gpu], Some(0), "the only one");
    check(&[cold], None, "the only one has them not");
    check(&[Facts { is_warm: true, ..cold }, gpu], Some(1), "whatever is warm elsewhere");
    check(&[cold, Facts { busy: 1000, ..gpu }, cold], Some(1), "whatever it carries");
    check(&[Facts { labels: "gpu=false", ..cold }, cold], None, "another value is none");
    check(&[cold, Facts { duty: Duty::Draining, ..gpu }], None, "it takes nothing");
    let cordoned = Facts { duty: Duty::Cordoned, is_warm: true, ..cold };
    check(&[cordoned, Facts { labels: gpu.labels, ..cordoned }], Some(1), "the last resort");
    // Beyond those that are looked at as a rule.
    let many: Vec<_> = [cold; 40].into_iter().chain([gpu]).collect();
    check(&many, Some(40), "the last of many");
}

#[test]
fn a_ranking_goes_with_the_labels() {
    let (wanted, selector) = (wanted(), "gpu=true".parse().unwrap());
    let wanted = Wanted { selector: &selector, ..wanted };
    let (ids, mut rankings) = ([NodeId::new(), NodeId::new()], Rankings::default());
    let gpu = Facts { labels: "gpu=true", ..Facts::default() };
    for place in [0, 1, 0] {
        let facts = |number| if number == place { gpu } else { Facts::default() };
        let view = view(ids.into_iter().enumerate().map(|(number, node)| (node, facts(number))), &wanted);
        assert_eq!(view.choose(&wanted, &mut rankings), Some(place));
    }
}

#[test]
fn seats_count_at_once() {
    let wanted = wanted();
    let view = view((0..4).map(|_| (NodeId::new(), Facts::default())), &wanted);
    let mut rankings = Rankings::default();
    let mut counts = [0; 4];
    let seats: Vec<_> = (0..100)
        .map(|_| {
            let place = view.choose(&wanted, &mut rankings).unwrap();
            counts[place] += 1;
            view.seat(place).unwrap()
        })
        .collect();
    counts.sort_unstable();
    assert!(counts[3] <= 32 && counts[3] > counts[0], "{counts:?}");
    let home = view.home(wanted.key);
    drop(seats);
    let place = view.choose(&wanted, &mut rankings).unwrap();
    assert_eq!((view.load.now(), Some(view.nodes[place].node)), (0, home));
}

#[test]
fn one_that_fills_all_of_its_own_goes_on_elsewhere() {
    let wanted = wanted();
    let view = view((0..50).map(|_| (NodeId::new(), Facts::default())), &wanted);
    let mut rankings = Rankings::default();
    let seats: Vec<_> = (0..1000).map(|_| view.seat(view.choose(&wanted, &mut rankings).unwrap()).unwrap()).collect();
    let most = view.nodes.iter().map(|node| node.load.now()).max();
    assert!(seats.len() == 1000 && most <= Some(25), "{most:?} of 1000 calls are on one node of 50");
}

#[test]
fn a_home_stays_and_memory_weighs() {
    let wanted = wanted();
    let sized = |gib: u64| (NodeId::new(), Facts { memory: (gib * 1024, 0, None), ..Facts::default() });
    let nodes: Vec<_> = (0..10).map(|number| sized(if number == 0 { 32 } else { 16 })).collect();
    let keys: Vec<_> = (0..4000).map(|_| DeploymentId::new().uuid().as_u128()).collect();
    let homes = |nodes: &[(NodeId, Facts)]| -> Vec<_> {
        let view = view(nodes.iter().copied(), &wanted);
        keys.iter().map(|key| view.home(*key).unwrap()).collect()
    };
    let (all, less) = (homes(&nodes), homes(&nodes[1..]));
    let moved = all.iter().zip(&less).filter(|(before, after)| before != after).count();
    let large = all.iter().filter(|home| **home == nodes[0].0).count();
    assert_eq!(moved, large);
    // Two parts of eleven.
    assert!((600..860).contains(&large), "{large} of 4000 are on the node with twice the memory");
}

#[test]
fn rankings_are_of_the_view() {
    let (wanted, ids) = (wanted(), [NodeId::new(), NodeId::new(), NodeId::new()]);
    let mut rankings = Rankings::default();
    for nodes in [&ids[..], &ids[1..], &ids[..2], &ids[..]] {
        let view = view(nodes.iter().map(|node| (*node, Facts::default())), &wanted);
        let place = view.choose(&wanted, &mut rankings).unwrap();
        assert_eq!(Some(view.nodes[place].node), view.home(wanted.key));
    }
}
