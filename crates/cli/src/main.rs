//! `kvshare`: reads flags and a file, builds everything, runs one command.
//!
//! Contains the command line, the configuration, the clients `chat` and `bench`, and the only place that knows all other crates
//! (`serve`). Deliberately excludes anything another program would want to import.

#![forbid(unsafe_code)]

mod args;
mod bench;
mod chat;
mod client;
mod config;
mod demo;
mod embedders;
mod environment;
mod eval;
mod generation;
mod json_args;
mod keys;
mod loading;
mod logging;
mod memory;
mod open_files;
mod progress;
mod pull;
mod serve;
mod simulate;
mod stderr;
mod stdout;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Args, Command};
use config::{Config, ConfigArgs};

/// Allocator that ends the process with one line if a model does not fit, wherever that happens.
#[global_allocator]
static ALLOCATOR: runner::ExitingAllocator = runner::ExitingAllocator;

fn main() -> ExitCode {
    match run(Args::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            stderr::write_line(format_args!("error: {}", one_line(&error)));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    if command.reads_config() {
        let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
        environment::refuse_unknown(&Args::command(), names)?;
    }
    match command {
        Command::Serve(args) => serve::run(Config::resolve(*args)?),
        Command::Demo(args) => demo::run(*args),
        Command::Pull(args) => pull::run(args),
        Command::Chat(args) => chat::run(args),
        Command::Bench { command } => bench::run(command),
        Command::Eval(args) => eval::run(&args),
        Command::Simulate(args) => simulate::run(&args),
        Command::Keys { command } => keys::run(command),
        Command::CheckConfig(args) => check_config(*args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "kvshare", &mut script);
            stdout::write(script)
        }
    }
}

fn check_config(args: ConfigArgs) -> anyhow::Result<()> {
    let config = Config::resolve(args)?;
    // Keys are in files of their own, but a daemon with bad ones does not start either.
    config.tenants.access()?;
    stdout::write(config.to_toml())
}

/// Formats an error and its causes in one line, so that a log or a supervisor shows it whole.
fn one_line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        // Some errors print their cause themselves.
        if !text.ends_with(&cause) {
            text = if text.is_empty() { cause } else { format!("{text}: {cause}") };
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn errors_are_one_line_without_repetition() {
        let cause = std::io::Error::other("status 404");
        let error = anyhow::Error::new(cause).context("request error:\n  status 404").context("fetching x");
        assert_eq!(one_line(&error), "fetching x: request error: status 404");
    }

    #[test]
    fn completions_name_every_command() {
        for shell in [clap_complete::Shell::Bash, clap_complete::Shell::Zsh, clap_complete::Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "kvshare", &mut script);
            let script = String::from_utf8(script).unwrap();
            for command in ["serve", "demo", "pull", "chat", "bench", "eval", "simulate", "keys", "check-config", "completions"] {
                assert!(script.contains(command), "{shell} lacks {command}");
            }
        }
    }
}
