//! Whether the Engine answers: it is asked all the time, so that other nodes get the calls that need a start before such
//! calls fail here.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use super::Sandboxes;

/// How often it is asked.
const ROUND: Duration = Duration::from_secs(1);

/// How long an Engine may take for a word on a machine that is busy. One that hangs is known to after as long.
const PATIENCE: Duration = Duration::from_secs(10);

impl Sandboxes {
    /// Whether the Engine answers, as far as is known.
    pub(crate) fn engine_answers(&self) -> bool {
        self.site.engine.answers()
    }

    /// Asks it, until the node closes.
    pub(super) async fn keep_asking(self: Arc<Self>) {
        let mut round = tokio::time::interval(ROUND);
        round.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let asked = async {
                round.tick().await;
                self.site.engine.ask(PATIENCE).await
            };
            let Some(answers) = self.stop.run_until_cancelled(asked).await else { return };
            self.metrics.engine_up.set(answers.into());
        }
    }
}
