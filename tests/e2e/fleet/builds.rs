//! Builds travel: what one machine built runs on others, by way of a bucket that all gateways share.

use std::path::PathBuf;

use super::*;
use crate::archive::{PUBLIC, archive};

/// A bucket of the suite's S3 service.
pub(super) struct Bucket {
    service: String,
    name: String,
}

impl Bucket {
    pub(super) async fn create() -> Result<Self> {
        let service = std::env::var("TEST_S3_URL")
            .context("TEST_S3_URL is not set: run the suite by `script/test e2e`, which starts an S3 service")?;
        let name = format!("e2e-{}", uuid::Uuid::now_v7().simple());
        let made = reqwest::Client::new().put(format!("{service}/{name}")).send().await?;
        ensure!(made.status().is_success(), "{made:?}");
        Ok(Self { service, name })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The settings of a gateway that keeps its artifacts here.
    pub(super) fn settings<'a>(&'a self, url: &'a str) -> [(&'a str, &'a str); 5] {
        [
            ("ARTIFACTS_URL", url),
            ("AWS_ENDPOINT_URL", self.service.as_str()),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_ACCESS_KEY_ID", "suite"),
            ("AWS_SECRET_ACCESS_KEY", "suite"),
        ]
    }

    /// How many objects' names begin so.
    async fn count(&self, prefix: &str) -> Result<usize> {
        let url = format!("{}/{}?list-type=2&prefix={prefix}", self.service, self.name);
        Ok(reqwest::get(url).await?.error_for_status()?.text().await?.matches("<Key>").count())
    }
}

impl Machine {
    /// How many builds came to this machine so.
    async fn builds(&self, how: &str) -> Result<u64> {
        let metrics = reqwest::get(format!("http://127.0.0.1:{}/metrics", self.ops)).await?.text().await?;
        let line = format!("dartcloud_agent_builds_total{{result=\"{how}\"}} ");
        Ok(metrics.lines().find_map(|metric| metric.strip_prefix(&line)?.parse().ok()).unwrap_or(0))
    }
}

/// A Python function whose recipe runs, and fetches nothing.
fn with_a_recipe() -> Vec<u8> {
    let code = "import json\njson.dump({'body': 'built'}, open('/result.json', 'w'))\n";
    archive(&[("main.py", code), ("requirements.txt", "# none\n"), PUBLIC])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_is_made_once_and_travels() -> Result<()> {
    let (database, bucket) = (Database::create()?, Bucket::create().await?);
    let url = format!("s3://{}/platform", bucket.name);
    let settings = [&[("DATABASE_URL", database.url())], bucket.settings(&url).as_slice()].concat();
    let fleet = Fleet::start(&settings).await?;
    let (one, two) = (fleet.machine("one").await?, fleet.machine("two").await?);
    let logs = || format!("{}\n{}\n{}", one.log(), two.log(), fleet.platform.log());
    // Functions that have different homes, deployed all at once.
    let deploys = (0..6).map(|at| {
        let caller = fleet.operator.clone();
        async move { caller.deploy(&format!("f{at}"), with_a_recipe()).await?.expect(201) }
    });
    futures_util::future::try_join_all(deploys).await.with_context(logs)?;
    let built = one.builds("built").await? + two.builds("built").await?;
    ensure!(built == 1, "built {built} times:\n{}", logs());
    let kept = (bucket.count("platform/archives/").await?, bucket.count("platform/builds/").await?);
    ensure!(kept == (1, 1), "{kept:?} archives and builds");

    // Each machine in turn has to run all of them.
    for (name, machine) in [("one", &one), ("two", &two)] {
        fleet.node(&["cordon", if name == "one" { "two" } else { "one" }])?;
        for at in 0..6 {
            let answer = fleet.operator.invoke(&format!("f{at}"), json!({})).await?.expect(200).with_context(logs)?;
            ensure!(answer["result"] == "built", "{answer}");
        }
        let had = machine.builds("built").await? + machine.builds("fetched").await?;
        ensure!(had == 1, "{name} made or fetched {had} builds");
        fleet.node(&["uncordon", if name == "one" { "two" } else { "one" }])?;
    }

    // A second gateway has a data directory of its own, and what the first one was given.
    let mut second = Fleet::start(&settings).await?;
    second.operator = Client { url: second.operator.url, ..fleet.operator.clone() };
    let three = second.machine("three").await?;
    let answer = second.operator.invoke("f0", json!({})).await?.expect(200).with_context(|| three.log())?;
    ensure!(answer["result"] == "built" && three.builds("fetched").await? == 1, "{answer}");
    ensure!(!second.platform.data_dir().join("functions/builds").exists(), "it keeps builds of its own");
    let health = reqwest::get(format!("{}/api/health", second.platform.url())).await?.json::<Value>().await?;
    ensure!(health["parts"]["artifacts"] == "ok", "{health}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_does_not_start_without_its_bucket() -> Result<()> {
    let bucket = Bucket::create().await?;
    let settings = bucket.settings("s3://never-made/platform");
    let refused = Platform::start(Form::Gateway, &settings).await.err().context("it started")?;
    ensure!(format!("{refused:#}").contains("does not exist: make it"), "{refused:#}");
    Ok(())
}

/// A small file system on a folder, unmounted when it is dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: &Path, size: &str) -> Result<Self> {
        let options = format!("size={size}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "small"]).arg(path).status()?;
        ensure!(mounted.success(), "mount failed");
        Ok(Self(path.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // What does not work now is gone with the machine.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Text that hardly gets smaller.
fn noise(bytes: usize) -> String {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b' ' + ((state >> 33) % 95) as u8)
    };
    (0..bytes).map(|_| next()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_whose_disk_is_full_says_so_and_goes_on() -> Result<()> {
    let fleet = Fleet::start(&[]).await?;
    let mut machine = Machine::new()?;
    let disk = SmallDisk::mount(machine.data_dir.path(), "40m")?;
    machine.run("small", &fleet.line().await?)?;
    fleet.until_state("small", "linked").await.with_context(|| machine.log())?;
    let script = |bytes: usize| {
        archive(&[("main*", "#!/bin/sh\nprintf '{\"body\":1}' >/result.json\n"), ("filler", &noise(bytes)), PUBLIC])
    };
    // One that fits and is not used gives way to another; one that never fits is refused, and leaves nothing.
    fleet.operator.deploy("first", script(12 << 20)).await?.expect(201).with_context(|| machine.log())?;
    fleet.operator.delete("/api/functions/first").await?.expect(204)?;
    fleet.operator.deploy("second", script(16 << 20)).await?.expect(201).with_context(|| machine.log())?;
    ensure!(machine.log().contains("builds that are not in use are removed"), "{}", machine.log());
    fleet.operator.deploy("huge", script(45 << 20)).await?.expect_error(503, "no_sandbox")?;
    machine.until_log("this node's disk is full: free some of it, or set BUILD_CACHE_MB lower").await?;
    let left = std::fs::read_dir(machine.data_dir.path().join("builds"))?
        .filter(|entry| entry.as_ref().is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("tmp-")));
    ensure!(left.count() == 0, "something half made is left");
    let answer = fleet.operator.invoke("second", json!({})).await?.expect(200).with_context(|| machine.log())?;
    ensure!(answer["result"] == 1, "{answer}");
    machine.stop().await?;
    drop(disk);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_lack_a_build_at_once_make_it_once() -> Result<()> {
    let fleet = Fleet::start(&[]).await?;
    let one = fleet.machine("one").await?;
    // So many that each of two machines is the home of some.
    let names: Vec<_> = (0..12).map(|at| format!("f{at}")).collect();
    for name in &names {
        fleet.operator.deploy(name, with_a_recipe()).await?.expect(201).with_context(|| one.log())?;
    }
    // Two that come later have no build. The one that has it takes no calls, and what it stored is lost.
    let later = [fleet.machine("two").await?, fleet.machine("three").await?];
    let logs = || later.iter().map(Machine::log).chain([fleet.platform.log()]).collect::<Vec<_>>().join("\n");
    fleet.node(&["drain", "one"])?;
    for entry in std::fs::read_dir(fleet.platform.data_dir().join("functions/builds"))? {
        std::fs::remove_file(entry?.path())?;
    }
    let calls = names.iter().map(|name| async { fleet.operator.invoke(name, json!({})).await?.expect(200) });
    futures_util::future::try_join_all(calls).await.with_context(logs)?;
    let (mut built, mut fetched) = (0, 0);
    for machine in &later {
        built += machine.builds("built").await?;
        fetched += machine.builds("fetched").await?;
    }
    ensure!((built, fetched) == (1, 1), "built {built} times, fetched {fetched} times:\n{}", logs());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_on_one_machine_is_built_on_another() -> Result<()> {
    let fleet = Fleet::start(&[]).await?;
    let mut small = Machine::new()?;
    let disk = SmallDisk::mount(small.data_dir.path(), "12m")?;
    small.run("small", &fleet.line().await?)?;
    fleet.until_state("small", "linked").await.with_context(|| small.log())?;
    let large = fleet.machine("large").await?;
    let script = "#!/bin/sh\nprintf '{\"body\":1}' >/result.json\n";
    let archive = archive(&[("main*", script), ("filler", &noise(12 << 20)), PUBLIC]);
    // Each has one of the two for its home; one of the small machine's comes soon.
    for at in 0..12 {
        fleet.operator.deploy(&format!("f{at}"), archive.clone()).await?.expect(201).with_context(|| large.log())?;
        if small.log().contains("disk is full") {
            small.stop().await?;
            drop(disk);
            return Ok(());
        }
    }
    anyhow::bail!("none was built on the small machine first:\n{}", small.log())
}
