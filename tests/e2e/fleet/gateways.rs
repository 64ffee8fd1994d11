//! Several gateways over one database, and agents that are linked to all of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::builds::Bucket;
use super::*;
use crate::archive::{PUBLIC, archive};

/// Gateways that share a database and a bucket, and their operator at each.
pub(super) struct House {
    pub(super) gateways: Vec<Fleet>,
    pub(super) machines: Vec<Machine>,
    _database: Database,
}

impl House {
    /// Two gateways, and two machines that are linked to both.
    pub(super) async fn start() -> Result<Self> {
        let (database, bucket) = (Database::create()?, Bucket::create().await?);
        let url = format!("s3://{}/platform", bucket.name());
        let settings = [&[("DATABASE_URL", database.url())], bucket.settings(&url).as_slice()].concat();
        let (first, mut second) = (Fleet::start(&settings).await?, Fleet::start(&settings).await?);
        second.operator = Client { url: second.operator.url, ..first.operator.clone() };
        let mut house = Self { gateways: vec![first, second], machines: Vec::new(), _database: database };
        for name in ["one", "two"] {
            let [one, two] = [house.gateways[0].line().await?, house.gateways[1].line().await?];
            let word = |line: &str, at: usize| line.split_whitespace().nth(at).unwrap_or_default().to_owned();
            let mut machine = Machine::new()?;
            machine.run(name, &format!("dartcloud node join {},{} {}", word(&one, 3), word(&two, 3), word(&one, 4)))?;
            for gateway in &house.gateways {
                gateway.until_state(name, "linked").await.with_context(|| machine.log())?;
            }
            house.machines.push(machine);
        }
        Ok(house)
    }

    pub(super) fn log(&self) -> String {
        let gateways = self.gateways.iter().map(|gateway| gateway.platform.log());
        gateways.chain(self.machines.iter().map(Machine::log)).collect::<Vec<_>>().join("\n")
    }
}

/// Calls of a public function, one after the other, until it is told to stop.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    made: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<Result<()>>,
}

impl Load {
    pub(super) fn begin(url: String) -> Self {
        let (stop, made) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (ends, counts) = (Arc::clone(&stop), Arc::clone(&made));
        let task = tokio::spawn(async move {
            let http = reqwest::Client::new();
            while !ends.load(Ordering::Relaxed) {
                let answer = http.get(&url).send().await?;
                ensure!(answer.status() == 200, "{}: {}", answer.status(), answer.text().await?);
                counts.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        Self { stop, made, task }
    }

    /// Waits until so many more calls were answered.
    pub(super) async fn more(&self, calls: usize) -> Result<()> {
        let wanted = self.made.load(Ordering::Relaxed) + calls;
        until("more calls are answered", PATIENCE, async || {
            Ok((self.task.is_finished() || self.made.load(Ordering::Relaxed) >= wanted).then_some(()))
        })
        .await
    }

    pub(super) async fn end(self) -> Result<usize> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await??;
        Ok(self.made.load(Ordering::Relaxed))
    }
}

/// The nodes that a gateway names to Prometheus, each of which has metrics there.
async fn scraped(gateway: &Fleet) -> Result<Vec<String>> {
    let [ops, _] = gateway.platform.ops_addresses();
    let targets: Vec<Value> = reqwest::get(format!("http://{ops}/sd")).await?.error_for_status()?.json().await?;
    let mut names = Vec::new();
    for target in targets {
        ensure!(target["targets"] == json!([ops]), "{target}");
        let path = target["labels"]["__metrics_path__"].as_str().context("no path")?;
        let metrics = reqwest::get(format!("http://{ops}{path}")).await?.error_for_status()?.text().await?;
        ensure!(metrics.contains("\ndartcloud_agent_spool_records "), "{metrics}");
        names.push(target["labels"]["instance"].as_str().context("no name")?.to_owned());
    }
    Ok(names)
}

pub(super) fn hello(word: &str) -> Vec<u8> {
    archive(&[("main*", &format!("#!/bin/sh\nprintf '{{\"body\":\"{word}\"}}' >/result.json\n")), PUBLIC])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_ends_at_one_gateway_ends_at_the_other() -> Result<()> {
    let database = Database::create()?;
    let settings = [("DATABASE_URL", database.url())];
    let (first, second) = (Fleet::start(&settings).await?, Fleet::start(&settings).await?);
    let there = |tokens: &Value| -> Result<Client> {
        let token = tokens["accessToken"].as_str().context("no accessToken")?;
        Ok(Client { url: second.operator.url.clone(), ..first.operator.with_token(token) })
    };
    let credentials = json!({"email": "leaving@example.org", "password": "correct horse"});
    first.operator.post("/api/auth/register", &credentials).await?.expect(201)?;
    let left = first.operator.post("/api/auth/login", &credentials).await?.expect(200)?;
    let other = first.operator.post("/api/auth/login", &credentials).await?.expect(200)?;
    let (leaving, staying) = (there(&left)?, there(&other)?);
    leaving.get("/api/auth/me").await?.expect(200)?;
    first.operator.post("/api/auth/logout", &json!({"refreshToken": left["refreshToken"]})).await?.expect(204)?;
    let begun = Instant::now();
    let ended = until("the other gateway refuses its token", Duration::from_secs(10), async || {
        Ok((leaving.get("/api/auth/me").await?.status == 401).then_some(begun.elapsed()))
    });
    let ended = ended.await.with_context(|| second.platform.log())?;
    println!("the other gateway refuses the token after {ended:?}");
    ensure!(ended < Duration::from_secs(1), "after {ended:?}:\n{}", second.platform.log());
    staying.get("/api/auth/me").await?.expect(200)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_gateway_does_the_other_knows() -> Result<()> {
    let mut house = House::start().await?;
    let [first, second] = &house.gateways[..] else { unreachable!() };
    // Each machine is named to Prometheus by one of the two, so that it is scraped once.
    until("each machine is named by one gateway", PATIENCE, async || {
        let mut names = [scraped(first).await?, scraped(second).await?].concat();
        names.sort_unstable();
        Ok((names == ["one", "two"]).then_some(()))
    })
    .await
    .with_context(|| house.log())?;
    // A deploy at one is called at the other, and so is a new version.
    for (word, status) in [("one", 201), ("two", 200)] {
        first.operator.deploy("hello", hello(word)).await?.expect(status).with_context(|| house.log())?;
        let begun = Instant::now();
        let known = until("the other gateway serves it", Duration::from_secs(10), async || {
            // Its first call is a cold one, which takes what it takes.
            let asked = begun.elapsed();
            let answer = second.operator.invoke("hello", json!({})).await?;
            Ok((answer.status == 200 && answer.body["result"] == word).then_some(asked))
        });
        let known = known.await.with_context(|| house.log())?;
        println!("the other gateway serves {word:?} from {known:?} on");
        ensure!(known < Duration::from_secs(1), "from {known:?} on:\n{}", house.log());
    }
    // A machine that one gateway removes is out at both.
    let begun = Instant::now();
    second.node(&["remove", "two"])?;
    house.machines[1].until_log("was removed from the fleet").await?;
    until("both gateways have one node", Duration::from_secs(5), async || {
        let mut counts = Vec::new();
        for gateway in &house.gateways {
            counts.push(gateway.platform.metrics().await?.contains("\ndartcloud_gateway_nodes 1\n"));
        }
        Ok(counts.into_iter().all(|is_one| is_one).then_some(()))
    })
    .await?;
    println!("a removed machine is out at both after {:?}", begun.elapsed());
    ensure!(begun.elapsed() < Duration::from_secs(5), "removed after {:?}", begun.elapsed());

    // One gateway is killed: the other's calls, and what its nodes ask and tell, go on.
    let url = format!("{}/f/{}/hello", second.platform.url(), second.operator.handle);
    let load = Load::begin(url);
    load.more(20).await?;
    house.gateways[0].platform.kill()?;
    load.more(200).await?;
    let made = load.end().await.with_context(|| house.log())?;
    let second = &house.gateways[1];
    second.operator.deploy("late", hello("late")).await?.expect(201).with_context(|| house.log())?;
    let answer = second.operator.invoke("late", json!({})).await?.expect(200).with_context(|| house.log())?;
    ensure!(answer["result"] == "late", "{answer}");
    second.operator.records("late", 1).await.with_context(|| house.log())?;
    println!("{made} calls at the other gateway, none failed");
    let named = async || Ok((scraped(second).await? == ["one"]).then_some(()));
    until("the gateway that is left names the machine", PATIENCE, named).await.with_context(|| house.log())?;

    // It comes back, and is linked again.
    house.gateways[0].platform.launch().await?;
    house.gateways[0].until_state("one", "linked").await.with_context(|| house.log())?;
    let answer = house.gateways[0].operator.invoke("late", json!({})).await?.expect(200)?;
    ensure!(answer["result"] == "late", "{answer}");
    Ok(())
}
