//! The fleet's authority is exchanged for another while nodes are joined and called.

use super::gateways::{House, Load, hello};
use super::*;

impl Fleet {
    /// The authorities that are trusted, once no node needs the one before.
    async fn until_moved(&self) -> Result<Value> {
        let found = until("every node has a certificate of the new authority", PATIENCE, async || {
            let standing = self.operator.get("/api/nodes/authority").await?.expect(200)?;
            Ok((standing["waiting"] == json!([])).then_some(standing))
        });
        found.await.with_context(|| self.platform.log())
    }
}

impl Machine {
    fn identity_kept(&self) -> Result<Value> {
        Ok(serde_json::from_slice(&std::fs::read(self.identity())?)?)
    }

    fn keep_identity(&self, identity: &Value) -> Result<()> {
        Ok(std::fs::write(self.identity(), serde_json::to_vec(identity)?)?)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_authority_without_a_failed_call() -> Result<()> {
    let fleet = Fleet::start(&[("FUNCTION_TIMEOUT_SECONDS", "60")]).await?;
    let mut machine = fleet.machine("one").await?;
    fleet.operator.deploy("hello", hello("one")).await?.expect(201).with_context(|| machine.log())?;
    let (before, token) = (machine.identity_kept()?, fleet.line().await?);
    ensure!(fleet.node(&["authority"])?.lines().count() == 2, "more than one authority");
    let slow = python("time.sleep(request['body'])\nanswer('late')");
    fleet.operator.deploy("slow", slow).await?.expect(201).with_context(|| machine.log())?;
    let url = format!("{}/f/{}/hello", fleet.platform.url(), fleet.operator.handle);
    let loads: Vec<_> = (0..4).map(|_| Load::begin(url.clone())).collect();
    let load = &loads[0];
    load.more(20).await?;
    // On a connection that shows the certificate of the one before, to its end.
    let caller = fleet.operator.clone();
    let call = tokio::spawn(async move { caller.invoke("slow", json!(15)).await });

    let begun = Instant::now();
    let said = fleet.node(&["authority", "rotate"])?;
    ensure!(said.lines().count() == 3 && said.contains("trusted"), "{said}");
    let standing = fleet.until_moved().await.with_context(|| machine.log())?;
    println!("the node has a certificate of the new authority after {:?}", begun.elapsed());
    ensure!(standing["authorities"][0]["nodes"] == 1 && standing["authorities"][1]["nodes"] == 0, "{standing}");
    machine.until_log("linking anew").await?;
    load.more(100).await?;
    let other = Machine::new()?;
    other.cannot_enroll(&token, "had a new authority since the token was made")?;
    let enrolled = other.enroll("two", &fleet.line().await?)?;
    ensure!(enrolled.status.success(), "{}", String::from_utf8_lossy(&enrolled.stderr));

    let said = fleet.node(&["authority", "rotate", "--finish"])?;
    ensure!(said.lines().count() == 2 && said.contains("certifies"), "{said}");
    load.more(100).await?;
    call.await??.expect(200).with_context(|| machine.log())?;
    let mut made = 0;
    for load in loads {
        made += load.end().await.with_context(|| format!("{}\n{}", fleet.platform.log(), machine.log()))?;
    }
    println!("{made} calls, none failed");
    ensure!(!machine.log().contains("not linked"), "{}", machine.log());

    // A certificate of the one before is refused, whatever its node trusts.
    machine.stop().await?;
    let after = machine.identity_kept()?;
    ensure!(after["authority"] != before["authority"] && after["also"] == json!([]), "the node trusts the one before");
    let mut old = after.clone();
    (old["certificate"], old["key"]) = (before["certificate"].clone(), before["key"].clone());
    for (identity, sentence) in
        [(&old, "does not take this node's certificate"), (&before, "not this fleet's gateway, or the fleet got")]
    {
        machine.keep_identity(identity)?;
        machine.run("one", "dartcloud-node-agent")?;
        machine.until_log(sentence).await?;
        machine.stop().await?;
    }
    machine.keep_identity(&after)?;
    machine.run("one", "dartcloud-node-agent")?;
    fleet.until_state("one", "linked").await.with_context(|| machine.log())?;
    fleet.operator.invoke("hello", json!({})).await?.expect(200).with_context(|| machine.log())?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn several_gateways_exchange_it_together() -> Result<()> {
    let mut house = House::start().await?;
    let [first, second] = &house.gateways[..] else { unreachable!() };
    first.operator.deploy("hello", hello("one")).await?.expect(201).with_context(|| house.log())?;
    let load = Load::begin(format!("{}/f/{}/hello", second.platform.url(), second.operator.handle));
    load.more(20).await?;
    first.node(&["authority", "rotate"])?;
    second.until_moved().await.with_context(|| house.log())?;
    load.more(100).await?;
    second.node(&["authority", "rotate", "--finish"])?;
    load.more(100).await?;
    let made = load.end().await.with_context(|| house.log())?;
    println!("{made} calls at the other gateway, none failed");
    for gateway in &house.gateways {
        let standing = gateway.operator.get("/api/nodes/authority").await?.expect(200)?;
        ensure!(standing["authorities"].as_array().is_some_and(|all| all.len() == 1), "{standing}");
        ensure!(standing["authorities"][0]["nodes"] == 2, "{standing}");
    }
    // Whoever dials from now on is known at both.
    house.machines[0].stop().await?;
    house.machines[0].run("one", "dartcloud-node-agent")?;
    for gateway in &house.gateways {
        gateway.until_state("one", "linked").await.with_context(|| house.log())?;
    }
    Ok(())
}
