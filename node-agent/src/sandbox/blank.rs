//! A blank sandbox: its runner waits and, where that pays, so does a process; it has no code yet and belongs to no
//! deployment. It becomes one deployment's once, and never blank again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::runtime::{Runtime, Spare};
use runner::wire;

use super::SandboxArgs;
use super::docker::Image;
use super::function::{Env, environment};
use super::mounts::Exchange;
use super::runner_link;
use super::site::{Fault, Sandbox, Site, Wish};
use super::spec::{Limits, SPARE_PATH};

/// How long the process that waits in a blank may take to start: before, a blank uses less than it will.
const SETTLING: Duration = Duration::from_secs(2);

/// A sandbox that waits for its deployment.
#[derive(Debug)]
pub(crate) struct Blank {
    pub(crate) sandbox: Sandbox,
    pub(crate) exchange: Exchange,
    pub(crate) image: Image,
    /// When it was told what to keep ready.
    since: Instant,
}

impl Blank {
    /// Starts one that may use `memory_mb` until its deployment says otherwise.
    pub(crate) async fn start(
        site: &Arc<Site>,
        args: &SandboxArgs,
        runtime: &Runtime,
        image: Image,
        memory_mb: u32,
        egress: bool,
    ) -> Result<Self, Fault> {
        let claim = site.claim()?;
        if let Some(spare) = &runtime.run.spare {
            claim.room().place_spare(&spare.script)?;
        }
        let exchange = claim.room().open_exchange(args.sandbox_exchange_mb)?;
        let wish = Wish {
            image: image.clone(),
            limits: Limits {
                memory_mb,
                cpus: args.cpus(args.sandbox_cpus),
                pids: args.sandbox_pids,
                tmp_mb: args.sandbox_tmp_mb,
                file_mb: args.sandbox_tmp_mb.max(args.sandbox_exchange_mb),
            },
            network: site.network(egress).await?,
            mounts: claim.room().binds(),
        };
        let mut sandbox = claim.occupy(wish).await?;
        if let Some(spare) = &runtime.run.spare {
            let frame = keep(spare, &runtime.run.env, &image, spare.fork)?;
            sandbox.link.send(&frame).await.map_err(Fault::Link)?;
        }
        Ok(Self { sandbox, exchange, image, since: Instant::now() })
    }

    /// Whether its runner still waits.
    pub(crate) fn is_ready(&self) -> bool {
        self.sandbox.link.is_idle()
    }

    /// The memory that it uses, in MiB, its process included: `None` while that may still start, and where it cannot
    /// be read.
    pub(crate) fn used_mb(&self) -> Option<u64> {
        if self.since.elapsed() < SETTLING {
            return None;
        }
        self.sandbox.memory_used().map(|used| used.div_ceil(1024 * 1024))
    }
}

/// The order to keep a process ready, for a runtime whose variables are `env`; `fork`: by a fork server.
pub(super) fn keep(spare: &Spare, env: &Env, image: &Image, fork: bool) -> Result<Vec<u8>, Fault> {
    let (early, _) = spare.split_env(env);
    let spare = wire::Spare {
        argv: spare.command(SPARE_PATH).into_iter().map(String::into_bytes).collect(),
        env: environment(image, &early, &Env::new()),
        // Not where the function is, which it is told with the call.
        cwd: b"/".to_vec(),
        fork,
    };
    runner_link::encode(|frame| spare.encode(frame)).map_err(|_| Fault::Environment)
}
