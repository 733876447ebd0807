//! Runs a donor and its recipients: each recipient in full, then under each policy, forced along the answer of full computation.
//!
//! After equal tokens two distributions can be compared position by position; free-running answers do not allow this once they differ.
//! Those are generated too if requested, but not if they are known: a greedy answer whose top-1 token was the forced one at every position
//! equals that answer.

use std::time::Duration;

use anyhow::Context;
use engine::{EngineCore, Executor, Repair, RepairPolicy, SamplingParams, SchedulerConfig, VerificationConfig, kl_divergence};
use semantic::{Gate, MatchClass};
use tokens::{SharingMode, TokenId};

use super::bleu::bleu;
use super::cover::covered_share;
use super::forced::Forced;
use super::measured::{AnswerScores, Measured, mean, share};
use super::plan::{Group, Prompted, Recipient};
use super::policy::Policy;
use super::prompt::Prompt;
use super::rouge::rouge_l;
use super::single_request::{CaseScope, RequestOutput, Reuse, SingleRequestEngine};
use super::task::{Metric, contains};
use super::work::{Layers, computed_share, num_prompt_tokens};
use super::workload::Record;

/// Top tokens of full computation compared one by one; all others count as one.
const FULL_TOP: usize = 64;
/// Top tokens requested: more, so that those of full computation are hardly ever missing among them.
const COMPARED_TOP: u32 = 256;
/// Divisor of the prompt where a second exact run is cut. Chosen: its chunks end elsewhere than those of the first.
const CUT: usize = 3;

/// Policies to compare, and limits.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Policies in the order of the report.
    pub policies: Vec<Policy>,
    /// Maximum positions compared.
    pub max_tokens: u32,
    /// Maximum tokens of an answer; at least `max_tokens`.
    pub max_answer_tokens: u32,
    /// True if requests also generate free-running answers.
    pub generates: bool,
    /// True if a donor of another tenant may be shared nevertheless: shows what keeping them apart prevents.
    pub ignores_tenants: bool,
    /// Layers of the model.
    pub layers: Layers,
    /// Tokens that end an answer.
    pub eos: Vec<TokenId>,
}

/// Model under evaluation.
pub struct Evaluator<'a, E> {
    engine: SingleRequestEngine<E>,
    settings: Settings,
    /// Converts an answer to text.
    decode: &'a dyn Fn(&[TokenId]) -> String,
}

/// Recipient with its results of full computation.
struct Case<'a> {
    recipient: &'a Recipient,
    full: RequestOutput,
    /// Scope of its donor, or an empty one if it may not share with it.
    scope: CaseScope,
    donor_ttft: Duration,
    cover: f64,
    /// Exact run with the donor's prefix.
    prefix: Run,
}

/// Run of a recipient under one policy.
struct Run {
    output: RequestOutput,
    kl: Vec<f64>,
    agrees: Vec<bool>,
    reuse: Reuse,
}

impl<'a, E: Executor> Evaluator<'a, E> {
    /// Builds an engine over `executor`. `decode` converts an answer to text.
    ///
    /// Switches off what would keep a policy from deciding: verification, which may switch off classes of spans, and the gate, because reuse
    /// that does not pay is a result.
    ///
    /// # Errors
    /// If the engine refuses its configuration.
    pub fn new(
        config: SchedulerConfig,
        executor: E,
        settings: Settings,
        decode: &'a dyn Fn(&[TokenId]) -> String,
    ) -> anyhow::Result<Self> {
        let config = SchedulerConfig { verification: VerificationConfig::default(), gate: Gate::open(), ..config };
        let engine = EngineCore::new(config, Forced::new(executor)).context("starting the engine")?;
        Ok(Self { engine: SingleRequestEngine::new(engine), settings, decode })
    }

    /// Measures each recipient of `group` under each policy. Calls `progress` after each recipient.
    ///
    /// # Errors
    /// If a request does not fit, or the model fails.
    pub fn measure(&mut self, group: &Group, progress: &mut dyn FnMut()) -> anyhow::Result<Vec<Measured>> {
        self.engine.forget();
        let scope = self.engine.new_scope();
        let store = Reuse { scope, sharing: SharingMode::Prefix, repair: Repair::structural(), store: true };
        let donor = self.engine.generate(&group.donor.prompt, SamplingParams::greedy(1), store)?;
        let mut all = Vec::new();
        for recipient in &group.recipients {
            let is_apart = recipient.request.record.tenant != group.donor.record.tenant && !self.settings.ignores_tenants;
            let scope = if is_apart { self.engine.new_scope() } else { scope };
            let donor_ttft = donor.ttft / u32::try_from(group.num_recipients).unwrap_or(u32::MAX);
            let case = self.compute_in_full(recipient, scope, &group.donor, donor_ttft)?;
            all.extend(self.under_all_policies(&case)?);
            progress();
        }
        Ok(all)
    }

    fn compute_in_full<'c>(
        &mut self,
        recipient: &'c Recipient,
        scope: CaseScope,
        donor: &Prompted,
        donor_ttft: Duration,
    ) -> anyhow::Result<Case<'c>> {
        let prompt = &recipient.request.prompt;
        let off = Reuse { scope, sharing: SharingMode::Off, repair: Repair::structural(), store: false };
        let sampling = SamplingParams { logprobs: Some(COMPARED_TOP), ..self.answering(&recipient.request.record) };
        let full = self.engine.generate(prompt, sampling, off)?;
        let prefix = self.lead(recipient, &full, Reuse { sharing: SharingMode::Prefix, ..off })?;
        let cover = covered_share(&prompt.token_ids, &donor.prompt.token_ids);
        Ok(Case { recipient, full, scope, donor_ttft, cover, prefix })
    }

    fn answering(&self, record: &Record) -> SamplingParams {
        let max_tokens = self.settings.max_answer_tokens.min(record.max_tokens).max(1);
        SamplingParams { stop_token_ids: self.settings.eos.clone(), ..SamplingParams::greedy(max_tokens) }
    }

    fn under_all_policies(&mut self, case: &Case<'_>) -> anyhow::Result<Vec<Measured>> {
        let repeated = match self.settings.policies.contains(&Policy::Off) {
            true => Some(self.repeat(case)?),
            false => None,
        };
        let floor = repeated.as_ref().unwrap_or(&case.prefix);
        let mut all = Vec::new();
        for policy in self.settings.policies.clone() {
            let spans;
            let run = match policy {
                Policy::Off => repeated.as_ref().expect("it was repeated because this policy is there"),
                Policy::Prefix => &case.prefix,
                Policy::Span(repair) => {
                    let reuse = Reuse { scope: case.scope, sharing: SharingMode::Span, repair, store: false };
                    spans = self.lead(case.recipient, &case.full, reuse)?;
                    &spans
                }
            };
            let answer = match self.settings.generates {
                true => Some(self.answer(case, run)?),
                false => None,
            };
            all.push(self.measured(case, policy, run, floor, answer));
        }
        Ok(all)
    }

    /// Repeats full computation, with the prompt in two parts.
    fn repeat(&mut self, case: &Case<'_>) -> anyhow::Result<Run> {
        let prompt = &case.recipient.request.prompt;
        let scope = self.engine.new_scope();
        let reuse = Reuse { scope, sharing: SharingMode::Prefix, repair: Repair::structural(), store: false };
        let block_size = self.engine.block_size();
        let cut = prompt.token_ids.len() / CUT / block_size * block_size;
        if cut > 0 {
            let part = Prompt::plain(prompt.token_ids[..cut].to_vec());
            self.engine.generate(&part, SamplingParams::greedy(1), Reuse { store: true, ..reuse })?;
        }
        self.lead(case.recipient, &case.full, reuse)
    }

    /// Forces the recipient along the first tokens of full computation's answer.
    fn lead(&mut self, recipient: &Recipient, full: &RequestOutput, reuse: Reuse) -> anyhow::Result<Run> {
        let num_led = full.tokens.len().min(self.settings.max_tokens as usize);
        let (output, choices) = self.engine.follow(&recipient.request.prompt, &full.tokens[..num_led], COMPARED_TOP, reuse)?;
        let agrees = full.tokens.iter().zip(&choices).map(|(token, choice)| choice.token == *token).collect();
        let kl = full.top.iter().zip(&choices).map(|(top, choice)| {
            let top = &top[..top.len().min(FULL_TOP)];
            kl_divergence(top, &choice.top)
        });
        Ok(Run { kl: kl.collect(), agrees, output, reuse })
    }

    /// Generates the recipient's free-running answer.
    fn answer(&mut self, case: &Case<'_>, run: &Run) -> anyhow::Result<AnswerScores> {
        let is_known = run.agrees.len() == case.full.tokens.len() && run.agrees.iter().all(|agrees| *agrees);
        let Prompted { record, prompt } = &case.recipient.request;
        let tokens = match is_known {
            true => case.full.tokens.clone(),
            false => self.engine.generate(prompt, self.answering(record), run.reuse)?.tokens,
        };
        let length_ratio = tokens.len() as f64 / case.full.tokens.len().max(1) as f64;
        Ok(AnswerScores { length_ratio, ..score(record, (self.decode)(&tokens), (self.decode)(&case.full.tokens)) })
    }

    fn measured(&self, case: &Case<'_>, policy: Policy, run: &Run, floor: &Run, answer: Option<AnswerScores>) -> Measured {
        // The repetition reuses its own prefix, which is no hit: the first run gives the cost of full computation.
        let output = if policy == Policy::Off { &case.full } else { &run.output };
        let repair = match policy {
            Policy::Span(repair) => Some(repair),
            Policy::Off | Policy::Prefix => None,
        };
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        Measured {
            index: case.recipient.index,
            id: case.recipient.request.record.id.clone(),
            file: case.recipient.file.clone(),
            workload: case.recipient.workload.clone(),
            policy: policy.name(),
            r: policy.ratio(),
            is_hit: is_hit(policy, output),
            bailed_out: bailed_out(policy, output),
            prompt_tokens: num_prompt_tokens(&output.usage),
            prefix_tokens: output.usage.prefix_tokens,
            class: output.announced.class.map(|class| class_name(class).to_owned()),
            matched_tokens: output.announced.span_tokens,
            span_tokens: output.usage.span_tokens,
            recomputed_tokens: output.usage.recomputed_tokens,
            donors: output.usage.donors,
            cover: case.cover,
            work: computed_share(&output.announced, &output.usage, repair, self.settings.layers),
            deviation: output.usage.deviation.map(f64::from),
            deep_deviation: output.usage.deep_deviation,
            kl: run.kl.clone(),
            agrees: run.agrees.clone(),
            floor_kl: mean(&floor.kl),
            floor_top1: share(&floor.agrees),
            ttft_ms: milliseconds(output.ttft),
            full_ttft_ms: milliseconds(case.full.ttft),
            prefix_ttft_ms: milliseconds(case.prefix.output.ttft),
            donor_ttft_ms: if policy == Policy::Off { 0.0 } else { milliseconds(case.donor_ttft) },
            answer,
        }
    }
}

fn is_hit(policy: Policy, output: &RequestOutput) -> bool {
    match policy {
        Policy::Off => true,
        Policy::Prefix => output.announced.prefix_tokens > 0,
        Policy::Span(_) => output.announced.span_tokens > 0,
    }
}

/// True if spans were announced and none was used, although the policy does not recompute everything.
fn bailed_out(policy: Policy, output: &RequestOutput) -> bool {
    match policy {
        Policy::Off | Policy::Prefix => false,
        Policy::Span(Repair { policy: RepairPolicy::Full, .. }) => false,
        Policy::Span(_) => output.announced.span_tokens > 0 && output.usage.span_tokens == 0,
    }
}

/// Returns the name of a class in reports.
const fn class_name(class: MatchClass) -> &'static str {
    match class {
        MatchClass::SamePast => "same_past",
        MatchClass::SameLeftContext => "same_left_context",
        MatchClass::Composition => "composition",
        MatchClass::DownstreamOfEdit => "downstream_of_edit",
    }
}

/// Scores an answer against that of full computation, and both against the right answers.
fn score(record: &Record, text: String, full_text: String) -> AnswerScores {
    let metric = Metric::by_name(&record.metric);
    let score_of = |text: &str| metric.and_then(|metric| metric.score(text, &record.reference));
    let is_stale = |text: &str| {
        let any = record.stale_reference.iter().any(|stale| contains(text, stale));
        (!record.stale_reference.is_empty()).then_some(any)
    };
    let (own, full) = (score_of(&text), score_of(&full_text));
    AnswerScores {
        rouge_l: rouge_l(&text, &full_text),
        bleu: bleu(&text, &full_text),
        length_ratio: 1.0,
        task: own.map(|score| score.value),
        task_full: full.map(|score| score.value),
        is_right: own.and_then(|score| score.is_right),
        full_is_right: full.and_then(|score| score.is_right),
        is_stale: is_stale(&text),
        full_is_stale: is_stale(&full_text),
        text,
        full_text,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use runner::testing::{tiny_config, tiny_runner};
    use runner::{Architecture, KvDtype, ModelRunner, RopeLayout};

    use super::*;

    const NUM_BLOCKS: usize = 64;

    fn evaluator(policies: &[&str]) -> Evaluator<'static, ModelRunner> {
        let model = tiny_config(Architecture::Qwen2, RopeLayout::Half);
        let config = SchedulerConfig { max_num_batched_tokens: 96, ..SchedulerConfig::new(NUM_BLOCKS, 1024) };
        let settings = Settings {
            policies: policies.iter().map(|policy| policy.parse().unwrap()).collect(),
            max_tokens: 8,
            max_answer_tokens: 12,
            generates: true,
            ignores_tenants: false,
            layers: Layers { total: 3, local: 0 },
            eos: Vec::new(),
        };
        let decode = &|tokens: &[TokenId]| tokens.iter().map(|token| format!("{} ", token.0)).collect::<String>();
        Evaluator::new(config, tiny_runner(&model, 42, KvDtype::F32, NUM_BLOCKS), settings, decode).unwrap()
    }

    fn text(len: usize, seed: u32) -> Vec<TokenId> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            TokenId((state >> 16) % 97)
        };
        (0..len).map(|_| next()).collect()
    }

    fn prompted(record: Record, token_ids: Vec<TokenId>) -> Prompted {
        Prompted { record: Arc::new(record), prompt: Arc::new(Prompt::plain(token_ids)) }
    }

    /// Makes a document after one question, and the same document after another.
    fn group(tenant: Option<&str>) -> Group {
        let record = |id: &str, tenant: Option<&str>| Record {
            id: id.to_owned(),
            max_tokens: 12,
            tenant: tenant.map(str::to_owned),
            ..Record::default()
        };
        let document = text(160, 1);
        let donor = prompted(record("d", None), [text(40, 2), document.clone(), text(20, 3)].concat());
        let request = prompted(record("r", tenant), [text(57, 4), document, text(30, 5)].concat());
        let recipient = Recipient { index: 0, file: "f".to_owned(), workload: "w".to_owned(), request };
        Group { donor, recipients: vec![recipient], num_recipients: 2 }
    }

    fn measure(policies: &[&str], tenant: Option<&str>) -> Vec<Measured> {
        evaluator(policies).measure(&group(tenant), &mut || {}).unwrap()
    }

    #[test]
    fn exact_runs_agree_and_reuse_without_repair_does_not() {
        let all = measure(&["off", "prefix", "none", "impact@0.2", "full"], None);
        let kl: Vec<_> = all.iter().map(Measured::mean_kl).collect();
        assert!([kl[0], kl[1], kl[4]].iter().all(|kl| kl.abs() < 1e-6), "{kl:?}");
        assert!(kl[2] > 1e-3 && kl[3] > 1e-6, "{kl:?}");
        let hits: Vec<_> = all.iter().map(|measured| measured.is_hit).collect();
        assert_eq!(hits, [true, false, true, true, true]);
        assert_eq!(all[4].span_tokens, 0, "full recomputes what it found, which is no bail-out");
        assert!(all.iter().all(|measured| !measured.bailed_out));
        assert!(all[3].deviation > Some(0.0) && all[2].deviation.is_none() && all[3].work > all[2].work && all[4].work > 1.0);
        assert_eq!((all[2].class.as_deref(), all[0].class.as_deref()), (Some("composition"), None));
        for measured in &all {
            assert_eq!((measured.kl.len(), measured.agrees.len(), measured.prompt_tokens), (8, 8, 247));
            assert!(measured.floor_kl.abs() < 1e-6 && measured.floor_top1 == 1.0);
            assert!(measured.ttft_ms > 0.0 && measured.full_ttft_ms > 0.0 && measured.prefix_ttft_ms > 0.0);
        }
        assert!((all[2].work - f64::from(247 - all[2].span_tokens) / 247.0).abs() < 1e-9);
        // A donor gives whole blocks: 192 of its 220 tokens, the document from the 40th on.
        assert_eq!((all[2].matched_tokens, (all[2].cover * 247.0).round()), (152, 160.0));
    }

    #[test]
    fn a_first_token_that_is_taken_back_counts_once() {
        // Every margin is close, and twice the share is everything: the second first token is exact, and so are all that follow.
        let all = measure(&["impact@0.5", "impact@0.5+margin=1000"], None);
        assert!(all[0].mean_kl() > 1e-6, "{:?}", all[0].kl);
        assert!(all[1].kl.len() == 8 && all[1].kl.iter().all(|kl| kl.abs() < 1e-6), "{:?}", all[1].kl);
        assert_eq!((all[0].bailed_out, all[1].bailed_out, all[1].span_tokens), (false, true, 0));
    }

    #[test]
    fn answers_are_those_of_a_run_by_itself() {
        let all = measure(&["off", "none"], None);
        let answer = |i: usize| all[i].answer.clone().unwrap();
        assert_eq!((answer(0).text, answer(0).rouge_l, answer(0).bleu), (answer(0).full_text, 1.0, 1.0));
        assert_eq!(answer(1).full_text.split(' ').filter(|token| !token.is_empty()).count(), 12, "longer than what is compared");
        assert_eq!(answer(1).length_ratio, 1.0);
        let num_agreed = all[1].num_agreed();
        let agreed = |text: &str| text.split(' ').take(num_agreed).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(agreed(&answer(1).text), agreed(&answer(1).full_text));
    }

    #[test]
    fn a_measurement_leaves_nothing_behind() {
        let mut evaluator = evaluator(&["none", "epic", "none"]);
        let all = evaluator.measure(&group(None), &mut || {}).unwrap();
        let again = evaluator.measure(&group(None), &mut || {}).unwrap();
        assert_eq!((&all[0].kl, &all[0].answer), (&all[2].kl, &all[2].answer));
        assert_eq!((&all[1].kl, &all[1].answer), (&again[1].kl, &again[1].answer));
    }

    #[test]
    fn another_tenant_gets_nothing_unless_tenants_are_ignored() {
        let apart = measure(&["none"], Some("other"));
        assert_eq!((apart[0].is_hit, apart[0].matched_tokens, apart[0].mean_kl().abs() < 1e-6), (false, 0, true));
        let mut evaluator = evaluator(&["none"]);
        evaluator.settings.ignores_tenants = true;
        assert!(evaluator.measure(&group(Some("other")), &mut || {}).unwrap()[0].is_hit);
    }

    #[test]
    fn answers_are_scored_beside_right_and_stale_ones() {
        let record = Record {
            metric: "contains".to_owned(),
            reference: vec!["new".into()],
            stale_reference: vec!["old".to_owned()],
            ..Record::default()
        };
        let found = score(&record, "the old one".to_owned(), "the new one".to_owned());
        assert_eq!((found.task, found.task_full), (Some(0.0), Some(1.0)));
        assert_eq!((found.is_right, found.full_is_right), (Some(false), Some(true)));
        assert_eq!((found.is_stale, found.full_is_stale), (Some(true), Some(false)));
        let unmarked = score(&Record::default(), String::new(), String::new());
        assert_eq!((unmarked.task, unmarked.is_right, unmarked.is_stale), (None, None, None));
    }
}
