//! The command line as typed.

use clap::{Parser, Subcommand};

use crate::bench::BenchCommand;
use crate::chat::ChatArgs;
use crate::config::ConfigArgs;
use crate::eval::EvalArgs;
use crate::keys::KeysCommand;
use crate::pull::PullArgs;
use crate::simulate::SimulateArgs;

/// An OpenAI-compatible LLM serving daemon that shares KV cache between requests
#[derive(Debug, Parser)]
#[command(name = "kvshare", version, about, max_term_width = 120)]
pub(crate) struct Args {
    /// Subcommand.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Subcommands of `kvshare`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve a model over HTTP
    Serve(Box<ConfigArgs>),
    /// Show in less than a minute what sharing does: three documents in two orders, in three modes
    Demo(Box<ConfigArgs>),
    /// Fetch a model, so that it can be served offline
    Pull(PullArgs),
    /// Talk to a running server in the terminal
    Chat(ChatArgs),
    /// Measure the engine or a server
    Bench {
        /// Subcommand that names the benchmark.
        #[command(subcommand)]
        command: BenchCommand,
    },
    /// Compare answers after reuse of KV with full computation, without a server
    Eval(Box<EvalArgs>),
    /// Replay a trace of requests on a virtual clock, without a model
    Simulate(SimulateArgs),
    /// Make API keys
    Keys {
        /// Subcommand.
        #[command(subcommand)]
        command: KeysCommand,
    },
    /// Check the configuration and print the effective one, secrets starred out
    CheckConfig(Box<ConfigArgs>),
    /// Print a completion script
    Completions {
        /// For which shell.
        shell: clap_complete::Shell,
    },
}

impl Command {
    /// True if the command takes the settings of the daemon, from flags, file and environment.
    pub(crate) fn reads_config(&self) -> bool {
        match self {
            Self::Serve(_) | Self::Demo(_) | Self::Eval(_) | Self::CheckConfig(_) => true,
            Self::Bench { command } => command.reads_config(),
            Self::Pull(_) | Self::Chat(_) | Self::Simulate(_) | Self::Keys { .. } | Self::Completions { .. } => false,
        }
    }
}
