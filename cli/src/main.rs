//! `dartcloud`: the platform on one machine (`dev`), and the client commands, one process per command.

mod api;
mod commands;
mod credentials;
mod data;
mod dev;
mod failure;
mod ignore;
mod output;
mod pack;
mod progress;
mod prompt;
mod sse;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use commands::{backup, delete, deploy, invoke, list, login, logs, migrate, new, node, restore, whoami, why};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A serverless platform on plain Docker: upload code, get a URL.
#[derive(Debug, Parser)]
#[command(name = "dartcloud", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the whole platform in this process, until Ctrl-C.
    Dev(Box<dev::Args>),
    /// Make an account on a server, sign in, and remember both; on a new server, it is the operator's.
    Register(login::Args),
    /// Sign in to a server and remember it.
    Login(login::Args),
    /// Make a folder with a function that deploys and answers as it is.
    New(new::Args),
    /// Upload a folder and make it the function's new version.
    Deploy(deploy::Args),
    /// Show your functions.
    List(list::Args),
    /// Call a function and print its result.
    Invoke(invoke::Args),
    /// Show a function's last calls and what it printed.
    Logs(logs::Args),
    /// Tell the story of one call: where it ran, what its time went into, which limits it hit.
    Why(why::Args),
    /// Delete a function with all its versions.
    Delete(delete::Args),
    /// Add machines to the fleet, and operate them.
    Node(node::Args),
    /// Show who you are, and on which server.
    Whoami(whoami::Args),
    /// Write everything that the platform on this machine keeps into one file; it may run.
    Backup(Box<backup::Args>),
    /// Put a backup into an empty database; no gateway may run.
    Restore(Box<restore::Args>),
    /// Copy one database into another, such as SQLite into Postgres; no gateway may run.
    Migrate(Box<migrate::Args>),
}

fn main() -> ExitCode {
    let cli = match common::options::parse::<Cli>() {
        Ok(cli) => cli,
        Err(error) => return failure::usage(&error),
    };
    let done = match cli.command {
        Command::Dev(args) => dev::run(*args),
        Command::Register(args) => wait(login::run(args, login::Account::New)),
        Command::Login(args) => wait(login::run(args, login::Account::Known)),
        Command::New(args) => new::run(&args),
        Command::Deploy(args) => wait(deploy::run(args)),
        Command::List(args) => wait(list::run(args)),
        Command::Invoke(args) => wait(invoke::run(args)),
        Command::Logs(args) => wait(logs::run(args)),
        Command::Why(args) => wait(why::run(args)),
        Command::Delete(args) => wait(delete::run(args)),
        Command::Node(args) => node::run(args, wait),
        Command::Whoami(args) => wait(whoami::run(args)),
        Command::Backup(args) => wait(backup::run(*args)),
        Command::Restore(args) => wait(restore::run(*args)),
        Command::Migrate(args) => wait(migrate::run(*args)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::report(&error),
    }
}

/// Runs a client command to its end on a runtime of its own.
fn wait(command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(command);
    // A thread that still reads a terminal or a disk must not hold the process.
    runtime.shutdown_background();
    done
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use clap::CommandFactory as _;

    use super::*;

    fn check(line: &str, expected: Result<(), &str>) {
        let words = std::iter::once("dartcloud").chain(line.split_whitespace());
        match (Cli::try_parse_from(words), expected) {
            (Ok(_), Ok(())) => {}
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error} has no {part}"),
            (got, expected) => panic!("{line}: {got:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn arguments() {
        Cli::command().debug_assert();
        check("login --url http://127.0.0.1:8080 --email a@example.org --password-stdin", Ok(()));
        check("register --url http://127.0.0.1:8080 --email a@example.org --password-stdin", Ok(()));
        check("new hello --runtime node", Ok(()));
        check("new hello --runtime node --http", Ok(()));
        check("new hello --runtime cobol", Err("dart, native, node, python"));
        check("deploy . --name hello --set access=public --set env.A=b", Ok(()));
        check("deploy --name Hello", Err("lower-case letters"));
        check("deploy --set color=red", Err("unknown field `color`"));
        check("deploy --set timeout_ms=soon", Err("timeout_ms"));
        check("deploy --set access", Err("key=value"));
        check("invoke hello --body {\"a\":1} --query a=b --header x-a:b --method PUT --path /x", Ok(()));
        check("invoke hello --header nonsense", Err("name:value"));
        check("invoke", Err("required"));
        check("logs hello --limit 5 --follow", Ok(()));
        check("logs hello --limit 0", Err("0 is not in"));
        check("why 01890a5d-ac96-774b-bcce-b302099a8057 --json", Ok(()));
        check("why hello", Err("REQUEST ID"));
        check("node token --json", Ok(()));
        check("node join https://gateway.example:9443 dcjoin_x", Err("whole join token"));
        check("node join gateway.example:9443 dcjoin_x", Err("https://host:port"));
        check("node drain one", Ok(()));
        check("node doctor", Ok(()));
        check("node authority --json", Ok(()));
        check("node authority rotate --json", Ok(()));
        check("node authority rotate --finish --force", Ok(()));
        check("node authority rotate --force", Err("--finish"));
        check("node authority --json rotate", Err("cannot be used with"));
        check("backup platform.tar.gz", Ok(()));
        check("backup", Err("FILE"));
        check("restore platform.tar.gz --replace --forget-authority", Ok(()));
        check("migrate --from sqlite:/var/lib/dartcloud --to postgres://u@db/x", Ok(()));
        check("migrate --to mysql://db/x", Err("sqlite:DIRECTORY or postgres://"));
        check("migrate", Err("--to"));
        check("delete hello/../x", Err("lower-case letters"));
        check("list --url ftp://x", Err("http://"));
        check("list --after hello", Ok(()));
    }

    #[test]
    fn the_example_environment_names_every_setting() {
        let command = Cli::command();
        let arguments = command.find_subcommand("dev").unwrap().get_arguments();
        let settings: BTreeMap<_, _> = arguments
            .filter_map(|argument| {
                let defaults: Vec<_> =
                    argument.get_default_values().iter().filter_map(|value| value.to_str()).collect();
                Some((argument.get_env()?.to_str()?, defaults.join(",")))
            })
            .collect();
        let example: BTreeMap<_, _> = include_str!("../../.env.example")
            .lines()
            .filter_map(|line| line.strip_prefix('#').filter(|line| !line.starts_with(' '))?.split_once('='))
            .collect();
        assert_eq!(settings.keys().collect::<Vec<_>>(), example.keys().collect::<Vec<_>>());
        // These two depend on the machine, and on whether the platform runs in a container.
        for (name, default) in settings.iter().filter(|(name, _)| !["DATA_DIR", "FUNCTIONS_DIR"].contains(name)) {
            assert_eq!(default, example[name], "{name}");
        }
    }
}
