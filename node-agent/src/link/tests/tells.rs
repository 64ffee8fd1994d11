//! To whom an agent tells its metrics, and what.

use super::*;

impl Control {
    /// Hears heartbeats until one says so.
    async fn until_tells(&mut self, expected: bool) {
        loop {
            let AgentMessage::Heartbeat(state) = self.hear().await else { panic!("no heartbeat") };
            if state.tells == Some(expected) {
                return;
            }
        }
    }

    /// Asks, and hears what comes between heartbeats.
    async fn asks(&mut self) -> String {
        self.say(&GatewayMessage::Tell).await;
        loop {
            match self.hear().await {
                AgentMessage::Metrics { text } => return text.expect("they fit"),
                AgentMessage::Heartbeat(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn of_several_gateways_one_is_to_ask_and_all_may() {
    let (mut one, mut two) = (Gateway::new(), Gateway::new());
    let gateways = Gateways::new(NodeId::new(), vec![Way::Unix(one.socket()), Way::Unix(two.socket())]);
    let agent = start_with(gateways);
    // The second is alone at first.
    let mut second = two.welcome().await;
    second.until_tells(true).await;
    let mut first = one.welcome().await;
    first.until_tells(true).await;
    second.until_tells(false).await;
    for control in [&mut first, &mut second] {
        let told = control.asks().await;
        assert!(told.contains("\ndartcloud_agent_spool_records 0\n"), "{told}");
    }
    drop((first, one));
    second.until_tells(true).await;
    agent.stops.leave.cancel();
    agent.stops.finish.cancel();
    timeout(DEADLINE, agent.task).await.unwrap().unwrap();
}
