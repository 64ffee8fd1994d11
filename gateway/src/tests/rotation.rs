//! Another authority for a fleet whose nodes stay: who is told, who gets which certificate, and who is out at the end.

use common::base64;
use common::digest::Digest;
use common::protocol::{Credential, GatewayMessage, Kind, Renewal};
use rcgen::{CertificateParams, KeyPair};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::fleet::{Control, Door, Member, closed, heard};
use super::house::{PATIENCE, get, post};

/// Where the fleet is with its authorities: the fingerprints, how many nodes each has, and why nodes wait.
type Standing = (Vec<String>, Vec<u64>, Vec<String>);

impl Door {
    async fn standing(&self) -> Standing {
        standing(&self.house.ask(get("/api/nodes/authority", &self.token)).await.expect(200, "").json())
    }

    async fn rotate(&self) -> Standing {
        standing(&self.house.ask(post("/api/nodes/authority/rotate", &self.token, "")).await.expect(200, "").json())
    }

    /// A new certificate for a node that trusts these, and which authority it is of.
    async fn renew(&self, member: &Member, trusts: &[Digest]) -> (Member, Option<Digest>) {
        let key = KeyPair::generate().unwrap();
        let request = base64::encode(CertificateParams::default().serialize_request(&key).unwrap().der());
        let renewal = serde_json::to_string(&Renewal { request, trusts: trusts.to_vec() }).unwrap();
        let answer = self.asks(member, post("/certificate", "", &renewal)).await;
        let credential: Credential = serde_json::from_str(&answer.text).unwrap();
        (Member::of(&credential, key), credential.authority)
    }
}

fn standing(answer: &Value) -> Standing {
    let each = |name: &str| answer[name].as_array().unwrap().clone();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let authorities = each("authorities");
    assert!(authorities.iter().all(|one| one["validUntil"].as_str() > one["validFrom"].as_str()), "{answer}");
    assert_eq!(authorities[0]["current"], true);
    (
        authorities.iter().map(|one| text(&one["fingerprint"])).collect(),
        authorities.iter().map(|one| one["nodes"].as_u64().unwrap()).collect(),
        each("waiting").iter().map(|node| text(&node["why"])).collect(),
    )
}

/// The digests of the authorities that a node is told of next.
async fn told(control: &mut Control) -> Vec<Digest> {
    loop {
        if let GatewayMessage::Authorities { certificates } = serde_json::from_slice(&heard(control).await).unwrap() {
            return certificates.iter().map(|one| Digest::of(&base64::decode(one).unwrap())).collect();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_authority_is_exchanged_while_nodes_stay() {
    let door = Door::open().await;
    let first = door.store.authorities().await.unwrap().unwrap().current.certificate;
    let old = Digest::of(&first);
    let (unused, one, other) = (door.invite().await, door.join().await, door.join().await);
    let (mut control, _) = door.control(Some(&one), &one.hello(Kind::Control)).await;
    assert_eq!(told(&mut control).await, [old]);
    assert_eq!(door.standing().await, (vec![old.to_string()], vec![2], vec![]));

    let (fingerprints, nodes, waiting) = door.rotate().await;
    let new: Digest = fingerprints[0].parse().unwrap();
    assert_eq!((&fingerprints[1], nodes), (&old.to_string(), vec![0, 2]));
    assert_eq!(waiting.iter().filter(|why| *why == "older").count(), 1, "{waiting:?}");
    assert_eq!(waiting.iter().filter(|why| *why == "away").count(), 1, "{waiting:?}");
    assert_eq!(told(&mut control).await, [new, old]);
    // Once more changes nothing.
    assert_eq!(door.rotate().await.0, fingerprints);
    let refused = door.house.ask(post("/api/nodes/authority/finish", &door.token, "")).await.expect(409, "conflict");
    assert!(refused.text.contains("a machine (its agent is of an older version"), "{}", refused.text);

    // Whoever trusts the one before knows the gateway, and who joins now trusts the new one.
    door.shake_with(first, TcpStream::connect(door.address).await.unwrap(), Some(&one)).await;
    assert_eq!((unused.pin(), door.invite().await.pin()), (old, new));
    let third = door.join().await;
    assert_eq!(door.renew(&third, &[]).await.1, Some(new));
    // An older agent goes on with what it has.
    assert_eq!(door.renew(&one, &[]).await.1, Some(old));
    let (moved, of) = door.renew(&one, &[old, new]).await;
    let (other, of_other) = door.renew(&other, &[new]).await;
    assert_eq!((of, of_other), (Some(new), Some(new)));
    // That the answers came is known once the nodes show what they got.
    assert_eq!(door.standing().await.1, [1, 2]);
    let mut calls = door.dial(Some(&one), &one.hello(Kind::Calls)).await;
    let mut work = door.dial(Some(&one), &one.hello(Kind::Work)).await;
    // What was dialled a moment ago is on its way.
    door.asks(&one, get("/nonsense", "")).await;
    let (mut control, _) = door.control(Some(&moved), &moved.hello(Kind::Control)).await;
    assert_eq!(told(&mut control).await, [new, old]);
    closed(&mut work).await;
    let (_stream, _) = door.control(Some(&other), &other.hello(Kind::Control)).await;
    let moved_all = async { while door.standing().await != (fingerprints.clone(), vec![3, 0], vec![]) {} };
    timeout(PATIENCE, moved_all).await.unwrap();

    let answer = door.house.ask(post("/api/nodes/authority/finish", &door.token, "")).await.expect(200, "").json();
    assert_eq!(standing(&answer), (vec![new.to_string()], vec![3], vec![]));
    assert_eq!(told(&mut control).await, [new]);
    // What was opened with a certificate of the one before ends, and no more of it is taken.
    closed(&mut calls).await;
    closed(&mut door.dial(Some(&one), &one.hello(Kind::Calls)).await).await;
    door.house.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_can_be_left_behind() {
    let door = Door::open().await;
    let member = door.join().await;
    let old = door.invite().await.pin();
    door.rotate().await;
    let finish = |force: &str| post(&format!("/api/nodes/authority/finish{force}"), &door.token, "");
    door.house.ask(finish("")).await.expect(409, "conflict");
    door.house.ask(finish("?force=maybe")).await.expect(422, "invalid");
    door.house.ask(finish("?force=true")).await.expect(200, "");
    door.house.ask(finish("")).await.expect(200, "");
    closed(&mut door.dial(Some(&member), &member.hello(Kind::Calls)).await).await;
    // The next rotation does not wait for it.
    door.rotate().await;
    door.house.ask(finish("")).await.expect(200, "");
    let (fingerprints, nodes, _) = door.standing().await;
    assert!(
        fingerprints.len() == 1 && fingerprints[0] != old.to_string() && nodes == [0],
        "{fingerprints:?} {nodes:?}"
    );
    door.house.stopped().await;
}
