//! Another process takes a gateway's place.

use super::*;

#[tokio::test]
async fn a_successor_is_linked_beside_the_process_whose_place_it_takes() {
    let mut gateway = Gateway::new();
    let agent = start(&gateway);
    let mut former = gateway.welcome().await;
    let (mut work, _idle) = (gateway.next_work().await, gateway.next_work().await);
    former.say(&GatewayMessage::Successor).await;
    let mut latter = gateway.welcome().await;
    assert!(matches!(latter.hear().await, AgentMessage::Heartbeat(_)));
    let mut fresh = gateway.next_work().await;
    // What the one before still has goes on, and what it orders is done.
    assert_eq!(get(&mut work, "/a").await.0, "/a");
    let retired = DeploymentId::new();
    former.say(&GatewayMessage::Retire { deployments: vec![retired] }).await;
    timeout(DEADLINE, agent.orders.retirement.notified()).await.unwrap();
    former.say(&GatewayMessage::Successor).await;
    assert!(matches!(former.hear().await, AgentMessage::Heartbeat(_)));
    // Its end is no loss: nobody dials again.
    drop(former);
    assert!(matches!(latter.hear().await, AgentMessage::Heartbeat(_)));
    assert!(agent.readiness.get());
    assert_eq!(get(&mut fresh, "/b").await.0, "/b");
    assert!(gateway.waiting.iter().all(|(kind, _)| *kind != Kind::Control), "it was linked once more");
    agent.stops.leave.cancel();
    agent.stops.finish.cancel();
    timeout(DEADLINE, agent.task).await.unwrap().unwrap();
}
