//! Any bytes become donors and a target; `semantic::invariants` says what must hold for the plan.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _num_spans = semantic::invariants::check_plan(bytes);
});
