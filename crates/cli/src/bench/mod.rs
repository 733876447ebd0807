//! Speed measurements: of the engine in process, of a server from outside, and of two runs against each other.

mod compare;
mod dispatch;
mod donors;
mod driver;
mod engine;
mod grammar;
mod report;
mod serve;
mod sharing;
mod source;

/// Subcommands of `kvshare bench`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum BenchCommand {
    /// Measure prefill and decode in process, without a server
    Engine(engine::EngineBenchArgs),
    /// Count which donors the requests of a workload would find, without computing anything
    Donors(donors::DonorBenchArgs),
    /// Measure what constraining answers costs, without computing any
    Grammar(grammar::GrammarBenchArgs),
    /// Measure what moved spans save and cost, in process
    Sharing(sharing::SharingBenchArgs),
    /// Send a workload to a server and measure its answers
    Serve(serve::ServeBenchArgs),
    /// Compare the times and answers of two runs of `bench serve`
    Compare(compare::CompareArgs),
}

impl BenchCommand {
    /// True if the engine runs in process, with the settings of the daemon.
    pub(crate) fn reads_config(&self) -> bool {
        match self {
            Self::Engine(_) | Self::Donors(_) | Self::Grammar(_) | Self::Sharing(_) => true,
            Self::Serve(_) | Self::Compare(_) => false,
        }
    }
}

/// Runs the measurement, and prints the result on standard output.
///
/// # Errors
/// If the measurement cannot be made, or requests failed in it.
pub(crate) fn run(command: BenchCommand) -> anyhow::Result<()> {
    match command {
        BenchCommand::Donors(args) => donors::run(args),
        BenchCommand::Engine(args) => engine::run(&args),
        BenchCommand::Grammar(args) => grammar::run(args),
        BenchCommand::Sharing(args) => sharing::run(&args),
        BenchCommand::Serve(args) => serve::run(&args),
        BenchCommand::Compare(args) => compare::run(&args),
    }
}
