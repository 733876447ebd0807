//! Thousands of steps with random requests, aborts and rejected donors in a pool that is far too small.

use std::collections::BTreeMap;

use engine::{
    DecodeRepair, EngineEvent, FinishReason, HostConfig, KvUsage, Repair, RepairPolicy, Request, SamplingParams, SchedulePolicy,
    SchedulerConfig, SpanOutcome,
};
use testkit::{RequestBuilder, passage};
use tokens::{Timestamp, TokenId};

use crate::memory::{VOCAB_SIZE, next_token};
use crate::random::Random;
use crate::world::{MODES, World, config};

const NUM_BLOCKS: usize = 56;
pub(crate) const MAX_MODEL_LEN: u32 = 150;

/// Expected result of a request.
pub(crate) struct Expected {
    tokens: Vec<TokenId>,
    reason: FinishReason,
    was_aborted: bool,
    seen: Vec<TokenId>,
    pub(crate) admitted: Option<KvUsage>,
    scored: bool,
    request: Request,
}

/// Returns passages of a few texts, so that prefixes and moved spans are common.
pub(crate) fn random_prompt(random: &mut Random) -> Vec<TokenId> {
    let mut prompt = Vec::new();
    for _ in 0..1 + random.below(4) {
        let text = random.below(5).to_string();
        prompt.extend(passage(&text, 1 + random.below(40) as usize));
    }
    prompt.truncate(MAX_MODEL_LEN as usize - 20);
    prompt
}

fn random_request(id: u64, random: &mut Random, now: Timestamp) -> Request {
    let prompt = random_prompt(random);
    let scores = random.one_in(15);
    let max_tokens = if scores && random.one_in(2) { 0 } else { 1 + random.below(24) as u32 };
    let stops = random.one_in(3);
    let min_tokens = random.below(4) as u32;
    let stop = TokenId(random.below(VOCAB_SIZE) as u32);
    let mode = MODES[[0, 1, 1, 2, 2, 2][random.below(6) as usize]];
    let sampling = |sampling: &mut SamplingParams| {
        sampling.prompt_logprobs = scores.then_some(1);
        sampling.stop_token_ids = if stops { vec![stop] } else { Vec::new() };
        sampling.min_tokens = min_tokens;
    };
    let request = RequestBuilder::new(id, &prompt)
        .max_tokens(max_tokens)
        .sharing(mode)
        .scope(random.below(2))
        .store(!random.one_in(4))
        .sampling(sampling);
    Request { arrival: now, repair: random_repair(random), ..request.build() }
}

pub(crate) fn random_repair(random: &mut Random) -> Repair {
    let policies = RepairPolicy::ALL;
    let decode = DecodeRepair {
        tokens: 1 + random.below(4) as u32,
        every: 1 + random.below(3) as u32,
        max_batch_rows: random.below(3) as u32 * 8,
    };
    Repair {
        policy: policies[random.below(policies.len() as u64) as usize],
        ratio: random.below(4) as f32 / 4.0,
        max_deviation: random.below(3) as f32 / 50.0,
        bail_out: random.below(3) as f32 / 5.0,
        deep_bail_out: random.below(3) as f32 / 50.0,
        min_margin: random.below(3) as f32,
        sample: 1 + random.below(20) as u32,
        drift: random.one_in(2),
        decode: random.one_in(2).then_some(decode),
    }
}

/// Returns the output of a model without any cache.
pub(crate) fn expect(request: Request) -> Expected {
    let mut tokens = request.prompt_token_ids.to_vec();
    let num_prompt_tokens = tokens.len();
    let sampling = &request.sampling;
    let mut reason = FinishReason::Length;
    while tokens.len() - num_prompt_tokens < sampling.max_tokens as usize && tokens.len() < MAX_MODEL_LEN as usize {
        let token = next_token(request.scope.0, &tokens);
        tokens.push(token);
        if tokens.len() - num_prompt_tokens > sampling.min_tokens as usize && sampling.stop_token_ids.contains(&token) {
            reason = FinishReason::Stop(token);
            break;
        }
    }
    let tokens = tokens.split_off(num_prompt_tokens);
    Expected { tokens, reason, was_aborted: false, seen: Vec::new(), admitted: None, scored: false, request }
}

/// Compares one event with the expected one; true if it was the last one.
pub(crate) fn check_event(expected: &mut Expected, event: &EngineEvent) -> bool {
    let num_prompt_tokens = expected.request.prompt_token_ids.len() as u32;
    let adds_up = |usage: &KvUsage| {
        usage.prefix_tokens + usage.continued_tokens + usage.span_tokens + usage.computed_tokens == num_prompt_tokens
    };
    match event {
        EngineEvent::Admitted { usage, .. } => {
            assert!(expected.admitted.replace(*usage).is_none(), "admitted twice");
            assert!(adds_up(usage) && usage.computed_tokens > 0, "{usage:?} of {num_prompt_tokens}");
            assert_eq!(usage.donors > 0, usage.span_tokens > 0);
            assert!(usage.recomputed_tokens <= usage.computed_tokens, "{usage:?}");
        }
        EngineEvent::PromptLogProbs { logprobs, .. } => {
            assert!(expected.seen.is_empty() && !std::mem::replace(&mut expected.scored, true), "prompt is scored first");
            let scored: Vec<_> = logprobs.iter().map(|logprobs| logprobs.chosen.token).collect();
            assert_eq!(scored, expected.request.prompt_token_ids[1..]);
        }
        EngineEvent::Token { token, .. } => expected.seen.push(*token),
        EngineEvent::Finished { reason, usage, .. } => {
            assert!(adds_up(usage), "{usage:?} of {num_prompt_tokens}");
            if *reason == FinishReason::Aborted {
                assert!(expected.was_aborted && expected.tokens.starts_with(&expected.seen));
                return true;
            }
            assert_eq!((&expected.seen, *reason), (&expected.tokens, expected.reason), "{:?}", expected.request);
            assert_eq!(expected.scored, expected.request.sampling.prompt_logprobs.is_some());
            return true;
        }
    }
    false
}

#[derive(Default)]
struct Tally {
    finished: u64,
    hits: u64,
    copies: u64,
    rejected: u64,
    reused: u64,
    preemptions: u64,
    evictions: u64,
    fetches: u64,
    ahead: u64,
}

/// A run of [`blast`].
#[derive(Clone, Copy, Default)]
struct Blast {
    seed: u64,
    policy: SchedulePolicy,
    host: HostConfig,
    overlaps: bool,
}

fn blast(run: Blast, num_steps: u64, tally: &mut Tally) {
    let Blast { seed, policy, host, overlaps } = run;
    let config = SchedulerConfig {
        policy,
        host,
        max_model_len: MAX_MODEL_LEN,
        max_num_batched_tokens: 24,
        max_num_seqs: 6,
        max_donors: 12,
        max_estimates_per_step: 3,
        max_overtake: std::time::Duration::from_micros(40),
        ..config(NUM_BLOCKS)
    };
    let mut world = World::new(config);
    world.memory.reject_one_in = Some(10);
    world.overlaps = overlaps;
    let mut random = Random(seed);
    let mut open: BTreeMap<u64, Expected> = BTreeMap::new();
    let mut next_id = 0;
    let mut steps = 0;
    while steps < num_steps || world.has_work() {
        if steps < num_steps && random.one_in(4) && open.len() < 30 {
            let request = random_request(next_id, &mut random, world.now);
            world.scheduler.fits(&request).unwrap();
            open.insert(next_id, expect(request.clone()));
            world.add(request);
            next_id += 1;
        }
        if random.one_in(60) && !open.is_empty() {
            let pick = random.below(open.len() as u64) as usize;
            let (&id, expected) = open.iter_mut().nth(pick).unwrap();
            expected.was_aborted = true;
            world.abort(id);
        }
        if random.one_in(2_000) {
            world.scheduler.reset_prefix_cache();
        }
        let step = world.step();
        assert!(step.num_scheduled_tokens() <= 24 && step.sequences.len() <= 6, "step {steps} is too large");
        tally.copies += step.block_copies.len() as u64;
        world.now.0 += std::time::Duration::from_micros(step.num_scheduled_tokens() as u64 / 8);
        for event in std::mem::take(&mut world.events) {
            let id = request_id_of(&event);
            let expected = open.get_mut(&id).expect("an event of a request that has ended");
            if check_event(expected, &event) {
                tally.finished += 1;
                tally.hits += u64::from(expected.admitted.is_some_and(|usage| usage.prefix_tokens > 0));
                open.remove(&id);
            }
        }
        world.log.clear();
        steps += 1;
        assert!(steps < num_steps + 5_000, "{} requests do not end", open.len());
    }
    assert!(open.is_empty(), "{} requests were forgotten", open.len());
    let stats = world.scheduler.stats();
    assert_eq!((stats.num_running, stats.num_waiting, stats.blocks.active), (0, 0, 0));
    tally.preemptions += stats.preemptions;
    tally.evictions += stats.blocks.evictions;
    tally.fetches += stats.host.fetches;
    tally.ahead += world.num_ahead;
    tally.reused += stats.span_lookups.get(SpanOutcome::Reused);
    tally.rejected += stats.span_lookups.get(SpanOutcome::FailedCheck);
}

pub(crate) fn request_id_of(event: &EngineEvent) -> u64 {
    match event {
        EngineEvent::Admitted { request_id, .. }
        | EngineEvent::PromptLogProbs { request_id, .. }
        | EngineEvent::Token { request_id, .. }
        | EngineEvent::Finished { request_id, .. } => request_id.0,
    }
}

#[test]
fn every_request_ends_with_the_tokens_of_a_model_without_cache() {
    let mut tally = Tally::default();
    for seed in 0..6 {
        let policies = [SchedulePolicy::KvHitRate, SchedulePolicy::Fcfs, SchedulePolicy::RemainingWork];
        let policy = policies[seed as usize % policies.len()];
        blast(Blast { seed: seed << 32, policy, ..Blast::default() }, 4_000, &mut tally);
    }
    let Tally { finished, hits, copies, rejected, reused, preemptions, evictions, fetches, ahead } = tally;
    assert_eq!((fetches, ahead), (0, 0), "there is no host tier, and nothing overlaps");
    println!(
        "{finished} finished, {hits} hits, {copies} copies, {reused} span reuses, {rejected} rejected, {preemptions} preemptions, {evictions} evictions"
    );
    assert!(finished > 1_000 && hits > 100 && copies > 50, "{finished} finished, {hits} hits, {copies} copies");
    assert!(reused > 50 && rejected > 10, "{reused} reused, {rejected} rejected");
    assert!(preemptions > 50 && evictions > 1_000, "{preemptions} preemptions, {evictions} evictions");
}

#[test]
fn so_it_does_with_blocks_that_come_and_go_between_device_and_host() {
    let mut tally = Tally::default();
    for seed in 10..14 {
        // A block takes half a microsecond to compute; one link is far faster, one about as fast.
        let bandwidth = if seed % 2 == 0 { 16.0 } else { 0.002 };
        let host = HostConfig { num_blocks: 30 * (1 + seed as u32 % 3), block_bytes: 1000, bandwidth };
        blast(Blast { seed: seed << 32, host, ..Blast::default() }, 4_000, &mut tally);
    }
    let Tally { finished, reused, rejected, preemptions, fetches, .. } = tally;
    println!("{finished} finished, {reused} span reuses, {rejected} rejected, {preemptions} preemptions, {fetches} fetches");
    assert!(
        finished > 1_000 && reused > 50 && preemptions > 50,
        "{finished} finished, {reused} reused, {preemptions} preemptions"
    );
    assert!(fetches > 1_000, "{fetches} fetches");
}

#[test]
fn so_it_does_if_steps_are_chosen_before_the_ones_before_them_have_ended() {
    let mut tally = Tally::default();
    for seed in 20..26 {
        let host = HostConfig { num_blocks: 30 * (seed as u32 % 2), block_bytes: 1000, bandwidth: 16.0 };
        blast(Blast { seed: seed << 32, host, overlaps: true, ..Blast::default() }, 4_000, &mut tally);
    }
    let Tally { finished, reused, preemptions, evictions, fetches, ahead, .. } = tally;
    println!(
        "{finished} finished, {reused} span reuses, {preemptions} preemptions, {evictions} evictions, {fetches} fetches, {ahead} ahead"
    );
    assert!(finished > 1_000 && reused > 50, "{finished} finished, {reused} reused");
    assert!(preemptions > 50 && evictions > 1_000 && fetches > 500, "{preemptions}, {evictions}, {fetches}");
    assert!(ahead > 500, "{ahead} steps were chosen ahead");
}
