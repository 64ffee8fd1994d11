//! The gateways of this agent: where they are, which of them are linked, and whom it is best to ask. A name that leads to
//! several addresses is as many gateways; it is looked up again and again.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use common::conduit::Conduit;
use common::digest::Digest;
use common::ids::NodeId;
use common::node_url::NodeUrl;
use common::ops::Readiness;
use tokio::net::lookup_host;
use tokio::time::timeout;

use super::dial::{Dialer, Way};

/// How long a name may take to be looked up.
const LOOK_UP_DEADLINE: Duration = Duration::from_secs(5);

/// Most addresses of one name that are dialled.
const MAX_ADDRESSES: usize = 16;

/// Tells one gateway from another, for as long as the agent runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct GatewayNumber(u64);

/// All that are known.
pub(crate) struct Gateways {
    /// This node.
    pub(crate) node: NodeId,
    /// What the settings say, as yet without a look at names.
    places: Vec<Way>,
    known: Mutex<Vec<Arc<Gateway>>>,
    /// Who gave this node work last, and so knows of it best.
    asker: AtomicU64,
    next: AtomicU64,
}

/// One of them.
pub(crate) struct Gateway {
    pub(crate) number: GatewayNumber,
    pub(crate) dialer: Dialer,
    /// Which of the settings' places led here.
    place: usize,
    state: Mutex<State>,
    /// How often another process has taken the gateway's place.
    successions: AtomicU64,
}

#[derive(Default)]
struct State {
    /// The digest of the certificate that it showed last, while that control stream is open.
    face: Option<Digest>,
    /// Control streams on which it has welcomed us: two, while another process takes its place.
    welcomes: u32,
}

/// A control stream that is open; dropping it says that it is not.
pub(super) struct Visit {
    gateways: Arc<Gateways>,
    gateway: Arc<Gateway>,
    readiness: Readiness,
    face: Option<Digest>,
    is_welcome: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gateways {
    /// Those at these places.
    pub(crate) fn new(node: NodeId, places: Vec<Way>) -> Arc<Self> {
        let gateways =
            Self { node, places, known: Mutex::default(), asker: AtomicU64::new(0), next: AtomicU64::new(0) };
        gateways.know(gateways.places.iter().map(|place| Some(vec![place.clone()])).collect());
        Arc::new(gateways)
    }

    /// Those that are known now.
    pub(super) fn all(&self) -> Vec<Arc<Gateway>> {
        lock(&self.known).clone()
    }

    /// Whom to ask, one after the other: those that are linked, and first who gave work last. While none is, all.
    pub(super) fn order(&self) -> Vec<Arc<Gateway>> {
        let mut all = self.all();
        if all.iter().any(|gateway| gateway.is_linked()) {
            all.retain(|gateway| gateway.is_linked());
        }
        let asker = GatewayNumber(self.asker.load(Ordering::Relaxed));
        all.sort_by_key(|gateway| gateway.number != asker);
        all
    }

    /// Whether any is linked.
    pub(super) fn is_linked(&self) -> bool {
        lock(&self.known).iter().any(|gateway| gateway.is_linked())
    }

    /// Notes who gives this node work.
    pub(super) fn asked_by(&self, number: GatewayNumber) {
        // As a rule there is nothing to write, which other threads would have to read again.
        if self.asker.load(Ordering::Relaxed) != number.0 {
            self.asker.store(number.0, Ordering::Relaxed);
        }
    }

    /// Looks all names up. Whether each answered; of one that did not, what was known stays.
    pub(super) async fn look_up(&self) -> bool {
        let mut found = Vec::with_capacity(self.places.len());
        for place in &self.places {
            found.push(addresses(place).await);
        }
        let all_answered = found.iter().all(Option::is_some);
        self.know(found);
        all_answered
    }

    /// Takes in where the places lead to.
    fn know(&self, found: Vec<Option<Vec<Way>>>) {
        let mut known = lock(&self.known);
        let settled = settle(&known, found);
        *known = settled
            .into_iter()
            .map(|settled| match settled {
                Settled::Stays(gateway) => gateway,
                Settled::New(place, way) => Arc::new(Gateway {
                    number: GatewayNumber(self.next.fetch_add(1, Ordering::Relaxed)),
                    dialer: Dialer { way, node: self.node },
                    place,
                    state: Mutex::default(),
                    successions: AtomicU64::new(0),
                }),
            })
            .collect();
    }

    /// A control stream is open to a gateway. `None` when it is one to which another address has led already: a machine
    /// with two addresses, most likely, and its gateway would give up the stream of the first.
    pub(super) fn visit(
        self: &Arc<Self>,
        gateway: &Arc<Gateway>,
        stream: &Conduit,
        readiness: &Readiness,
    ) -> Option<Visit> {
        let face = face(stream);
        let known = lock(&self.known);
        let mut others = known.iter().filter(|other| other.number != gateway.number);
        if face.is_some() && others.any(|other| lock(&other.state).face == face) {
            return None;
        }
        lock(&gateway.state).face = face;
        let (gateways, gateway) = (Arc::clone(self), Arc::clone(gateway));
        Some(Visit { gateways, gateway, readiness: readiness.clone(), face, is_welcome: false })
    }
}

impl Gateway {
    fn is_linked(&self) -> bool {
        lock(&self.state).welcomes > 0
    }

    /// Another process takes its place.
    pub(super) fn succeeded(&self) {
        self.successions.fetch_add(1, Ordering::Relaxed);
    }

    /// Which of its processes is reached by a connection that is dialled now.
    pub(super) fn process(&self) -> (GatewayNumber, u64) {
        (self.number, self.successions.load(Ordering::Relaxed))
    }
}

impl Visit {
    /// The gateway has welcomed us.
    pub(super) fn welcome(&mut self) {
        if !std::mem::replace(&mut self.is_welcome, true) {
            lock(&self.gateway.state).welcomes += 1;
        }
        self.readiness.set(true);
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut state = lock(&self.gateway.state);
        // Of two streams to one gateway, the later has shown another face.
        if state.face == self.face {
            state.face = None;
        }
        state.welcomes -= u32::from(self.is_welcome);
        drop(state);
        self.readiness.set(self.gateways.is_linked());
    }
}

/// Whose certificate the other end showed; one that is new at each start of a gateway.
fn face(stream: &Conduit) -> Option<Digest> {
    let Conduit::Tls(stream) = stream else { return None };
    stream.get_ref().1.peer_certificates()?.first().map(|certificate| Digest::of(certificate))
}

/// Every address of a place; `None` when nobody can say.
async fn addresses(place: &Way) -> Option<Vec<Way>> {
    let Way::Tls { url, config } = place else { return Some(vec![place.clone()]) };
    if url.host().parse::<IpAddr>().is_ok() {
        return Some(vec![place.clone()]);
    }
    let found = timeout(LOOK_UP_DEADLINE, lookup_host((url.host(), url.port()))).await.ok()?.ok()?;
    let ways = found.take(MAX_ADDRESSES).map(|address| Way::Tls {
        url: NodeUrl::new(&address.ip().to_string(), address.port()),
        config: Arc::clone(config),
    });
    Some(ways.collect::<Vec<_>>()).filter(|ways| !ways.is_empty())
}

/// What becomes of what is known.
enum Settled {
    Stays(Arc<Gateway>),
    New(usize, Way),
}

/// Of each place where it leads to now, or what was known of it; each address once.
fn settle(known: &[Arc<Gateway>], found: Vec<Option<Vec<Way>>>) -> Vec<Settled> {
    let mut settled = Vec::new();
    let mut taken = std::collections::HashSet::new();
    for (place, ways) in found.into_iter().enumerate() {
        let Some(ways) = ways else {
            let stay = known.iter().filter(|gateway| gateway.place == place);
            settled.extend(
                stay.filter(|gateway| taken.insert(gateway.dialer.way.to_string())).cloned().map(Settled::Stays),
            );
            continue;
        };
        for way in ways {
            let name = way.to_string();
            if !taken.insert(name.clone()) {
                continue;
            }
            let stays = known.iter().find(|gateway| gateway.dialer.way.to_string() == name);
            settled.push(stays.map_or_else(|| Settled::New(place, way), |gateway| Settled::Stays(Arc::clone(gateway))));
        }
    }
    settled
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ways(names: &[&str]) -> Vec<Way> {
        names.iter().map(|name| Way::Unix(name.into())).collect()
    }

    #[test]
    fn addresses_come_and_go() {
        let gateways = Gateways::new(NodeId::new(), ways(&["a", "b"]));
        let mut numbers = std::collections::HashMap::new();
        let mut check = |found: [Option<&[&str]>; 2], expected: &[&str]| {
            gateways.know(found.into_iter().map(|names| names.map(ways)).collect());
            let all = gateways.all();
            assert_eq!(all.iter().map(|gateway| gateway.dialer.way.to_string()).collect::<Vec<_>>(), expected);
            for gateway in all {
                // One that stays is the same as before.
                let name = gateway.dialer.way.to_string();
                let first = *numbers.entry(name).or_insert(gateway.number);
                assert!(first == gateway.number || expected.len() == 1);
            }
        };
        check([None, None], &["a", "b"]);
        check([Some(&["1", "2"]), None], &["1", "2", "b"]);
        check([Some(&["2", "3"]), Some(&["3", "b"])], &["2", "3", "b"]);
        check([None, Some(&["2", "b"])], &["2", "3", "b"]);
        check([Some(&["1"]), Some(&["1"])], &["1"]);
    }

    #[test]
    fn who_gave_work_last_is_asked_first() {
        let gateways = Gateways::new(NodeId::new(), ways(&["a", "b", "c"]));
        let order = || gateways.order().iter().map(|gateway| gateway.dialer.way.to_string()).collect::<String>();
        assert_eq!(order(), "abc");
        let all = gateways.all();
        gateways.asked_by(all[2].number);
        assert_eq!(order(), "cab");
        lock(&all[1].state).welcomes = 1;
        assert_eq!(order(), "b");
        lock(&all[2].state).welcomes = 1;
        assert_eq!(order(), "cb");
    }

    #[test]
    fn a_gateway_is_linked_while_one_of_its_processes_is() {
        let gateways = Gateways::new(NodeId::new(), ways(&["a"]));
        let (gateway, readiness) = (&gateways.all()[0], Readiness::default());
        let visit = || {
            let (stream, _other) = tokio::net::UnixStream::pair().unwrap();
            let mut visit = gateways.visit(gateway, &stream.into(), &readiness).unwrap();
            visit.welcome();
            visit
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let _context = runtime.enter();
        let (former, before) = (visit(), gateway.process());
        gateway.succeeded();
        assert_ne!(gateway.process(), before, "what was dialled before is another's");
        let latter = visit();
        drop(former);
        assert!(gateways.is_linked() && readiness.get());
        drop(latter);
        assert!(!gateways.is_linked() && !readiness.get());
    }
}
