//! The simulated nodes: sandboxes that are busy or idle, of which the longest idle one makes room, and what the gateway
//! has heard of all that.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use common::ids::{DeploymentId, NodeId};
use common::protocol::NodeState;
use gateway::placement::{Candidate, Load, Rankings, Seat, View, Wanted};
use store::fleet::Duty;

use super::world::{Function, Size, World};

/// A function's sandboxes on a node.
struct Share {
    deployment: DeploymentId,
    memory_mb: u64,
    busy: u32,
    idle: u32,
    last_use: u64,
}

struct Node {
    seen: Candidate,
    memory_mb: u64,
    cpus: u32,
    used_mb: u64,
    idle_mb: u64,
    busy: u32,
    shares: HashMap<usize, Share>,
    /// Functions that have something idle, by their last use.
    idle: BTreeSet<(u64, usize)>,
}

/// What a call found on its node.
pub(super) struct Found {
    /// Its function is warm there.
    pub(super) is_warm: bool,
    /// It is not, but on another node.
    pub(super) is_missed: bool,
    pub(super) is_idle: bool,
}

struct Call {
    node: usize,
    function: usize,
    _seat: Option<Seat>,
}

pub(super) struct Fleet {
    nodes: Vec<Node>,
    view: View,
    load: Arc<Load>,
    rankings: Rankings,
    under_way: VecDeque<Call>,
    now: u64,
    /// Sandboxes that were started although there was no memory for them.
    pub(super) beyond: usize,
}

/// A node that has just been linked.
pub(super) fn newcomer(size: &Size) -> Candidate {
    let state = NodeState { memory_total_mb: size.memory_mb, cpus: Some(size.cpus), ..NodeState::default() };
    Candidate {
        node: NodeId::new(),
        state: Arc::new(state),
        load: Arc::default(),
        duty: Duty::Active,
        is_avoided: false,
        hands_over: Vec::new(),
        takes_over: Vec::new(),
        labels: Arc::default(),
        labelled: 0,
        placed: Arc::default(),
    }
}

impl Node {
    fn new(size: &Size) -> Self {
        Self {
            seen: newcomer(size),
            memory_mb: size.memory_mb,
            cpus: size.cpus,
            used_mb: 0,
            idle_mb: 0,
            busy: 0,
            shares: HashMap::new(),
            idle: BTreeSet::new(),
        }
    }

    fn state(&self) -> NodeState {
        let mut warm: Vec<_> = self.shares.values().map(|share| share.deployment).collect();
        warm.sort_unstable();
        NodeState {
            busy: self.busy,
            warm,
            memory_total_mb: self.memory_mb,
            memory_used_mb: self.used_mb,
            memory_idle_mb: Some(self.idle_mb),
            cpus: Some(self.cpus),
            ..NodeState::default()
        }
    }

    /// Whether there was room for what it starts, if it starts something.
    fn begin(&mut self, function: &Function, now: u64) -> (Found, bool) {
        self.busy += 1;
        let mut found = Found { is_warm: false, is_missed: false, is_idle: false };
        if let Some(share) = self.shares.get_mut(&function.place) {
            found = Found { is_warm: true, is_missed: false, is_idle: share.idle > 0 };
            if found.is_idle {
                self.idle.remove(&(share.last_use, function.place));
                (share.idle, share.busy, share.last_use) = (share.idle - 1, share.busy + 1, now);
                self.idle_mb -= share.memory_mb;
                if share.idle > 0 {
                    self.idle.insert((now, function.place));
                }
                return (found, true);
            }
        }
        let memory_mb = function.memory_mb();
        let fits = self.make_room(memory_mb);
        self.used_mb += memory_mb;
        let share = self.shares.entry(function.place).or_insert_with(|| Share {
            deployment: function.spec.deployment,
            memory_mb,
            busy: 0,
            idle: 0,
            last_use: now,
        });
        (share.busy, share.last_use) = (share.busy + 1, now);
        (found, fits)
    }

    fn make_room(&mut self, memory_mb: u64) -> bool {
        while self.used_mb + memory_mb > self.memory_mb {
            let Some((last_use, place)) = self.idle.pop_first() else { return false };
            let share = self.shares.get_mut(&place).expect("what is idle is there");
            share.idle -= 1;
            self.used_mb -= share.memory_mb;
            self.idle_mb -= share.memory_mb;
            if share.idle > 0 {
                self.idle.insert((last_use, place));
            } else if share.busy == 0 {
                self.shares.remove(&place);
            }
        }
        true
    }

    fn end(&mut self, function: usize, now: u64) {
        self.busy -= 1;
        let share = self.shares.get_mut(&function).expect("what is busy is there");
        self.idle.remove(&(share.last_use, function));
        (share.idle, share.busy, share.last_use) = (share.idle + 1, share.busy - 1, now);
        self.idle_mb += share.memory_mb;
        self.idle.insert((now, function));
    }
}

impl Fleet {
    pub(super) fn new(world: &World) -> Self {
        let mut nodes: Vec<_> = world.nodes.iter().map(Node::new).collect();
        nodes.sort_by_key(|node| node.seen.node);
        let mut fleet = Self {
            nodes,
            view: View::default(),
            load: Arc::default(),
            rankings: Rankings::default(),
            under_way: VecDeque::new(),
            now: 0,
            beyond: 0,
        };
        fleet.hear(0, 1);
        fleet
    }

    /// The heartbeats of one group of nodes.
    pub(super) fn hear(&mut self, group: usize, groups: usize) {
        for node in self.nodes.iter_mut().skip(group).step_by(groups) {
            node.seen.load.heard(node.busy);
            node.seen.state = Arc::new(node.state());
        }
        self.view = View::new(self.candidates(), self.load.clone());
    }

    /// One call begins, and those end that are more than `in_flight`.
    pub(super) fn call(&mut self, function: &Function, in_flight: usize) -> Found {
        self.now += 1;
        while self.under_way.len() >= in_flight {
            let Some(call) = self.under_way.pop_front() else { break };
            self.nodes[call.node].end(call.function, self.now);
        }
        let place = self.view.choose(&Wanted::of(&function.spec), &mut self.rankings).expect("there are nodes");
        let (mut found, fits) = self.nodes[place].begin(function, self.now);
        let is_elsewhere = |(other, node): (usize, &Node)| other != place && node.shares.contains_key(&function.place);
        found.is_missed = !found.is_warm && self.nodes.iter().enumerate().any(is_elsewhere);
        self.beyond += usize::from(!fits);
        self.under_way.push_back(Call { node: place, function: function.place, _seat: self.view.seat(place) });
        found
    }

    pub(super) fn candidates(&self) -> Vec<Candidate> {
        self.nodes.iter().map(|node| node.seen.clone()).collect()
    }

    /// The load of each node's CPUs, against the mean.
    pub(super) fn loads(&self) -> impl Iterator<Item = f64> {
        let (busy, cpus) = self.nodes.iter().fold((0, 0), |(busy, cpus), node| (busy + node.busy, cpus + node.cpus));
        let mean = f64::from(busy) / f64::from(cpus);
        self.nodes.iter().map(move |node| f64::from(node.busy) / f64::from(node.cpus) / mean)
    }

    /// Memory of one sandbox of every function that is warm somewhere, in MiB.
    pub(super) fn warm_mb(&self) -> u64 {
        let mut seen = HashMap::new();
        for node in &self.nodes {
            seen.extend(node.shares.iter().map(|(place, share)| (*place, share.memory_mb)));
        }
        seen.values().sum()
    }
}
