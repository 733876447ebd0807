//! Time that grammars take: to compile a schema, and to compute the mask before each token of an answer to it.

use std::time::Instant;

use anyhow::{Context, ensure};
use eval::stats::Summary;
use eval::table;
use grammar::{Constraint, Vocabulary};
use serde::{Deserialize, Serialize};
use tokenizer::Tokenizer;

use crate::config::{Config, ConfigArgs};
use crate::json_args::JsonArgs;
use crate::loading;

/// Arguments of `kvshare bench grammar`.
#[derive(Debug, clap::Args)]
pub(crate) struct GrammarBenchArgs {
    /// JSON lines with name, schema and answer, a text that the schema allows [default: eight schemas of common kinds]
    #[arg(long, value_name = "FILE")]
    cases: Option<std::path::PathBuf>,
    /// Repetitions of each case
    #[arg(long, default_value_t = 5, value_name = "N")]
    repeats: u32,
    #[command(flatten)]
    json: JsonArgs,
    #[command(flatten)]
    config: Box<ConfigArgs>,
}

/// A schema with an answer to it.
#[derive(Debug, Deserialize)]
struct Case {
    name: String,
    schema: serde_json::Value,
    answer: String,
}

/// Times of one case, or of all.
#[derive(Debug, Serialize)]
struct Measured {
    name: String,
    compile_ms: Summary,
    mask_us: Summary,
    accept_us: Summary,
}

/// Times of one answer.
#[derive(Default)]
struct Times {
    compile_ms: Vec<f64>,
    mask_us: Vec<f64>,
    accept_us: Vec<f64>,
}

/// Measures each case, and prints a table.
///
/// # Errors
/// If the model has no tokenizer, or an answer is not one that its schema allows.
pub(crate) fn run(args: GrammarBenchArgs) -> anyhow::Result<()> {
    let config = Config::resolve(*args.config)?;
    let cases = read_cases(args.cases.as_deref())?;
    let tokenizer = loading::tokenizer(&config.model, &mut loading::load(&config)?)?;
    let start = Instant::now();
    let vocabulary = server::vocabulary(&tokenizer).context("the model has no token that ends an answer")?;
    let build_ms = start.elapsed().as_secs_f64() * 1e3;
    let (mut measured, mut all) = (Vec::new(), Times::default());
    for case in &cases {
        let mut times = Times::default();
        for _ in 0..args.repeats {
            measure(&vocabulary, &tokenizer, case, &mut times).with_context(|| case.name.clone())?;
        }
        all.compile_ms.extend(&times.compile_ms);
        all.mask_us.extend(&times.mask_us);
        all.accept_us.extend(&times.accept_us);
        measured.push(times.summary(&case.name));
    }
    measured.push(all.summary("all"));
    let head = format!("Vocabulary of {} tokens, built in {build_ms:.0} ms\n\n", tokenizer.vocab_size());
    args.json.write(&measured, &(head + &to_table(&measured)))
}

fn read_cases(path: Option<&std::path::Path>) -> anyhow::Result<Vec<Case>> {
    let text = match path {
        Some(path) => std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?,
        None => include_str!("grammar/cases.jsonl").to_owned(),
    };
    let parse = |(idx, line)| serde_json::from_str(line).with_context(|| format!("line {} has no schema and answer", idx + 1));
    text.lines().enumerate().map(parse).collect()
}

/// Walks the answer as a request would, token by token.
fn measure(vocabulary: &Vocabulary, tokenizer: &Tokenizer, case: &Case, times: &mut Times) -> anyhow::Result<()> {
    let start = Instant::now();
    let grammar = vocabulary.compile(&Constraint::JsonSchema(case.schema.clone()))?;
    let mut matcher = grammar.matcher();
    times.compile_ms.push(start.elapsed().as_secs_f64() * 1e3);
    for token in tokenizer.encode_as_text(&case.answer)? {
        let start = Instant::now();
        let mask = matcher.mask()?;
        times.mask_us.push(start.elapsed().as_secs_f64() * 1e6);
        ensure!(mask.allows(token), "the schema does not allow {:?} of {}", tokenizer.token_str(token), case.answer);
        let start = Instant::now();
        matcher.accept(token)?;
        times.accept_us.push(start.elapsed().as_secs_f64() * 1e6);
    }
    Ok(())
}

impl Times {
    fn summary(self, name: &str) -> Measured {
        let [compile_ms, mask_us, accept_us] = [self.compile_ms, self.mask_us, self.accept_us].map(Summary::of);
        Measured { name: name.to_owned(), compile_ms, mask_us, accept_us }
    }
}

fn to_table(measured: &[Measured]) -> String {
    let header = ["schema", "tokens", "compile p50 ms", "p99", "mask p50 µs", "p90", "p99", "accept p50 µs", "p99"];
    let row = |Measured { name, compile_ms, mask_us, accept_us }: &Measured| {
        let values = [compile_ms.p50, compile_ms.p99, mask_us.p50, mask_us.p90, mask_us.p99, accept_us.p50, accept_us.p99];
        let cells = values.iter().map(|value| format!("{value:.1}"));
        [name.clone(), mask_us.n.to_string()].into_iter().chain(cells).collect()
    };
    table::markdown(&header, &measured.iter().map(row).collect::<Vec<Vec<_>>>(), 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_case_of_our_own_is_a_schema_with_an_answer() {
        let cases = read_cases(None).unwrap();
        assert_eq!(cases.len(), 8);
        for case in cases {
            assert!(case.schema.is_object(), "{}", case.name);
            assert!(serde_json::from_str::<serde_json::Value>(&case.answer).is_ok(), "{}", case.name);
        }
    }
}
