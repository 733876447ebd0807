//! Measurements: of the engine in process and of what span reuse does to answers, of a server from outside, and of two runs against each other.

mod compare;
mod dispatch;
mod divergence;
mod engine;
mod forced;
mod quality;
mod report;
mod rouge;
mod serve;
mod stats;
mod table;
mod workload;

/// What is measured.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum BenchCommand {
    /// Measure prefill and decode in process, without a server
    Engine(engine::EngineBenchArgs),
    /// Compare answers after span reuse with full computation, token by token, without a server
    Quality(quality::QualityBenchArgs),
    /// Send a workload to a server and measure its answers
    Serve(serve::ServeBenchArgs),
    /// Compare the times and answers of two runs of `bench serve`
    Compare(compare::CompareArgs),
}

/// Measures, and prints the result on standard output.
///
/// # Errors
/// If the measurement cannot be made, or requests failed in it.
pub(crate) fn run(command: BenchCommand) -> anyhow::Result<()> {
    match command {
        BenchCommand::Engine(args) => engine::run(args),
        BenchCommand::Quality(args) => quality::run(args),
        BenchCommand::Serve(args) => serve::run(&args),
        BenchCommand::Compare(args) => compare::run(&args),
    }
}
