//! Backup, loss of everything, restore; and from SQLite to Postgres: the same functions at the same URLs.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::archive::{example, python};
use crate::client::Client;
use crate::platform::{Form, JWT_SECRET, Platform, free_ports, program};
use crate::two_processes::Database;

/// A `dartcloud …` of the operator's, on the machine of the platform.
fn dartcloud(platform: &Platform, settings: &[(&str, &str)], arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(program("dartcloud"));
    command.args(arguments).env("DATA_DIR", platform.data_dir()).env_remove("JWT_SECRET");
    Ok(command.envs(settings.iter().copied()).output()?)
}

fn done(output: Output) -> Result<String> {
    let said = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    ensure!(output.status.success(), "{}: {said:?}", output.status);
    Ok(said[0].clone())
}

fn refused(output: &Output, word: &str) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && said.contains(word), "expected `{word}`: {} {said}", output.status);
    Ok(())
}

/// The functions.
const NAMES: [&str; 2] = ["hello", "count"];

/// What a person has on the platform, as far as it can be asked for.
struct Possessions {
    user: Client,
    email: Value,
    /// Of each function.
    records: usize,
    functions: Value,
}

impl Possessions {
    async fn gather(platform: &Platform) -> Result<Self> {
        let user = platform.user().await?;
        user.deploy("hello", example("hello-python")).await?.expect(201)?;
        user.deploy("count", python("answer(1)")).await?.expect(201)?;
        user.deploy("count", python("answer(2)")).await?.expect(200)?;
        for name in NAMES {
            user.invoke(name, json!({"name": "Ada"})).await?.expect(200)?;
            user.records(name, 1).await?;
        }
        let email = user.get("/api/auth/me").await?.expect(200)?["email"].clone();
        let functions = user.get("/api/functions").await?.expect(200)?;
        Ok(Self { user, email, records: 1, functions })
    }

    /// All is there, by the token of before and by a new one, and works.
    async fn check(&mut self, platform: &Platform) -> Result<()> {
        let Self { user, email, records, functions } = self;
        let found = user.get("/api/functions").await?.expect(200)?;
        ensure!(found == *functions, "{found} instead of {functions}");
        let login = json!({"email": email, "password": "correct horse"});
        user.post("/api/auth/login", &login).await?.expect(200).with_context(|| platform.log())?;
        for name in NAMES {
            let found = user.records(name, *records).await?.len();
            ensure!(found == *records, "{found} records of {name} instead of {records}");
        }
        let url = format!("{}/f/{}/count", user.url, user.handle);
        let answer = reqwest::get(url).await?;
        ensure!(answer.status() == 200, "{answer:?}: {}", platform.log());
        ensure!(answer.text().await? == "2");
        let answer = user.invoke("hello", json!({"name": "Ada"})).await?.expect(200)?;
        ensure!(answer["result"]["message"] == "Hello, Ada!", "{answer}");
        *records += 1;
        for name in NAMES {
            user.records(name, *records).await?;
        }
        Ok(())
    }
}

fn lose_everything(platform: &Platform) -> Result<()> {
    for entry in std::fs::read_dir(platform.data_dir())? {
        let path = entry?.path();
        if path.is_dir() { std::fs::remove_dir_all(path)? } else { std::fs::remove_file(path)? }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_lost_and_restored_and_moved_to_postgres() -> Result<()> {
    let [port] = free_ports()?;
    let address = format!("127.0.0.1:{port}");
    let mut platform = Platform::start(Form::TwoProcesses, &[("NODE_ADDR", &address)]).await?;
    let mut had = Possessions::gather(&platform).await?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("platform.tar.gz");
    let file = file.to_str().context("a path that is no text")?;
    // While the gateway runs.
    let said = done(dartcloud(&platform, &[], &["backup", file])?)?;
    ensure!(said.contains("1 users, 2 functions in 3 versions, 2 records"), "{said}");
    refused(&dartcloud(&platform, &[], &["backup", file])?, "exists")?;
    let secret = [("JWT_SECRET", JWT_SECRET)];
    refused(&dartcloud(&platform, &secret, &["restore", file, "--replace"])?, "another gateway uses")?;
    platform.stop().await?;
    lose_everything(&platform)?;

    ensure!(done(dartcloud(&platform, &[], &["restore", file, "--check"])?)?.contains("whole"));
    refused(&dartcloud(&platform, &[], &["restore", file])?, "none is set")?;
    let another = [("JWT_SECRET", "another secret that has the thirty-two bytes")];
    refused(&dartcloud(&platform, &another, &["restore", file])?, "another one is set")?;
    let cut = folder.path().join("cut.tar.gz");
    let whole = std::fs::read(file)?;
    std::fs::write(&cut, &whole[..whole.len() - 100])?;
    refused(&dartcloud(&platform, &secret, &["restore", cut.to_str().unwrap_or_default()])?, "cut off")?;
    ensure!(std::fs::read_dir(platform.data_dir())?.count() == 0, "something was made of what was refused");

    done(dartcloud(&platform, &secret, &["restore", file])?)?;
    refused(&dartcloud(&platform, &secret, &["restore", file])?, "not empty")?;
    platform.launch().await?;
    had.check(&platform).await?;
    platform.stop().await?;

    to_postgres(&mut platform, &mut had, folder.path()).await
}

async fn to_postgres(platform: &mut Platform, had: &mut Possessions, folder: &Path) -> Result<()> {
    let [database, restored] = [Database::create()?, Database::create()?];
    let values = |database: &Database| format!("{}_functions", database.name());
    let settings = [("FUNCTION_DB", values(&database))];
    let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
    let said = done(dartcloud(platform, &settings, &["migrate", "--to", database.url()])?)?;
    let records = |had: &Possessions| had.records * NAMES.len();
    ensure!(said.contains(&format!("{} records", records(had))), "{said}");
    refused(&dartcloud(platform, &settings, &["migrate", "--to", database.url()])?, "not empty")?;
    // What was moved is not gone on with by mistake.
    let late = folder.join("late.tar.gz");
    refused(&dartcloud(platform, &settings, &["backup", late.to_str().unwrap_or_default()])?, "set DATABASE_URL")?;
    platform.set("DATABASE_URL", database.url());
    platform.set("FUNCTION_DB", &values(&database));
    platform.launch().await?;
    had.check(platform).await?;
    ensure!(database.query("SELECT count(*) FROM function_invocations")? == records(had).to_string());
    let insert = "INSERT INTO function_data (function_id, key, value) VALUES (gen_random_uuid(), 'a', '{\"b\": 1}')";
    let kept = database.beside(&values(&database))?;
    kept.query(insert)?;
    platform.stop().await?;

    // From one Postgres to another, by a file.
    let file = folder.join("postgres.tar.gz");
    let file = file.to_str().context("a path that is no text")?;
    let on = |database: &Database| [("DATABASE_URL", database.url().to_owned()), ("FUNCTION_DB", values(database))];
    let (from, to) = (on(&database), on(&restored));
    let from = from.each_ref().map(|(name, value)| (*name, value.as_str()));
    let to = to.each_ref().map(|(name, value)| (*name, value.as_str()));
    done(dartcloud(platform, &from, &["backup", file])?)?;
    done(dartcloud(platform, &[&to[..], &[("JWT_SECRET", JWT_SECRET)]].concat(), &["restore", file])?)?;
    ensure!(restored.query("SELECT count(*) FROM function_deployments")? == "3");
    let restored = restored.beside(&values(&restored))?;
    ensure!(restored.query("SELECT value ->> 'b' FROM function_data")? == "1");
    Ok(())
}
