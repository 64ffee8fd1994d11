//! The moment from which a gateway accepts: agents first, then clients. Where another one runs, it is in step with that one,
//! whose place it takes; and what a start does for what a crash left, it does when that one has ended.

use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use common::error::Chain;
use store::artifacts::Artifacts;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::components::Components;
use crate::error::{StartError, TakeOverError};
use crate::feed::Feed;
use crate::fleet::Fleet;
use crate::fleet::calls::Calls;
use crate::fleet::enrolment::Enrolment;
use crate::fleet::link::Link;
use crate::fleet::node_port::NodePort;
use crate::fleet::reception::Reception;
use crate::hand_over::{
    HandOver, HandOverSignals, HandOverSocket, InheritedSockets, LINKING, OldProcess, Ops, are_enough,
};
use crate::{control, data_dir};

/// What is needed for it.
pub(crate) struct Startup<'a> {
    pub(crate) components: &'a Components,
    pub(crate) data_dir: &'a Path,
    pub(crate) state: &'a Arc<control::State>,
    pub(crate) link: Link,
    pub(crate) node_port: Option<NodePort>,
    pub(crate) enrolment: Option<Arc<Enrolment>>,
}

/// What a successor inherits of what is not in it.
pub(crate) struct OwnSockets<'a> {
    pub(crate) lock: &'a File,
    pub(crate) public: &'a TcpListener,
    pub(crate) ops: Option<Ops>,
}

impl Startup<'_> {
    /// Accepts agents, and takes the place of the predecessor, if there is one; the socket for our own successor, if there
    /// is to be one.
    pub(crate) fn open(
        self,
        runtime: &Runtime,
        old: Option<OldProcess>,
        accepts_successor: bool,
        ours: OwnSockets<'_>,
    ) -> Result<Option<HandOverSocket>, StartError> {
        let (begin_ops, end_ops) =
            ours.ops.as_ref().map(|ops| (ops.begin.clone(), ops.end.clone())).unwrap_or_default();
        let sockets = if accepts_successor { Some(self.to_inherit(ours).map_err(StartError::Sockets)?) } else { None };
        let Self { components, data_dir, state, link, node_port, enrolment } = self;
        let (has_link, predecessor_gone) = (link.is_ours(), CancellationToken::new());
        let calls = Arc::new(Calls {
            store: components.store.clone(),
            artifacts: components.artifacts.clone(),
            routes: components.routes.clone(),
            fleet: components.fleet.clone(),
            runtimes: state.runtimes.clone(),
            enrolment,
        });
        let accept_agents = || {
            let reception = Arc::new(Reception::new(components.fleet.clone(), calls.clone()));
            components.tasks.spawn_on(link.run(reception.clone(), components.end.clone()), runtime.handle());
            if let Some(port) = node_port {
                components.tasks.spawn_on(port.run(reception, components.end.clone()), runtime.handle());
            }
        };
        match old {
            None => {
                accept_agents();
                predecessor_gone.cancel();
            }
            Some(mut old) => {
                let began = SystemTime::now();
                runtime.block_on(take_over(&mut old, components, data_dir, accept_agents))?;
                has_link.store(true, Ordering::Release);
                let (feed, fleet, end) = (components.feed.clone(), components.fleet.clone(), components.end.clone());
                let left = (components.artifacts.clone(), began);
                let settled = settle(old, (state.clone(), feed, fleet), left, predecessor_gone.clone(), end);
                components.tasks.spawn_on(settled, runtime.handle());
            }
        }
        begin_ops.cancel();
        let (to_successor, close) = (components.to_successor.clone(), components.close.clone());
        let signals = HandOverSignals { to_successor, close, end_ops, has_link };
        let hand_over = |sockets| HandOver {
            sockets: Mutex::new(Some(sockets)),
            gateway: components.gateway,
            fleet: components.fleet.clone(),
            calls,
            signals,
            tasks: components.tasks.clone(),
            end: components.end.clone(),
        };
        let _context = runtime.enter();
        let bind = |sockets| HandOverSocket::bind(data_dir, hand_over(sockets), predecessor_gone);
        let socket = sockets.map(bind).transpose();
        // Nothing depends on it now, and its path may be too long for a socket.
        Ok(socket.unwrap_or_else(|error| {
            tracing::warn!(error = %Chain(&error), "no other gateway will be able to take this one's place");
            None
        }))
    }

    /// What our own successor inherits.
    fn to_inherit(&self, ours: OwnSockets<'_>) -> io::Result<InheritedSockets> {
        Ok(InheritedSockets {
            lock: ours.lock.try_clone()?,
            public: ours.public.try_clone()?,
            link: self.link.share()?,
            nodes: self.node_port.as_ref().map(NodePort::share).transpose()?,
            ops: ours.ops.map(|ops| ops.socket),
            questions: None,
        })
    }
}

/// Takes the place of the predecessor, step by step.
async fn take_over(
    old: &mut OldProcess,
    components: &Components,
    data_dir: &Path,
    accept_agents: impl FnOnce(),
) -> Result<(), StartError> {
    let steps = async {
        components.fleet.follow(old.client.clone());
        let nodes = old.ready().await?;
        accept_agents();
        let linked = components.fleet.linked(nodes, LINKING).await;
        tracing::info!(linked, nodes, "so many of the nodes have linked themselves to this gateway");
        if !are_enough(linked, nodes) {
            return Err(TakeOverError::NoNodes.into());
        }
        data_dir::belongs_to(data_dir, components.gateway)?;
        old.serving().await?;
        Ok::<_, StartError>(())
    };
    let taken = tokio::select! { taken = steps => taken, () = components.stop.cancelled() => Err(StartError::Stopped) };
    if taken.is_err() {
        // It goes on, or its next start looks after what it left: either way by its own id.
        if let Err(error) = data_dir::belongs_to(data_dir, old.gateway) {
            tracing::warn!(error = %Chain(&error), "the id of the gateway that runs could not be put back");
        }
    }
    taken
}

/// Waits until the predecessor has ended, and looks after what it left.
async fn settle(
    mut old: OldProcess,
    (state, feed, fleet): (Arc<control::State>, Arc<Feed>, Fleet),
    (artifacts, began): (Artifacts, SystemTime),
    predecessor_gone: CancellationToken,
    end: CancellationToken,
) {
    tokio::select! {
        () = old.gone() => {}
        () = end.cancelled() => return,
    }
    fleet.follow(None);
    if let Err(error) = control::housekeeping::recover(&state, old.gateway).await {
        tracing::warn!(error = %Chain(&error), "what it left unfinished fails when it is overdue");
    }
    if let Err(error) = feed.catch_up().await {
        tracing::warn!(error = %Chain(&error), "what it changed last is seen later");
    }
    if let Err(error) = artifacts.clear(began).await {
        tracing::warn!(%error, "what it was writing could not be removed");
    }
    predecessor_gone.cancel();
    tracing::info!("the gateway before this one has ended");
}
