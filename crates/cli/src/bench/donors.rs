//! Donor search for the requests of a workload, by spans alone and with embeddings, without computing anything.
//!
//! Searches a donor for each request among all earlier ones. The report adds the results of a comparison with every donor, because the
//! span index remembers few holders of a text and can miss some.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use embed::PromptEmbedder;
use engine::{SpanConfig, SpanMatch};
use eval::stats::Summary;
use eval::{Prompt, table, workload};
use semantic::{
    ByLeftContext, DonorStore, NewDonor, PlanTarget, PromptView, Segments, SpanIndexConfig, left_context_similarity, plan_reuse,
};
use serde::Serialize;
use tokens::{BlockSize, DonorId, Scope};

use crate::config::{Config, ConfigArgs};
use crate::embedders;
use crate::json_args::JsonArgs;
use crate::loading;
use crate::progress::{Progress, Unit};

/// Arguments of `kvshare bench donors`.
#[derive(Debug, clap::Args)]
pub(crate) struct DonorBenchArgs {
    /// Requests, one JSON object a line
    #[arg(long, value_name = "FILE")]
    workload: PathBuf,
    /// Read at most this many of them
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    #[command(flatten)]
    json: JsonArgs,
    #[command(flatten)]
    config: Box<ConfigArgs>,
}

const SCOPE: Scope = Scope(0);

/// Maximum donors proposed by embeddings, as in the engine.
const MAX_SIMILAR: usize = 4;

/// Gain in left similarity from which a donor fits better. Chosen: below, it is the same text cut otherwise.
const BETTER: f64 = 0.01;

/// Sums over all requests.
#[derive(Debug, Default, Serialize)]
struct DonorReport {
    num_requests: usize,
    prompt_tokens: u64,
    /// Results by spans, with embeddings, and with every donor.
    found: [Found; 3],
    /// Donors proposed by embeddings, and those among them with equal spans.
    proposals: usize,
    sharing: usize,
    embed_ms: Summary,
}

/// Results of one way to search.
#[derive(Debug, Default, Serialize)]
struct Found {
    /// Requests with spans to copy.
    hits: usize,
    tokens: u64,
    /// Number of requests with more tokens than by spans alone, or with a better fitting donor.
    better: usize,
    /// Mean over hits.
    left_similarity: f64,
    search_ms: Summary,
}

/// Index of all requests so far.
struct Library {
    config: SpanConfig,
    donors: DonorStore,
    num_donors: u64,
}

/// Tokens that a plan would copy.
#[derive(Clone, Copy, Default)]
struct Planned {
    tokens: u64,
    /// Mean over tokens.
    left_similarity: f64,
}

/// Searches for all requests of the workload, and prints the sums.
///
/// # Errors
/// If model, embedder or workload cannot be read.
pub(crate) fn run(args: DonorBenchArgs) -> anyhow::Result<()> {
    let config = Config::resolve(*args.config)?;
    let records = workload::read(&args.workload, args.limit)?;
    let mut loaded = loading::load(&config)?;
    let tokenizer = Arc::new(loading::tokenizer(&config.model, &mut loaded)?);
    let embedder = embedders::build(&config.sharing, loaded.model.embedding.as_ref(), &tokenizer, None)?;
    let mut library = Library::new(config.sharing.spans(), embedder.as_ref(), config.sharing.max_donors);
    let mut report = DonorReport::default();
    let (mut times, mut embed_times) = (<[Vec<f64>; 3]>::default(), Vec::new());
    let mut progress = Progress::new("searching", Unit::Count, records.len() as u64);
    for record in &records {
        let prompt = Prompt::encode(&tokenizer, record).with_context(|| format!("request {}", record.id))?;
        let start = Instant::now();
        let embedding = embedder.as_ref().and_then(|embedder| embedder.embed(&prompt.token_ids));
        embed_times.push(millis(start));
        library.look_for(&prompt, embedding.as_deref(), &mut report, &mut times);
        library.add(&prompt, embedding.as_deref());
        progress.add(1);
    }
    progress.finish();
    report.conclude(times, embed_times);
    args.json.write(&report, &report.to_table())
}

impl Library {
    fn new(config: SpanConfig, embedder: Option<&PromptEmbedder>, max_donors: usize) -> Self {
        let donors = DonorStore::new(SpanIndexConfig { max_donors, ..SpanIndexConfig::for_spans(&config) })
            .with_embeddings(embedder.map(|embedder| embedder.index_config(max_donors)));
        Self { config, donors, num_donors: 0 }
    }

    fn look_for(&self, prompt: &Prompt, embedding: Option<&[f32]>, report: &mut DonorReport, times: &mut [Vec<f64>; 3]) {
        let from = self.prefix_end(prompt);
        report.num_requests += 1;
        report.prompt_tokens += prompt.token_ids.len() as u64;
        let start = Instant::now();
        let by_span = self.donors.find(SCOPE, &prompt.token_ids, from);
        times[0].push(millis(start));
        let similar = self.similar(embedding);
        let with_similar = self.joined(&by_span, &similar, prompt, from);
        times[1].push(millis(start));
        let all: Vec<_> = (0..self.num_donors).map(DonorId).collect();
        let start = Instant::now();
        let of_all = self.joined(&by_span, &all, prompt, from);
        times[2].push(millis(start));
        report.proposals += similar.len();
        report.sharing += similar.iter().filter(|donor| with_similar.iter().any(|found| found.donor == **donor)).count();
        let planned = [&by_span, &with_similar, &of_all].map(|matches| self.plan(matches, prompt, from));
        for (found, plan) in report.found.iter_mut().zip(&planned) {
            found.record(plan, &planned[0]);
        }
    }

    fn similar(&self, embedding: Option<&[f32]>) -> Vec<DonorId> {
        let similar = embedding.map(|embedding| self.donors.similar([SCOPE].into_iter(), embedding, MAX_SIMILAR));
        similar.unwrap_or_default()
    }

    /// Joins `matches` and those of all of `donors`.
    fn joined(&self, matches: &[SpanMatch], donors: &[DonorId], prompt: &Prompt, from: u32) -> Vec<SpanMatch> {
        let mut joined = matches.to_vec();
        joined.retain(|found| !donors.contains(&found.donor));
        joined.extend(donors.iter().flat_map(|&donor| self.donors.find_in(donor, &prompt.token_ids, from)));
        joined.sort_by_key(|found| {
            (found.target_pos, std::cmp::Reverse(found.num_tokens), std::cmp::Reverse(found.donor), found.donor_pos)
        });
        joined
    }

    fn plan(&self, matches: &[SpanMatch], prompt: &Prompt, from: u32) -> Planned {
        let segments = segments_of(prompt);
        let view = PromptView { tokens: &prompt.token_ids, segments: &segments };
        let target = PlanTarget { prompt: view, from, template: &prompt.template };
        let plan = plan_reuse(&target, matches, &ByLeftContext::new(&self.donors), &self.config);
        let mut planned = Planned::default();
        for span in &plan.spans {
            let donor = &self.donors.get(span.donor).expect("a planned donor is kept").tokens;
            let (here, there) = (&prompt.token_ids[..span.target_pos as usize], &donor[..span.donor_pos as usize]);
            planned.tokens += u64::from(span.num_tokens);
            planned.left_similarity += f64::from(span.num_tokens) * f64::from(left_context_similarity(here, there));
        }
        planned.left_similarity /= planned.tokens.max(1) as f64;
        planned
    }

    /// Counts tokens in the leading full blocks that some donor has too.
    fn prefix_end(&self, prompt: &Prompt) -> u32 {
        let common = |donor| {
            let donor = self.donors.get(DonorId(donor)).map_or(&[][..], |donor| &donor.tokens);
            donor.iter().zip(&prompt.token_ids).take_while(|(a, b)| a == b).count()
        };
        let longest = (0..self.num_donors).map(common).max().unwrap_or(0).min(prompt.token_ids.len().saturating_sub(1));
        (BlockSize::DEFAULT.full_blocks(longest) * BlockSize::DEFAULT.as_usize()) as u32
    }

    fn add(&mut self, prompt: &Prompt, embedding: Option<&[f32]>) {
        let id = DonorId(self.num_donors);
        self.num_donors += 1;
        let new = NewDonor::new(id, SCOPE, prompt.token_ids.as_slice());
        drop(self.donors.insert(NewDonor { segments: segments_of(prompt), ..new }));
        if let Some(embedding) = embedding {
            self.donors.attach(id, embedding);
        }
    }
}

fn segments_of(prompt: &Prompt) -> Segments {
    Segments::from(&prompt.borders).parted_by(&prompt.template)
}

fn millis(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

impl Found {
    fn record(&mut self, plan: &Planned, by_span: &Planned) {
        self.hits += usize::from(plan.tokens > 0);
        self.tokens += plan.tokens;
        self.better += usize::from(plan.tokens > by_span.tokens || plan.left_similarity > by_span.left_similarity + BETTER);
        self.left_similarity += plan.left_similarity;
    }
}

impl DonorReport {
    fn conclude(&mut self, times: [Vec<f64>; 3], embed_times: Vec<f64>) {
        for (found, times) in self.found.iter_mut().zip(times) {
            found.left_similarity /= found.hits.max(1) as f64;
            found.search_ms = Summary::of(times);
        }
        self.embed_ms = Summary::of(embed_times);
    }

    fn to_table(&self) -> String {
        let rows = ["spans", "spans and embeddings", "every donor"].iter().zip(&self.found).map(|(name, found)| {
            vec![
                (*name).to_owned(),
                found.hits.to_string(),
                format!("{:.1} %", 100.0 * found.tokens as f64 / self.prompt_tokens.max(1) as f64),
                found.better.to_string(),
                format!("{:.3}", found.left_similarity),
                format!("{:.3}", found.search_ms.p50),
                format!("{:.3}", found.search_ms.p99),
            ]
        });
        let header = ["donors from", "hits", "tokens", "better", "left context", "p50 ms", "p99 ms"];
        let Self { num_requests, prompt_tokens, proposals, sharing, embed_ms, .. } = self;
        let mean = prompt_tokens / (*num_requests).max(1) as u64;
        let head = format!("{num_requests} requests of {mean} tokens on average\n\n");
        let tail = format!(
            "\n{proposals} donors proposed by embeddings, {sharing} of them with equal spans; embedding p50 {:.2} ms, p99 {:.2} ms\n",
            embed_ms.p50, embed_ms.p99
        );
        head + &table::markdown(&header, &rows.collect::<Vec<_>>(), 1) + &tail
    }
}

#[cfg(test)]
mod tests {
    use tokens::TokenId;

    use super::*;

    fn text(seed: u32, num_tokens: u32) -> Vec<TokenId> {
        (0..num_tokens).map(|i| TokenId(seed * 1000 + i)).collect()
    }

    fn prompt(parts: &[Vec<TokenId>]) -> Prompt {
        Prompt { borders: vec![parts[0].len() as u32].into(), ..Prompt::plain(parts.concat()) }
    }

    #[test]
    fn a_better_donor_than_the_newest_is_what_every_donor_shows() {
        let mut library = Library::new(SpanConfig::default(), None, 100);
        let document = text(99, 200);
        // More donors than a search follows, and no more than a plan compares in one place.
        for id in 0..16 {
            library.add(&prompt(&[text(id, 40), document.clone()]), None);
        }
        let (mut report, mut times) = (DonorReport::default(), Default::default());
        let mut left = text(0, 40);
        left.insert(0, TokenId(7));
        left.push(TokenId(8));
        library.look_for(&prompt(&[left, document]), None, &mut report, &mut times);
        let [by_span, same, every] = report.found;
        assert_eq!((by_span.hits, same.better, every.better), (1, 0, 1));
        assert!(by_span.tokens <= every.tokens, "a better donor has more of what is left of the document");
        assert!(every.left_similarity > by_span.left_similarity + 0.5);
    }
}
