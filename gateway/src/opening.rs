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

use crate::basis::Basis;
use crate::error::{StartError, TakeOverError};
use crate::feed::Feed;
use crate::fleet::Fleet;
use crate::fleet::calls::Calls;
use crate::fleet::enrolment::Enrolment;
use crate::fleet::link::Link;
use crate::fleet::node_port::NodePort;
use crate::fleet::reception::Reception;
use crate::hand_over::{Before, Door, Estate, Given, Giver, LINKING, Ops, are_enough};
use crate::{control, data_dir};

/// What is needed for it.
pub(crate) struct Opening<'a> {
    pub(crate) basis: &'a Basis,
    pub(crate) data_dir: &'a Path,
    pub(crate) state: &'a Arc<control::State>,
    pub(crate) link: Link,
    pub(crate) node_port: Option<NodePort>,
    pub(crate) enrolment: Option<Arc<Enrolment>>,
}

/// What a successor gets of what is not in it.
pub(crate) struct Ours<'a> {
    pub(crate) lock: &'a File,
    pub(crate) socket: &'a TcpListener,
    pub(crate) ops: Option<Ops>,
}

impl Opening<'_> {
    /// Accepts agents, and takes the place of the gateway before, if there is one; the door for our own successor, if there
    /// is to be one.
    pub(crate) fn open(
        self,
        runtime: &Runtime,
        before: Option<Before>,
        has_door: bool,
        ours: Ours<'_>,
    ) -> Result<Option<Door>, StartError> {
        let (begin_ops, end_ops) =
            ours.ops.as_ref().map(|ops| (ops.begin.clone(), ops.end.clone())).unwrap_or_default();
        let estate = if has_door { Some(self.estate(ours).map_err(StartError::Sockets)?) } else { None };
        let Self { basis, data_dir, state, link, node_port, enrolment } = self;
        let (has_link, alone) = (link.is_ours(), CancellationToken::new());
        let calls = Arc::new(Calls {
            store: basis.store.clone(),
            artifacts: basis.artifacts.clone(),
            routes: basis.routes.clone(),
            fleet: basis.fleet.clone(),
            runtimes: state.runtimes.clone(),
            enrolment,
        });
        let accept_agents = || {
            let reception = Arc::new(Reception::new(basis.fleet.clone(), calls.clone()));
            basis.tasks.spawn_on(link.run(reception.clone(), basis.end.clone()), runtime.handle());
            if let Some(port) = node_port {
                basis.tasks.spawn_on(port.run(reception, basis.end.clone()), runtime.handle());
            }
        };
        match before {
            None => {
                accept_agents();
                alone.cancel();
            }
            Some(mut before) => {
                let began = SystemTime::now();
                runtime.block_on(take_over(&mut before, basis, data_dir, accept_agents))?;
                has_link.store(true, Ordering::Release);
                let (feed, fleet, end) = (basis.feed.clone(), basis.fleet.clone(), basis.end.clone());
                let left = (basis.artifacts.clone(), began);
                let settled = settle(before, (state.clone(), feed, fleet), left, alone.clone(), end);
                basis.tasks.spawn_on(settled, runtime.handle());
            }
        }
        begin_ops.cancel();
        let given = Given { to_successor: basis.to_successor.clone(), close: basis.close.clone(), end_ops, has_link };
        let giver = |estate| Giver {
            estate: Mutex::new(Some(estate)),
            gateway: basis.gateway,
            fleet: basis.fleet.clone(),
            calls,
            given,
            tasks: basis.tasks.clone(),
            end: basis.end.clone(),
        };
        let _context = runtime.enter();
        let door = estate.map(|estate| Door::bind(data_dir, giver(estate), alone)).transpose();
        // Nothing depends on it now, and its path may be too long for a socket.
        Ok(door.unwrap_or_else(|error| {
            tracing::warn!(error = %Chain(&error), "no other gateway will be able to take this one's place");
            None
        }))
    }

    /// What our own successor gets.
    fn estate(&self, ours: Ours<'_>) -> io::Result<Estate> {
        Ok(Estate {
            lock: ours.lock.try_clone()?,
            public: ours.socket.try_clone()?,
            link: self.link.share()?,
            nodes: self.node_port.as_ref().map(NodePort::share).transpose()?,
            ops: ours.ops.map(|ops| ops.socket),
            questions: None,
        })
    }
}

/// Takes the place of the gateway before, step by step.
async fn take_over(
    before: &mut Before,
    basis: &Basis,
    data_dir: &Path,
    accept_agents: impl FnOnce(),
) -> Result<(), StartError> {
    let steps = async {
        basis.fleet.follow(before.elder.clone());
        let nodes = before.ready().await?;
        accept_agents();
        let linked = basis.fleet.linked(nodes, LINKING).await;
        tracing::info!(linked, nodes, "so many of the nodes have linked themselves to this gateway");
        if !are_enough(linked, nodes) {
            return Err(TakeOverError::NoNodes.into());
        }
        data_dir::belongs_to(data_dir, basis.gateway)?;
        before.serving().await?;
        Ok::<_, StartError>(())
    };
    tokio::select! { taken = steps => taken, () = basis.stop.cancelled() => Err(StartError::Stopped) }
}

/// Waits until the gateway before this one has ended, and looks after what it left.
async fn settle(
    mut before: Before,
    (state, feed, fleet): (Arc<control::State>, Arc<Feed>, Fleet),
    (artifacts, began): (Artifacts, SystemTime),
    alone: CancellationToken,
    end: CancellationToken,
) {
    tokio::select! {
        () = before.gone() => {}
        () = end.cancelled() => return,
    }
    fleet.follow(None);
    if let Err(error) = control::housekeeping::recover(&state, before.gateway).await {
        tracing::warn!(error = %Chain(&error), "what it left unfinished fails when it is overdue");
    }
    if let Err(error) = feed.catch_up().await {
        tracing::warn!(error = %Chain(&error), "what it changed last is seen later");
    }
    if let Err(error) = artifacts.clear(began).await {
        tracing::warn!(%error, "what it was writing could not be removed");
    }
    alone.cancel();
    tracing::info!("the gateway before this one has ended");
}
