//! Answers of each dialect, read whole and in pieces of every size.

use dialect::{Dialect, OutputEvent, OutputParser, ParserOptions, Thinking, ToolSpec};
use serde_json::{Value, json};

fn tools() -> Vec<ToolSpec> {
    let weather = json!({"type": "object", "properties": {
        "city": {"type": "string"}, "days": {"type": "integer"}, "zip": {"type": "string"}, "where": {"type": "object"},
    }});
    vec![
        ToolSpec { name: "get_weather".to_owned(), parameters: weather, is_strict: false },
        ToolSpec { name: "now".to_owned(), parameters: json!({"type": "object"}), is_strict: false },
    ]
}

/// Parsed answer: reasoning, text, and calls with their arguments.
#[derive(Debug, Default, PartialEq)]
struct Answer {
    reasoning: String,
    text: String,
    calls: Vec<(String, String)>,
}

fn parse(options: &ParserOptions, pieces: &[&str]) -> Answer {
    let mut parser = OutputParser::new(options);
    let mut events = Vec::new();
    for piece in pieces {
        events.extend(parser.push(piece));
    }
    events.extend(parser.finish());
    let (mut answer, mut is_open) = (Answer::default(), false);
    for event in events {
        match event {
            OutputEvent::Reasoning(text) => answer.reasoning.push_str(&text),
            OutputEvent::Text(text) => answer.text.push_str(&text),
            OutputEvent::CallBegins(name) => {
                assert!(!std::mem::replace(&mut is_open, true), "a call begins inside another");
                answer.calls.push((name, String::new()));
            }
            OutputEvent::Arguments(text) => {
                assert!(is_open);
                answer.calls.last_mut().unwrap().1.push_str(&text);
            }
            OutputEvent::CallEnds => assert!(std::mem::take(&mut is_open)),
        }
    }
    assert!(!is_open);
    answer
}

/// Parses `text` in pieces of every size; all of them give the same answer.
#[track_caller]
fn parse_all_ways(options: &ParserOptions, text: &str) -> Answer {
    let whole = parse(options, &[text]);
    let starts: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
    for size in [1, 2, 3, 5, 8, 13, 40] {
        let bounds: Vec<usize> = starts.iter().copied().step_by(size).chain([text.len()]).collect();
        let pieces: Vec<&str> = bounds.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
        assert_eq!(parse(options, &pieces), whole, "{text:?} in pieces of {size}");
    }
    whole
}

#[track_caller]
fn check(dialect: Dialect, text: &str, expected_text: &str, expected: &[(&str, Value)]) {
    let options = ParserOptions { calls: Some((dialect, tools())), ..ParserOptions::default() };
    let answer = parse_all_ways(&options, text);
    assert_eq!(answer.text, expected_text);
    let calls: Vec<(&str, Value)> =
        answer.calls.iter().map(|(name, text)| (name.as_str(), serde_json::from_str(text).expect(text))).collect();
    assert_eq!(calls, expected);
}

#[test]
fn hermes() {
    let weather = ("get_weather", json!({"city": "Oslo"}));
    let call = "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\"}}\n</tool_call>";
    check(Dialect::Hermes, call, "", std::slice::from_ref(&weather));
    check(Dialect::Hermes, &format!("{call}\n{call}"), "", &[weather.clone(), weather.clone()]);
    check(Dialect::Hermes, &format!("I look it up.\n\n{call}"), "I look it up.", std::slice::from_ref(&weather));
    check(Dialect::Hermes, "No <tool> here, 1 < 2.", "No <tool> here, 1 < 2.", &[]);
    check(Dialect::Hermes, "<tool_call>{\"name\": \"now\"}</tool_call> done", "done", &[("now", json!({}))]);
    // An end without a closing tag, and a tag that holds no call.
    check(Dialect::Hermes, "<tool_call>{\"name\": \"now\", \"arguments\": {}}", "", &[("now", json!({}))]);
    check(Dialect::Hermes, "<tool_call>what?</tool_call>", "<tool_call>what?</tool_call>", &[]);
    check(Dialect::Hermes, "<tool_call>\n{\"a\": 1}</tool_call>", "<tool_call>\n{\"a\": 1}</tool_call>", &[]);
}

#[test]
fn the_beginning_of_a_further_call_is_no_text() {
    let call = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
    let twice = format!("{call}\n{call}");
    for before in ["", "Wait. "] {
        for len in call.len() - 12..call.len() + 20 {
            let options = ParserOptions { calls: Some((Dialect::Hermes, tools())), ..ParserOptions::default() };
            let answer = parse_all_ways(&options, &format!("{before}{}", &twice[..len]));
            assert_eq!((answer.text.as_str(), answer.calls.len()), (before.trim_end(), 1), "{len}");
        }
    }
    check(Dialect::Hermes, &format!("{call} Done."), "Done.", &[("now", json!({}))]);
}

#[test]
fn an_answer_that_is_the_json_of_a_call_is_one() {
    let weather = [("get_weather", json!({"city": "Oslo"}))];
    let json = "{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\"}}";
    check(Dialect::Hermes, json, "", &weather);
    check(Dialect::Hermes, &format!("```json\n{json}\n```"), "", &weather);
    check(Dialect::Hermes, &format!("<tools>\n{json}\n</tools>"), "", &weather);
    check(Dialect::Hermes, &format!("[{json}, {json}]"), "", &[weather[0].clone(), weather[0].clone()]);
    for text in
        ["{\"name\": \"Ann\", \"arguments\": {}}", "```json\n{\"a\": 1}\n```", "[1, 2]", "{}", "```\ncode\n```", " 7", "["]
    {
        check(Dialect::Hermes, text, text, &[]);
    }
}

#[test]
fn a_strict_call_without_tags_is_one_only_if_it_matches() {
    let tools: Vec<_> = tools().into_iter().map(|tool| ToolSpec { is_strict: true, ..tool }).collect();
    let options = ParserOptions { calls: Some((Dialect::Hermes, tools)), ..ParserOptions::default() };
    let (good, bad) = ("{\"city\": \"Oslo\", \"days\": 3}", "{\"city\": 7}");
    let named = |arguments: &str| format!("{{\"name\": \"get_weather\", \"arguments\": {arguments}}}");
    assert_eq!(parse_all_ways(&options, &named(good)).calls, [("get_weather".to_owned(), good.to_owned())]);
    assert_eq!(parse_all_ways(&options, "get_weather(city='Oslo', days=3)").calls.len(), 1);
    for text in [named(bad), named(good)[..40].to_owned(), "get_weather(city=7)".to_owned()] {
        let answer = parse_all_ways(&options, &text);
        assert_eq!((answer.text, answer.calls), (text, vec![]));
    }
}

#[test]
fn qwen3_coder() {
    let call = "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n<parameter=days>\n3\n</parameter>\n\
                <parameter=zip>\n0150\n</parameter>\n</function>\n</tool_call>";
    check(Dialect::Qwen3Coder, call, "", &[("get_weather", json!({"city": "Oslo", "days": 3, "zip": "0150"}))]);
    check(Dialect::Qwen3Coder, "Hm.\n<function=now>\n</function>\n</tool_call>", "Hm.", &[("now", json!({}))]);
    let nested = "<tool_call><function=get_weather><parameter=where>{\"lat\": 1}</parameter></function></tool_call>";
    check(Dialect::Qwen3Coder, nested, "", &[("get_weather", json!({"where": {"lat": 1}}))]);
}

#[test]
fn glm() {
    let call = "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>";
    check(Dialect::Glm, call, "", &[("get_weather", json!({"city": "Oslo", "days": 3}))]);
}

#[test]
fn llama_3() {
    let weather = [("get_weather", json!({"city": "Oslo"}))];
    check(Dialect::Json, "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Oslo\"}}", "", &weather);
    check(Dialect::Json, "<|python_tag|>{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Oslo\"}}", "", &weather);
    let two = "{\"name\": \"now\", \"parameters\": {}}; {\"name\": \"get_weather\", \"parameters\": {\"city\": \"Oslo\"}}";
    check(Dialect::Json, two, "", &[("now", json!({})), weather[0].clone()]);
    check(Dialect::Hermes, "<function=get_weather>{\"city\": \"Oslo\"}</function>", "", &weather);
}

#[test]
fn pythonic() {
    check(
        Dialect::Pythonic,
        "[get_weather(city='Oslo', days=3), now()]",
        "",
        &[("get_weather", json!({"city": "Oslo", "days": 3})), ("now", json!({}))],
    );
    check(Dialect::Pythonic, "<|python_start|>now()<|python_end|>", "", &[("now", json!({}))]);
    check(Dialect::Pythonic, "now is the time", "now is the time", &[]);
    check(Dialect::Pythonic, "[get_weath", "[get_weath", &[]);
}

#[test]
fn mistral() {
    let weather = ("get_weather", json!({"city": "Oslo"}));
    let listed =
        "[TOOL_CALLS][{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\"}}, {\"name\": \"now\", \"arguments\": {}}]";
    check(Dialect::Mistral, listed, "", &[weather.clone(), ("now", json!({}))]);
    let named = "Yes.[TOOL_CALLS]get_weather[ARGS]{\"city\": \"Oslo\"}[TOOL_CALLS]now{}";
    check(Dialect::Mistral, named, "Yes.", &[weather, ("now", json!({}))]);
}

#[test]
fn deepseek() {
    let weather = [("get_weather", json!({"city": "Oslo"}))];
    let v3 = "Ok.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{\"city\": \"Oslo\"}\n```\
              <｜tool▁call▁end｜><｜tool▁calls▁end｜>";
    check(Dialect::DeepSeek, v3, "Ok.", &weather);
    let v31 = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{\"city\": \"Oslo\"}<｜tool▁call▁end｜>\
               <｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
    check(Dialect::DeepSeek, v31, "", &[weather[0].clone(), ("now", json!({}))]);
}

#[test]
fn harmony() {
    let options = ParserOptions { calls: Some((Dialect::Harmony, tools())), ..ParserOptions::default() };
    let text = "<|channel|>analysis<|message|>Need the time.<|end|><|start|>assistant<|channel|>commentary to=functions.now \
                <|constrain|>json<|message|>{\"a\": 1}<|call|>";
    let call =
        Answer { reasoning: "Need the time.".into(), text: String::new(), calls: vec![("now".into(), "{\"a\": 1}".into())] };
    assert_eq!(parse_all_ways(&options, text), call);
    let text = "<|channel|>analysis<|message|>Easy.<|end|><|start|>assistant<|channel|>final<|message|>Hi!<|return|>";
    assert_eq!(parse_all_ways(&options, text), Answer { reasoning: "Easy.".into(), text: "Hi!".into(), calls: vec![] });
}

#[test]
fn reasoning_is_before_text_and_calls() {
    let thinking = Thinking::of_template("{{ '<think>' }}");
    let options = |is_thinking| ParserOptions { thinking, is_thinking, calls: Some((Dialect::Hermes, tools())), max_calls: None };
    let answer = |reasoning: &str, text: &str| Answer { reasoning: reasoning.into(), text: text.into(), calls: vec![] };
    assert_eq!(parse_all_ways(&options(false), "<think>\nWell.\n</think>\n\nHi"), answer("\nWell.\n", "Hi"));
    assert_eq!(parse_all_ways(&options(true), "Well.</think>Hi <think> no"), answer("Well.", "Hi <think> no"));
    assert_eq!(parse_all_ways(&options(false), "Hi"), answer("", "Hi"));
    assert_eq!(parse_all_ways(&options(false), "<thi"), answer("", "<thi"));
    assert_eq!(parse_all_ways(&options(true), "Well, </thi"), answer("Well, </thi", ""));
    let call = parse_all_ways(&options(true), "x</think>\n<tool_call>\n{\"name\": \"now\"}\n</tool_call>");
    assert_eq!((call.reasoning.as_str(), call.calls.len()), ("x", 1));
}

#[test]
fn calls_beyond_the_most_are_left_out() {
    let options = ParserOptions { calls: Some((Dialect::Hermes, tools())), max_calls: Some(1), ..ParserOptions::default() };
    let call = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>\n";
    assert_eq!(parse_all_ways(&options, &call.repeat(3)).calls.len(), 1);
}

#[test]
fn any_text_is_read_without_loss_of_what_is_no_call() {
    // Pieces of markers in random order: nothing panics, and all ways of cutting give the same.
    let parts = [
        "<tool_call>",
        "</tool_call>",
        "<function=",
        "now",
        ">",
        "</function>",
        "{\"name\": \"now\"",
        ", \"arguments\": ",
        "{}",
        "}",
        "\n",
        " ",
        "[",
        "]",
        "[TOOL_CALLS]",
        "<｜tool▁call▁begin｜>",
        "<|channel|>",
        "<|message|>",
        "final",
        "<think>",
        "</think>",
        "é",
        "now(",
        ")",
        "```",
        "\"",
    ];
    let mut seed = 1_u64;
    for dialect in Dialect::ALL {
        for _ in 0..300 {
            let mut text = String::new();
            for _ in 0..12 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                text.push_str(parts[(seed >> 33) as usize % parts.len()]);
            }
            let thinking = Thinking::of_template("<think>");
            let options = ParserOptions { calls: Some((dialect, tools())), thinking, ..ParserOptions::default() };
            parse_all_ways(&options, &text);
        }
    }
}
