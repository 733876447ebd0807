//! `kvshare demo`: shows on one page the effect of sharing on a prompt whose documents come in another order.
//!
//! It serves the model to itself and asks as a client would, so that it prints what a client gets.

use std::time::Instant;

use anyhow::Context;
use eval::table;
use tokens::SharingMode;

use crate::client::{ChatEvent, ChatRequest, Client, Message, Usage};
use crate::config::{Config, ConfigArgs};
use crate::{serve, stdout};

const DOCUMENTS: [&str; 3] =
    [include_str!("demo/lighthouse.txt"), include_str!("demo/bakery.txt"), include_str!("demo/trail.txt")];
/// Documents in the order of each prompt, and the question after them.
const PROMPTS: [([usize; 3], &str); 2] = [
    ([0, 1, 2], "In which year was the lighthouse lit for the first time?"),
    ([2, 0, 1], "What is the name of the founder of the bakery?"),
];
const MODES: [SharingMode; 3] = [SharingMode::Off, SharingMode::Prefix, SharingMode::Span];
/// Enough for a sentence.
const MAX_ANSWER_TOKENS: u32 = 48;

/// Answer with its measurements.
struct TimedAnswer {
    ttft_ms: f64,
    usage: Usage,
    text: String,
}

/// Serves the model on a free port of this machine, asks about three documents, then about the same ones in another order, in each of three
/// modes, and prints what the second prompt cost.
///
/// # Errors
/// If the model cannot be loaded, memory does not suffice, or an answer breaks off.
pub(crate) fn run(args: ConfigArgs) -> anyhow::Result<()> {
    let mut config = Config::resolve(args)?;
    config.server.host = "127.0.0.1".to_owned();
    config.server.port = 0;
    // Nothing else runs while an answer is timed, and the demo needs no API keys.
    config.sharing.verify_share = 0.0;
    config.tenants = crate::config::TenantsConfig::default();
    let report = serve::while_serving(config, async |url| ask_all(&Client::new(&url)?).await)?;
    stdout::write(report)
}

async fn ask_all(client: &Client) -> anyhow::Result<String> {
    let model = client.first_model().await?;
    // First touch of memory is slow.
    ask(client, &model, "warm-up", SharingMode::Off, "Say hello.".to_owned()).await?;
    let mut second = Vec::new();
    for mode in MODES {
        for (order, question) in PROMPTS {
            let answer = ask(client, &model, mode.as_str(), mode, prompt(order, question)).await?;
            if order == PROMPTS[1].0 {
                second.push((mode, answer));
            }
        }
    }
    Ok(report(&second))
}

fn prompt(order: [usize; 3], question: &str) -> String {
    let documents = order.map(|nth| DOCUMENTS[nth].trim_end()).join("\n\n");
    format!("Read these documents.\n\n{documents}\n\n{question}")
}

async fn ask(client: &Client, model: &str, salt: &str, mode: SharingMode, content: String) -> anyhow::Result<TimedAnswer> {
    let request = ChatRequest {
        model,
        messages: &[Message { role: "user".to_owned(), content }],
        max_tokens: Some(MAX_ANSWER_TOKENS),
        temperature: Some(0.0),
        kv_sharing: Some(mode.into()),
        // Each mode starts without KV of the others.
        cache_salt: Some(salt),
    };
    let began = Instant::now();
    let mut stream = client.stream_chat(&request).await?;
    let mut answer = TimedAnswer { ttft_ms: 0.0, usage: Usage::default(), text: String::new() };
    while let Some(event) = stream.next().await.with_context(|| format!("asking in mode {mode}"))? {
        match event {
            ChatEvent::Text(text) => {
                if answer.text.is_empty() {
                    answer.ttft_ms = began.elapsed().as_secs_f64() * 1e3;
                }
                answer.text.push_str(&text);
            }
            ChatEvent::Usage(usage) => answer.usage = usage,
            ChatEvent::Finished(_) => {}
        }
    }
    Ok(answer)
}

fn report(second: &[(SharingMode, TimedAnswer)]) -> String {
    let (_, full) = &second[0];
    let rows: Vec<_> = second.iter().map(|(mode, answer)| row(*mode, answer, full)).collect();
    let header = ["mode", "first token", "speedup", "from prefix", "moved", "computed", "of these recomputed"];
    let mut text = format!(
        "\nThree documents and a question, then the same documents in another order and another question, {} tokens:\n\n{}",
        full.usage.prompt_tokens,
        table::markdown(&header, &rows, 1)
    );
    text += &format!("\n{}\n", PROMPTS[1].1);
    for (mode, answer) in second {
        text += &format!("  {mode:<8}{}\n", marked_difference(&answer.text, &full.text));
    }
    text + "\nServe it: kvshare serve --kv-sharing span\nTalk to it: kvshare chat --usage\n"
}

fn row(mode: SharingMode, answer: &TimedAnswer, full: &TimedAnswer) -> Vec<String> {
    let sharing = &answer.usage.kv_sharing;
    let computed = answer.usage.prompt_tokens - sharing.prefix_tokens - sharing.span_tokens;
    vec![
        mode.to_string(),
        format!("{:.0} ms", answer.ttft_ms),
        format!("{:.1}x", full.ttft_ms / answer.ttft_ms.max(1e-3)),
        sharing.prefix_tokens.to_string(),
        sharing.span_tokens.to_string(),
        computed.to_string(),
        sharing.recomputed_tokens.to_string(),
    ]
}

/// Formats an answer, with the first difference from that of full computation if there is one.
fn marked_difference(text: &str, full: &str) -> String {
    let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (text, full) = (one_line(text), one_line(full));
    let num_equal = text.split(' ').zip(full.split(' ')).take_while(|(a, b)| a == b).count();
    match text == full {
        true => text,
        false => format!("{text}  (differs from the {}. word on)", num_equal + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::SharingUsage;

    fn answer(ttft_ms: f64, span_tokens: u64, recomputed_tokens: u64, text: &str) -> TimedAnswer {
        let kv_sharing = SharingUsage { prefix_tokens: 10, span_tokens, recomputed_tokens, donors: 1 };
        let usage = Usage { prompt_tokens: 100, kv_sharing, ..Usage::default() };
        TimedAnswer { ttft_ms, usage, text: text.to_owned() }
    }

    #[test]
    fn a_row_says_where_the_prompt_came_from() {
        let full = answer(200.0, 0, 0, "");
        assert_eq!(row(SharingMode::Span, &answer(50.0, 60, 20, ""), &full), ["span", "50 ms", "4.0x", "10", "60", "30", "20"]);
    }

    #[test]
    fn an_answer_says_where_it_parts_from_full_computation() {
        assert_eq!(marked_difference("Fifty minutes.", "Fifty\nminutes."), "Fifty minutes.");
        assert_eq!(marked_difference("It needs ten.", "It needs fifty."), "It needs ten.  (differs from the 3. word on)");
    }

    #[test]
    fn both_prompts_hold_the_same_documents_in_another_order() {
        let [first, second] = PROMPTS.map(|(order, question)| prompt(order, question));
        assert!(DOCUMENTS.iter().all(|document| first.contains(document.trim_end()) && second.contains(document.trim_end())));
        assert_ne!(first[..200], second[..200]);
    }
}
