//! What there is to place, and where: made of a fixed seed, but for the ids.

use std::collections::BTreeMap;

use common::digest::Digest;
use common::function::{Contract, DeploymentSpec, Limits};
use common::ids::{DeploymentId, FunctionId};

/// Memory of functions, in MiB; the small ones are common.
const FUNCTION_MB: [u32; 8] = [32, 64, 64, 128, 128, 128, 256, 512];

/// Nodes by their size.
const NODE_SIZES: [u64; 6] = [1, 1, 2, 2, 4, 8];

/// CPUs of the smallest node.
const NODE_CPUS: u32 = 2;

/// A node's size.
pub(super) struct Size {
    pub(super) memory_mb: u64,
    pub(super) cpus: u32,
}

/// A function, by its one version.
pub(super) struct Function {
    pub(super) place: usize,
    pub(super) spec: DeploymentSpec,
}

impl Function {
    pub(super) fn memory_mb(&self) -> u64 {
        self.spec.limits.memory_mb.into()
    }
}

/// Nodes and functions.
pub(super) struct World {
    pub(super) nodes: Vec<Size>,
    pub(super) functions: Vec<Function>,
    /// How many calls come to this function and those before it, as a share.
    popularity: Vec<f64>,
    random: Random,
}

impl World {
    /// One sandbox of each function takes `full` percent of the memory of all nodes.
    pub(super) fn new(nodes: usize, functions: usize, full: u64) -> Self {
        let mut random = Random(1);
        let functions: Vec<_> = (0..functions).map(|place| function(place, &mut random)).collect();
        let sizes: Vec<_> = (0..nodes).map(|place| NODE_SIZES[place % NODE_SIZES.len()]).collect();
        let wanted_mb: u64 = functions.iter().map(Function::memory_mb).sum();
        let unit_mb = (wanted_mb * 100 / full).div_ceil(sizes.iter().sum());
        let size = |size: &u64| Size { memory_mb: size * unit_mb, cpus: *size as u32 * NODE_CPUS };
        let mut sum = 0.0;
        let mut popularity: Vec<f64> = (1..=functions.len())
            .map(|rank| {
                sum += 1.0 / rank as f64;
                sum
            })
            .collect();
        popularity.iter_mut().for_each(|share| *share /= sum);
        Self { nodes: sizes.iter().map(size).collect(), functions, popularity, random }
    }

    /// The function of the next call.
    pub(super) fn popular(&mut self) -> &Function {
        let drawn = self.random.share();
        let place = self.popularity.partition_point(|share| *share < drawn);
        &self.functions[place.min(self.functions.len() - 1)]
    }

    pub(super) fn memory_mb(&self) -> u64 {
        self.nodes.iter().map(|size| size.memory_mb).sum()
    }

    /// What first-fit decreasing finds room for, in MiB.
    pub(super) fn packed_mb(&self) -> u64 {
        let mut sizes: Vec<_> = self.functions.iter().map(Function::memory_mb).collect();
        sizes.sort_unstable_by(|a, b| b.cmp(a));
        let mut free: Vec<_> = self.nodes.iter().map(|node| node.memory_mb).collect();
        // What has no room for one has none for the next that is as large.
        let (mut first, mut last, mut packed_mb) = (0, u64::MAX, 0);
        for size in sizes {
            if size < last {
                (first, last) = (0, size);
            }
            while first < free.len() && free[first] < size {
                first += 1;
            }
            if let Some(free) = free.get_mut(first) {
                *free -= size;
                packed_mb += size;
            }
        }
        packed_mb
    }
}

fn function(place: usize, random: &mut Random) -> Function {
    let memory_mb = FUNCTION_MB[random.next() as usize % FUNCTION_MB.len()];
    let spec = DeploymentSpec {
        deployment: DeploymentId::new(),
        function: FunctionId::new(),
        version: 1,
        runtime: "native".parse().expect("it is a word"),
        entrypoint: String::new(),
        archive: Digest::of(b""),
        archive_root: None,
        contract: Contract::File,
        limits: Limits { timeout_ms: 1000, memory_mb, concurrency: u32::MAX, min_warm: 0 },
        env: BTreeMap::new(),
        egress: false,
        stale_while_cold_ms: 0,
        node_selector: common::labels::Labels::NONE,
    };
    Function { place, spec }
}

/// `SplitMix64`: the same numbers in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}
