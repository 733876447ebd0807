//! Donors found only by embedding.
//!
//! Ten donors have the same document, each after another beginning. The span index keeps the newest eight of them, and the
//! request repeats the beginning of the first, except for a token before the document: no shingle distinguishes them.

use std::time::Duration;

use engine::{Erase, FoundDonors, RequestError, SchedulerConfig};
use semantic::EmbeddingIndexConfig;
use testkit::{RequestBuilder, passage};
use tokens::{DonorId, RequestId, SessionId, SharingMode, TenantId};

use crate::sharing::last_usage;
use crate::world::{World, config};

const NUM_DONORS: u64 = 10;
const SESSION: SessionId = SessionId(7);
const NEAR_THE_FIRST: [f32; 2] = [0.9, 0.1];

fn with_embeddings() -> SchedulerConfig {
    SchedulerConfig { embeddings: Some(EmbeddingIndexConfig::new(2)), ..config(400) }
}

/// Returns donor `id`: its beginning, and the document.
fn donor(id: u64) -> RequestBuilder {
    let prompt = [passage(&format!("left {id}"), 12), passage(&format!("gap {id}"), 1), passage("doc", 35)].concat();
    let builder = RequestBuilder::new(id, &prompt).segments(vec![13]);
    if id == 0 { builder.session(SESSION.0) } else { builder }
}

/// Returns the embedding of the first donor, or of the others.
fn meaning(id: u64) -> [f32; 2] {
    if id == 0 { [1.0, 0.0] } else { [0.0, 1.0] }
}

/// Returns the beginning of the first donor after another text, and the document.
fn asking() -> RequestBuilder {
    let prompt = [passage("q", 8), passage("left 0", 12), passage("gap", 1), passage("doc", 35), passage("end", 6)].concat();
    RequestBuilder::new(100, &prompt).segments(vec![21]).sharing(SharingMode::Semantic).embedding(&NEAR_THE_FIRST)
}

/// Returns a world in which all donors have been computed.
fn world(config: SchedulerConfig) -> World {
    let mut world = World::new(config);
    for id in 0..NUM_DONORS {
        world.add(donor(id).embedding(&meaning(id)).build());
        world.run();
    }
    world
}

/// Runs `request` after the donors and `meanwhile`; returns the donors that gave it spans, by the index that found them.
#[track_caller]
fn check(config: SchedulerConfig, meanwhile: impl FnOnce(&mut World), request: RequestBuilder, by_span: u64, by_embedding: u64) {
    let mut world = world(config);
    meanwhile(&mut world);
    world.add(request.build());
    world.run();
    assert_eq!(world.scheduler.stats().found_donors, FoundDonors { by_span, by_embedding });
    let expected_tokens = if by_span + by_embedding > 0 { 33 } else { 0 };
    assert_eq!(last_usage(&world).span_tokens, expected_tokens);
}

fn nothing(_: &mut World) {}

#[test]
fn a_donor_whose_postings_are_gone_is_found_by_what_it_means() {
    check(with_embeddings(), nothing, asking(), 0, 1);
}

#[test]
fn without_an_index_a_mode_or_an_embedding_only_spans_find_donors() {
    check(config(400), nothing, asking(), 1, 0);
    check(with_embeddings(), nothing, asking().sharing(SharingMode::Span), 1, 0);
    check(with_embeddings(), nothing, asking().embedding(&[-1.0, 0.0]), 1, 0);
}

#[test]
fn a_similar_donor_without_equal_spans_gives_nothing() {
    let prompt = passage("something else", 60);
    check(
        with_embeddings(),
        nothing,
        RequestBuilder::new(100, &prompt).sharing(SharingMode::Semantic).embedding(&[1.0, 0.0]),
        0,
        0,
    );
}

#[test]
fn nothing_similar_is_found_in_another_scope() {
    check(with_embeddings(), nothing, asking().scope(1), 0, 0);
    check(with_embeddings(), nothing, asking().scope(1).readable(&[0]), 0, 1);
}

#[test]
fn what_is_erased_is_not_similar_any_more() {
    let first = DonorId(0);
    let erase = |what| move |world: &mut World| assert!(world.erase(what).donors > 0);
    check(with_embeddings(), erase(Erase::Donor(first)), asking(), 1, 0);
    check(with_embeddings(), erase(Erase::Session(TenantId::default(), SESSION)), asking(), 1, 0);
    check(with_embeddings(), erase(Erase::Tenant(TenantId::default())), asking(), 0, 0);
    check(with_embeddings(), |world| world.scheduler.reset_prefix_cache(), asking(), 0, 0);
}

#[test]
fn what_expires_is_not_similar_any_more() {
    let config = SchedulerConfig { donor_ttl: Some(Duration::from_secs(10)), ..with_embeddings() };
    let wait = |seconds: u64| move |world: &mut World| world.now.0 += Duration::from_secs(seconds);
    check(config.clone(), wait(9), asking(), 0, 1);
    check(config, wait(11), asking(), 0, 0);
}

#[test]
fn an_embedding_may_come_late() {
    let mut late = World::new(with_embeddings());
    for id in 0..NUM_DONORS {
        late.add(donor(id).build());
        late.run();
        late.scheduler.attach_embedding(RequestId(id), &meaning(id).as_slice().into());
    }
    let mut request = asking().build();
    request.embedding = None;
    late.add(request);
    late.scheduler.attach_embedding(RequestId(100), &NEAR_THE_FIRST.as_slice().into());
    late.run();
    assert_eq!(late.scheduler.stats().found_donors, FoundDonors { by_span: 0, by_embedding: 1 });
}

#[test]
fn an_explanation_says_who_was_found_by_what_it_means() {
    let world = world(with_embeddings());
    let found = world.scheduler.explain(&asking().build());
    assert_eq!(found.by_embedding, [DonorId(0)]);
    assert_eq!(found.plan.spans.iter().map(|span| span.donor).collect::<Vec<_>>(), [DonorId(0)]);
    assert_eq!(world.scheduler.explain(&asking().sharing(SharingMode::Span).build()).by_embedding, []);
}

#[test]
fn an_embedding_of_another_kind_does_not_fit() {
    let config = with_embeddings();
    let found = config.fits(&asking().embedding(&[1.0, 0.0, 0.0]).build());
    assert_eq!(found, Err(RequestError::EmbeddingDimensions { found: 3, expected: 2 }));
    assert_eq!(config.fits(&asking().build()), Ok(()));
}
