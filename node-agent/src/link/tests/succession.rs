//! Another process takes a gateway's place, or this node shows another certificate.

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

#[tokio::test]
async fn another_certificate_is_shown_beside_what_shows_the_one_before() {
    let mut gateway = Gateway::new();
    let agent = start(&gateway);
    let mut said = agent.notices.authorities();
    let mut former = gateway.welcome().await;
    let mut work = gateway.next_work().await;
    former.say(&GatewayMessage::Authorities { certificates: vec!["new".into(), "old".into()] }).await;
    timeout(DEADLINE, said.changed()).await.unwrap().unwrap();
    assert_eq!(*said.borrow_and_update(), ["new", "old"]);
    agent.notices.has_moved();
    let mut latter = gateway.welcome().await;
    assert!(matches!(latter.hear().await, AgentMessage::Heartbeat(_)));
    assert_eq!(get(&mut work, "/a").await.0, "/a");
    // What the one before says of authorities counts no more.
    former.say(&GatewayMessage::Authorities { certificates: vec!["old".into()] }).await;
    let retired = DeploymentId::new();
    former.say(&GatewayMessage::Retire { deployments: vec![retired] }).await;
    timeout(DEADLINE, agent.orders.retirement.notified()).await.unwrap();
    assert!(!said.has_changed().unwrap());
    drop(former);
    assert!(matches!(latter.hear().await, AgentMessage::Heartbeat(_)));
    assert!(gateway.waiting.iter().all(|(kind, _)| *kind != Kind::Control), "it was linked once more");
    agent.stops.leave.cancel();
    agent.stops.finish.cancel();
    timeout(DEADLINE, agent.task).await.unwrap().unwrap();
}
