//! Approximate KV serves the next turn of its conversation, and no other request.

use engine::{Erase, KvUsage};
use testkit::{RequestBuilder, passage};
use tokens::{DonorId, SessionId, SharingMode, TenantId, TokenId};

use crate::sharing::last_usage;
use crate::world::{World, config};

fn opening() -> Vec<TokenId> {
    [passage("question", 7), passage("doc", 32), passage("end", 6)].concat()
}

fn span(id: u64, prompt: &[TokenId]) -> RequestBuilder {
    RequestBuilder::new(id, prompt).tenant(1).scope(1).sharing(SharingMode::Span).max_tokens(9)
}

fn run(world: &mut World, request: RequestBuilder) -> KvUsage {
    world.add(request.build());
    world.run();
    last_usage(world)
}

/// Returns a world in which request 2 was answered over a span of request 1, with its prompt and its output.
fn answered(first: impl Fn(RequestBuilder) -> RequestBuilder) -> (World, Vec<TokenId>) {
    let mut world = World::new(config(200));
    run(&mut world, RequestBuilder::new(1, &passage("doc", 32)).tenant(1).scope(1));
    let usage = run(&mut world, first(span(2, &opening())));
    assert_eq!((usage.span_tokens, usage.continued_tokens), (30, 0));
    let answer = world.output(2).into_iter().map(TokenId);
    let said = opening().into_iter().chain(answer).collect();
    (world, said)
}

/// Returns the prefix and continued tokens that `next` finds after request 2.
#[track_caller]
fn check(next: impl Fn(&[TokenId]) -> RequestBuilder, expected: (u32, u32)) -> (World, Vec<TokenId>) {
    let (mut world, said) = answered(|request| request);
    let told = world.scheduler.explain(&next(&said).build()).usage;
    let usage = run(&mut world, next(&said));
    assert_eq!((usage.prefix_tokens, usage.continued_tokens), expected);
    assert_eq!((told.prefix_tokens, told.continued_tokens, told.span_tokens), (expected.0, expected.1, usage.span_tokens));
    let sum = usage.prefix_tokens + usage.continued_tokens + usage.span_tokens + usage.computed_tokens;
    assert_eq!(sum as usize, next(&said).build().prompt_token_ids.len());
    (world, said)
}

fn behind(said: &[TokenId], more: &str) -> Vec<TokenId> {
    [said, &passage(more, 8)].concat()
}

#[test]
fn the_next_turn_goes_on_behind_the_answer() {
    // 45 tokens of the prompt and 8 of the answer have KV, of which the first 8 are exact.
    check(|said| span(3, &behind(said, "next")), (8, 45));
}

#[test]
fn only_a_request_that_may_read_all_that_the_first_could_goes_on() {
    let goes_on = |readable: &[u64]| {
        let (mut world, said) = answered(|request| request.readable(&[7]));
        run(&mut world, span(3, &behind(&said, "next")).readable(readable)).continued_tokens
    };
    assert_eq!((goes_on(&[]), goes_on(&[8])), (0, 0), "some of it may come from scope 7");
    assert_eq!((goes_on(&[7]), goes_on(&[8, 7])), (45, 45));
}

#[test]
fn also_where_the_client_changed_the_answer() {
    check(|said| span(3, &behind(&said[..45], "changed")), (8, 37));
    check(|said| span(3, &behind(&said[..49], "changed")), (8, 41));
}

#[test]
fn a_prompt_that_does_not_go_on_computes() {
    check(|_| span(3, &opening()), (8, 0));
    check(|said| span(3, &behind(&said[..44], "other")), (8, 0));
}

#[test]
fn others_find_nothing() {
    let next = |said: &[TokenId]| span(3, &behind(said, "next"));
    check(|said| next(said).sharing(SharingMode::Prefix), (8, 0));
    check(|said| next(said).sharing(SharingMode::Shadow), (8, 0));
    check(|said| next(said).scope(2).tenant(2), (0, 0));
}

#[test]
fn a_request_that_is_not_stored_leaves_nothing_to_its_conversation() {
    let (mut world, said) = answered(|request| request.store(false));
    assert_eq!(run(&mut world, span(3, &behind(&said, "next"))).continued_tokens, 0);
}

#[test]
fn an_answer_that_was_cut_off_goes_on() {
    let mut world = World::new(config(200));
    run(&mut world, RequestBuilder::new(1, &passage("doc", 32)).tenant(1).scope(1));
    world.add(span(2, &opening()).max_tokens(50).build());
    while world.output(2).len() < 5 {
        world.step();
    }
    let said: Vec<_> = opening().into_iter().chain(world.output(2).into_iter().map(TokenId)).collect();
    world.abort(2);
    world.run();
    let usage = run(&mut world, span(3, &behind(&said, "next")));
    assert_eq!((usage.prefix_tokens, usage.continued_tokens), (8, 41));
}

#[test]
fn it_goes_on_over_many_turns_and_never_becomes_a_donor() {
    let (mut world, mut said) = answered(|request| request);
    for turn in 3..12 {
        let prompt = behind(&said, &format!("turn {turn}"));
        let usage = run(&mut world, span(turn, &prompt));
        assert_eq!(usage.computed_tokens, 9, "the last token of the answer and the new ones: {usage:?}");
        assert!(usage.class.is_some());
        said = [prompt, world.output(turn).into_iter().map(TokenId).collect()].concat();
    }
    assert_eq!(world.scheduler.stats().num_donors, 1);
    let usage = run(&mut world, span(20, &behind(&said, "exact")).sharing(SharingMode::Prefix));
    assert_eq!(usage.prefix_tokens, 8);
}

#[test]
fn an_earlier_turn_asked_again_finds_what_its_conversation_had() {
    let (mut world, said) = check(|said| span(3, &behind(said, "next")), (8, 45));
    let usage = run(&mut world, span(4, &behind(&said, "another")));
    assert_eq!(usage.continued_tokens, 46, "the last token of the answer was computed since");
    let usage = run(&mut world, span(5, &behind(&said, "another")));
    assert_eq!(usage.continued_tokens, 53, "all but the last token");
}

#[test]
fn what_is_kept_gives_way_to_those_who_need_room() {
    let mut world = World::new(config(56));
    run(&mut world, RequestBuilder::new(1, &passage("doc", 32)).tenant(1).scope(1));
    run(&mut world, span(2, &opening()));
    let kept = world.scheduler.stats().blocks;
    assert_eq!((kept.active, kept.cached), (0, 8 + 14));
    let large = RequestBuilder::new(3, &passage("large", 200)).tenant(1).scope(1);
    assert_eq!(run(&mut world, large).computed_tokens, 200);
    let stats = world.scheduler.stats();
    assert_eq!((stats.blocks.active, stats.preemptions), (0, 0));
    assert_eq!(stats.blocks.evictions, 5, "what is kept goes before what others find");
}

/// KV that was copied into a conversation is erased with the donor it came from, also while a turn runs over it.
#[test]
fn it_is_erased_with_its_donors() {
    let start = || {
        let mut world = World::new(config(200));
        run(&mut world, RequestBuilder::new(1, &passage("doc", 32)).tenant(1).scope(1).session(5));
        run(&mut world, span(2, &opening()).session(7));
        let said = opening().into_iter().chain(world.output(2).into_iter().map(TokenId)).collect::<Vec<_>>();
        (world, said)
    };
    for what in [Erase::Session(TenantId(1), SessionId(5)), Erase::Donor(DonorId(0))] {
        let (mut world, said) = start();
        world.scheduler.erase(what);
        assert_eq!(run(&mut world, span(3, &behind(&said, "next")).session(7)).continued_tokens, 0, "{what:?}");

        let (mut world, said) = with_running_turn(start());
        world.scheduler.erase(what);
        world.run();
        assert_eq!(run(&mut world, span(4, &said).session(7)).continued_tokens, 0, "{what:?} while a turn runs");
    }
    let (mut world, said) = with_running_turn(start());
    world.run();
    assert!(run(&mut world, span(4, &said).session(7)).continued_tokens > 50, "nothing was erased");
}

/// Returns request 3, which continues request 2 and runs, and a prompt that repeats all of it.
fn with_running_turn((mut world, said): (World, Vec<TokenId>)) -> (World, Vec<TokenId>) {
    let prompt = behind(&said, "next");
    world.add(span(3, &prompt).session(7).build());
    world.step();
    (world, behind(&prompt, "last"))
}

#[test]
fn it_is_erased_with_its_conversation() {
    for what in [Erase::All, Erase::Tenant(TenantId(1)), Erase::Session(TenantId(1), SessionId(7))] {
        let (mut world, said) = answered(|request| request.session(7));
        assert!(world.scheduler.erase(what).blocks >= 12, "{what:?}");
        assert_eq!(run(&mut world, span(3, &behind(&said, "next"))).continued_tokens, 0);
    }
    let (mut world, said) = answered(|request| request.session(7));
    world.scheduler.erase(Erase::Session(TenantId(1), SessionId(8)));
    world.scheduler.erase(Erase::Tenant(TenantId(2)));
    assert_eq!(run(&mut world, span(3, &behind(&said, "next"))).continued_tokens, 45);
    world.scheduler.reset_prefix_cache();
    assert_eq!(world.scheduler.stats().blocks.free, 200);
}
