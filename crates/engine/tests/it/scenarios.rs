//! Small situations, written down step by step. A star marks a sequence that samples.

use engine::{SchedulePolicy, SchedulerConfig};
use expect_test::{Expect, expect};
use testkit::{RequestBuilder, passage};
use tokens::SharingMode;

use crate::world::{World, config};

/// Runs the requests that `prepare` adds to the end and compares the protocol.
#[track_caller]
fn check(config: SchedulerConfig, prepare: impl FnOnce(&mut World), expected: &Expect) {
    let mut world = World::new(config);
    prepare(&mut world);
    world.run();
    expected.assert_eq(&world.log);
}

fn request(id: u64, text: &str, num_tokens: usize) -> RequestBuilder {
    RequestBuilder::new(id, &passage(text, num_tokens))
}

#[test]
fn a_long_prompt_is_computed_in_chunks_beside_decode() {
    check(
        config(20),
        |world| {
            world.add(request(1, "a", 5).build());
            world.step();
            world.add(request(2, "b", 40).max_tokens(2).build());
        },
        &expect![[r#"
            admit r1 prefix=0; run r1 0..5* | rows 5 free 18+0
            admit r2 prefix=0; run r1 5..6* r2 0..15 | rows 16 free 8+0
            run r1 6..7* r2 15..30 | rows 16 free 8+0
            run r1 7..8* r2 30..40*; r1 Length | rows 11 free 8+2
            run r2 40..41*; r2 Length | rows 1 free 8+12
            run | rows 0 free 8+12
        "#]],
    );
}

#[test]
fn a_repeated_prompt_computes_only_its_last_token() {
    check(
        config(20),
        |world| {
            world.add(request(1, "a", 12).max_tokens(1).build());
            world.run();
            world.add(request(2, "a", 12).max_tokens(1).build());
        },
        &expect![[r#"
            admit r1 prefix=0; run r1 0..12*; r1 Length | rows 12 free 17+3
            run | rows 0 free 17+3
            admit r2 prefix=11; copy 3 of b2 to b3; run r2 11..12*; r2 Length | rows 1 free 17+3
            run | rows 0 free 17+3
        "#]],
    );
}

#[test]
fn equal_prompts_that_arrive_together_are_computed_once() {
    check(
        config(40),
        |world| (1..4).for_each(|id| world.add(request(id, "a", 27).max_tokens(2).build())),
        &expect![[r#"
            admit r1 prefix=0; run r1 0..16 | rows 16 free 33+0 wait 2
            run r1 16..27* | rows 11 free 33+0 wait 2
            admit r2 prefix=24; admit r3 prefix=24; run r1 27..28* r2 24..27* r3 24..27*; r1 Length | rows 7 free 31+1
            run r2 27..28* r3 27..28*; r2 Length; r3 Length | rows 2 free 33+7
            run | rows 0 free 33+7
        "#]],
    );
}

#[test]
fn a_full_pool_preempts_whoever_was_admitted_last() {
    check(
        config(7),
        |world| (1..3).for_each(|id| world.add(request(id, &format!("p{id}"), 10).max_tokens(8).build())),
        &expect![[r#"
            admit r1 prefix=0; admit r2 prefix=0; run r1 0..10* r2 0..6 | rows 16 free 1+0
            run r1 10..11* r2 6..10* | rows 5 free 1+0
            run r1 11..12* r2 10..11* | rows 2 free 1+0
            run r1 12..13* r2 11..12* | rows 2 free 0+0
            run r1 13..14* | rows 1 free 0+3 wait 1
            run r1 14..15* | rows 1 free 0+3 wait 1
            run r1 15..16* | rows 1 free 0+3 wait 1
            run r1 16..17*; r1 Length | rows 1 free 1+6 wait 1
            run r2 8..13* | rows 5 free 0+3
            run r2 13..14* | rows 1 free 0+3
            run r2 14..15* | rows 1 free 0+3
            run r2 15..16* | rows 1 free 0+3
            run r2 16..17*; r2 Length | rows 1 free 1+6
            run | rows 0 free 1+6
        "#]],
    );
}

#[test]
fn nobody_slips_past_a_request_that_waits_for_room() {
    check(
        config(8),
        |world| {
            world.add(request(1, "a", 16).max_tokens(3).build());
            world.step();
            world.add(request(2, "b", 20).max_tokens(1).build());
            world.add(request(3, "c", 21).max_tokens(1).build());
        },
        &expect![[r#"
            admit r1 prefix=0; run r1 0..16* | rows 16 free 4+0
            run r1 16..17* | rows 1 free 3+0 wait 2
            run r1 17..18*; r1 Length | rows 1 free 4+4 wait 2
            admit r2 prefix=0; run r2 0..16 | rows 16 free 0+3 wait 1
            run r2 16..20*; r2 Length | rows 4 free 0+8 wait 1
            admit r3 prefix=0; run r3 0..16 | rows 16 free 0+2
            run r3 16..21*; r3 Length | rows 5 free 1+7
            run | rows 0 free 1+7
        "#]],
    );
}

#[test]
fn a_moved_passage_is_copied_and_the_rest_computed() {
    check(
        config(40),
        |world| {
            world.add(request(1, "doc", 24).max_tokens(1).build());
            world.run();
            let prompt = [passage("question", 6), passage("doc", 24), passage("end", 5)].concat();
            world.add(RequestBuilder::new(2, &prompt).sharing(SharingMode::Span).max_tokens(2).build());
        },
        &expect![[r#"
            admit r1 prefix=0; run r1 0..16 | rows 16 free 34+0
            run r1 16..24*; r1 Length | rows 8 free 34+6
            run | rows 0 free 34+6
            admit r2 prefix=0 spans=22 recompute=2; run r2 0..8,30..35* | rows 13 free 25+6
            run r2 35..36*; r2 Length | rows 1 free 25+15
            run | rows 0 free 25+15
        "#]],
    );
}

#[test]
fn a_rejected_donor_costs_a_step_and_is_forgotten() {
    check(
        config(40),
        |world| {
            world.add(request(1, "doc", 24).max_tokens(1).build());
            world.run();
            world.memory.reject_one_in = Some(1);
            for (id, question) in [(2, "question"), (3, "other")] {
                let prompt = [passage(question, 6), passage("doc", 24), passage("end", 5)].concat();
                world.add(RequestBuilder::new(id, &prompt).sharing(SharingMode::Span).store(false).max_tokens(2).build());
                world.run();
            }
        },
        &expect![[r#"
            admit r1 prefix=0; run r1 0..16 | rows 16 free 34+0
            run r1 16..24*; r1 Length | rows 8 free 34+6
            run | rows 0 free 34+6
            admit r2 prefix=0 spans=22 recompute=2; run r2 0..8,30..35*; d0 rejected for r2 | rows 13 free 25+6
            run r2 0..16 | rows 16 free 25+6
            run r2 16..32 | rows 16 free 25+6
            run r2 32..35* | rows 3 free 25+6
            run r2 35..36*; r2 Length | rows 1 free 34+6
            run | rows 0 free 34+6
            admit r3 prefix=0; run r3 0..16 | rows 16 free 25+6
            run r3 16..32 | rows 16 free 25+6
            run r3 32..35* | rows 3 free 25+6
            run r3 35..36*; r3 Length | rows 1 free 34+6
            run | rows 0 free 34+6
        "#]],
    );
}

#[test]
fn an_aborted_request_gives_its_blocks_back_at_once() {
    check(
        config(20),
        |world| {
            world.add(request(1, "a", 30).build());
            world.add(request(2, "b", 5).build());
            world.step();
            world.abort(1);
            world.abort(2);
            world.abort(7);
        },
        &expect![[r#"
            admit r2 prefix=0; admit r1 prefix=0; run r2 0..5* r1 0..11 | rows 16 free 10+0
            abort r1 
            abort r2 
            abort r7 (unknown)
            run; r1 Aborted; r2 Aborted | rows 0 free 17+3
        "#]],
    );
}

#[test]
fn a_prompt_can_be_scored_without_an_answer() {
    check(
        config(20),
        |world| {
            world.add(request(1, "a", 20).max_tokens(1).build());
            world.run();
            let score = |sampling: &mut engine::SamplingParams| sampling.prompt_logprobs = Some(0);
            world.add(request(2, "a", 20).max_tokens(0).sampling(score).build());
        },
        &expect![[r#"
            admit r1 prefix=0; run r1 0..16 | rows 16 free 15+0
            run r1 16..20*; r1 Length | rows 4 free 15+5
            run | rows 0 free 15+5
            admit r2 prefix=0; run r2 0..16 | rows 16 free 10+5
            score r2 19; run r2 16..20; r2 Length | rows 4 free 15+5
            run | rows 0 free 15+5
        "#]],
    );
}

#[test]
fn the_least_work_is_admitted_first() {
    check(
        SchedulerConfig { max_num_seqs: 1, ..config(40) },
        |world| {
            world.add(request(1, "a", 40).max_tokens(1).build());
            world.run();
            world.add(request(2, "b", 20).max_tokens(1).build());
            world.add(request(3, "a", 44).max_tokens(1).build());
        },
        &expect![[r#"
            admit r1 prefix=0; run r1 0..16 | rows 16 free 30+0
            run r1 16..32 | rows 16 free 30+0
            run r1 32..40*; r1 Length | rows 8 free 30+10
            run | rows 0 free 30+10
            admit r3 prefix=40; run r3 40..44*; r3 Length | rows 4 free 29+11 wait 1
            admit r2 prefix=0; run r2 0..16 | rows 16 free 24+11
            run r2 16..20*; r2 Length | rows 4 free 24+16
            run | rows 0 free 24+16
        "#]],
    );
}

#[test]
fn a_prediction_is_renewed_when_others_leave_a_hit() {
    check(
        SchedulerConfig { max_num_seqs: 1, ..config(40) },
        |world| {
            world.add(request(1, "a", 40).max_tokens(1).build());
            world.step();
            world.add(request(2, "b", 20).max_tokens(1).build());
            world.add(request(3, "a", 44).max_tokens(1).build());
        },
        &expect![[r#"
            admit r1 prefix=0; run r1 0..16 | rows 16 free 30+0
            run r1 16..32 | rows 16 free 30+0 wait 2
            run r1 32..40*; r1 Length | rows 8 free 30+10 wait 2
            admit r3 prefix=40; run r3 40..44*; r3 Length | rows 4 free 29+11 wait 1
            admit r2 prefix=0; run r2 0..16 | rows 16 free 24+11
            run r2 16..20*; r2 Length | rows 4 free 24+16
            run | rows 0 free 24+16
        "#]],
    );
}

#[test]
fn a_prediction_that_was_evicted_does_not_count() {
    check(
        SchedulerConfig { max_num_seqs: 1, max_estimates_per_step: 0, ..config(14) },
        |world| {
            world.add(request(1, "a", 40).max_tokens(1).build());
            world.run();
            world.add(request(2, "b", 8).max_tokens(40).build());
            world.step();
            world.add(request(3, "c", 20).max_tokens(1).build());
            world.add(request(4, "a", 44).max_tokens(1).build());
            (0..39).for_each(|_| drop(world.step()));
            world.log.clear();
        },
        &expect![[r#"
            admit r3 prefix=0; run r3 0..16 | rows 16 free 0+9 wait 1
            run r3 16..20*; r3 Length | rows 4 free 0+14 wait 1
            admit r4 prefix=0; run r4 0..16 | rows 16 free 0+3
            run r4 16..32 | rows 16 free 0+3
            run r4 32..44*; r4 Length | rows 12 free 0+14
            run | rows 0 free 0+14
        "#]],
    );
}

#[test]
fn spans_count_as_hits_when_ranking() {
    check(
        SchedulerConfig { max_num_seqs: 1, ..config(60) },
        |world| {
            world.add(request(1, "doc", 40).max_tokens(1).build());
            world.run();
            world.add(request(2, "b", 20).max_tokens(1).build());
            let prompt = [passage("q", 3), passage("doc", 40), passage("end", 2)].concat();
            world.add(RequestBuilder::new(3, &prompt).sharing(SharingMode::Span).max_tokens(1).build());
        },
        &expect![[r#"
            admit r1 prefix=0; run r1 0..16 | rows 16 free 50+0
            run r1 16..32 | rows 16 free 50+0
            run r1 32..40*; r1 Length | rows 8 free 50+10
            run | rows 0 free 50+10
            admit r3 prefix=0 spans=38 recompute=2; run r3 0..5,43..45*; r3 Length | rows 7 free 38+22 wait 1
            admit r2 prefix=0; run r2 0..16 | rows 16 free 33+22
            run r2 16..20*; r2 Length | rows 4 free 33+27
            run | rows 0 free 33+27
        "#]],
    );
}

#[test]
fn nobody_is_admitted_only_to_be_preempted() {
    check(
        config(9),
        |world| {
            world.add(request(1, "a", 16).max_tokens(6).build());
            world.step();
            world.add(request(2, "b", 16).max_tokens(1).build());
        },
        &expect![[r#"
            admit r1 prefix=0; run r1 0..16* | rows 16 free 5+0
            run r1 16..17* | rows 1 free 4+0 wait 1
            run r1 17..18* | rows 1 free 4+0 wait 1
            run r1 18..19* | rows 1 free 4+0 wait 1
            run r1 19..20* | rows 1 free 4+0 wait 1
            run r1 20..21*; r1 Length | rows 1 free 4+5 wait 1
            admit r2 prefix=0; run r2 0..16*; r2 Length | rows 16 free 0+9
            run | rows 0 free 0+9
        "#]],
    );
}

#[test]
fn a_long_prompt_leaves_rows_to_far_shorter_ones() {
    check(
        SchedulerConfig { long_prompt_share: 0.25, ..config(60) },
        |world| {
            world.add(request(1, "a", 60).max_tokens(1).build());
            world.step();
            world.add(request(2, "b", 9).max_tokens(1).build());
            world.add(request(3, "c", 40).max_tokens(1).build());
        },
        &expect![[r#"
            admit r1 prefix=0; run r1 0..16 | rows 16 free 45+0
            admit r2 prefix=0; run r1 16..20 r2 0..9*; r2 Length | rows 13 free 43+2 wait 1
            run r1 20..36 | rows 16 free 43+2 wait 1
            run r1 36..52 | rows 16 free 43+2 wait 1
            admit r3 prefix=0; run r1 52..60* r3 0..8; r1 Length | rows 16 free 33+17
            run r3 8..24 | rows 16 free 33+17
            run r3 24..40*; r3 Length | rows 16 free 33+27
            run | rows 0 free 33+27
        "#]],
    );
}

#[test]
fn by_arrival_a_long_prompt_takes_every_row() {
    check(
        SchedulerConfig { policy: SchedulePolicy::Fcfs, ..config(60) },
        |world| {
            world.add(request(1, "a", 60).max_tokens(1).build());
            world.step();
            world.add(request(2, "b", 9).max_tokens(1).build());
        },
        &expect![[r#"
            admit r1 prefix=0; run r1 0..16 | rows 16 free 45+0
            run r1 16..32 | rows 16 free 45+0 wait 1
            run r1 32..48 | rows 16 free 45+0 wait 1
            admit r2 prefix=0; run r1 48..60* r2 0..4; r1 Length | rows 16 free 42+15
            run r2 4..9*; r2 Length | rows 5 free 43+17
            run | rows 0 free 43+17
        "#]],
    );
}

#[test]
fn the_highest_hit_rate_is_admitted_first_by_that_policy() {
    check(
        SchedulerConfig { policy: SchedulePolicy::KvHitRate, max_num_seqs: 1, ..config(60) },
        |world| {
            world.add(request(1, "a", 40).max_tokens(1).build());
            world.run();
            world.log.clear();
            world.add(request(2, "b", 4).max_tokens(1).build());
            world.add(request(3, "a", 60).max_tokens(1).build());
        },
        &expect![[r#"
            admit r3 prefix=40; run r3 40..56 | rows 16 free 45+0 wait 1
            run r3 56..60*; r3 Length | rows 4 free 45+15 wait 1
            admit r2 prefix=0; run r2 0..4*; r2 Length | rows 4 free 44+16
            run | rows 0 free 44+16
        "#]],
    );
}
