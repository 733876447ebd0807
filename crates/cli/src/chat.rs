//! Chat with a server, in the terminal.

mod lines;

use anyhow::Context;
use tokens::SharingMode;

use self::lines::{InputLine, Lines};
use crate::client::{ChatEvent, ChatRequest, Client, Message, Usage};
use crate::config::{Secret, sharing_mode_parser};
use crate::stdout;

/// Arguments of `kvshare chat`.
#[derive(Debug, clap::Args)]
pub(crate) struct ChatArgs {
    /// Server to talk to
    #[arg(long, short, env = "KVSHARE_URL", default_value = "http://127.0.0.1:8000")]
    url: String,
    /// API key, where the server asks for one
    #[arg(long, env = "KVSHARE_API_KEY", hide_env_values = true, value_name = "KEY")]
    api_key: Option<Secret>,
    /// Send this one message, print the answer, and end
    #[arg(long, short)]
    message: Option<String>,
    /// Model to ask [default: the server's first]
    #[arg(long)]
    model: Option<String>,
    /// System message of the conversation
    #[arg(long, short)]
    system: Option<String>,
    /// Tokens of an answer at most
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
    /// 0 is greedy [default: the server's]
    #[arg(long)]
    temperature: Option<f32>,
    /// KV of earlier requests to reuse [default: the server's]
    #[arg(long, value_parser = sharing_mode_parser())]
    kv_sharing: Option<SharingMode>,
    /// Print after each answer what it consumed and reused
    #[arg(long)]
    usage: bool,
    /// Keep no history of what is typed
    #[arg(long)]
    no_history: bool,
}

const HELP: &str = "/reset forgets the conversation, /usage switches the accounting on or off, /quit ends (also Ctrl-D); Ctrl-C stops an \
                    answer; Alt-Enter begins a new line, and pasted lines are one message";

/// Conversation: server, model, arguments and history.
struct Conversation {
    client: Client,
    model: String,
    args: ChatArgs,
    history: Vec<Message>,
}

/// Command of a line typed at the prompt.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Input<'a> {
    Message(&'a str),
    Reset,
    Usage,
    Help,
    Quit,
    Nothing,
    Unknown(&'a str),
}

/// Runs the conversation until the user leaves, or sends the one message given.
///
/// # Errors
/// If the server cannot be reached or, with a given message, refuses it.
pub(crate) fn run(args: ChatArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let mut conversation = runtime.block_on(Conversation::start(args))?;
    match conversation.args.message.clone() {
        Some(message) => runtime.block_on(conversation.send(&message)),
        None => converse(&mut conversation, &runtime),
    }
}

fn converse(conversation: &mut Conversation, runtime: &tokio::runtime::Runtime) -> anyhow::Result<()> {
    let mut lines = Lines::open(!conversation.args.no_history)?;
    if lines.has_reader() {
        eprintln!("talking to {}; {HELP}", conversation.model);
    }
    loop {
        let line = match lines.next()? {
            InputLine::Text(line) => line,
            InputLine::Interrupted => {
                eprintln!("Ctrl-D or /quit ends");
                continue;
            }
            InputLine::End => return Ok(()),
        };
        match parse_input(&line) {
            Input::Nothing => {}
            Input::Quit => return Ok(()),
            Input::Reset => conversation.reset(),
            Input::Usage => conversation.args.usage = !conversation.args.usage,
            Input::Help => eprintln!("{HELP}"),
            Input::Unknown(command) => eprintln!("there is no {command}; {HELP}"),
            Input::Message(text) => {
                // The conversation goes on after an error: the next message may be shorter.
                if let Err(error) = runtime.block_on(conversation.send(text)) {
                    eprintln!("error: {error:#}");
                }
            }
        }
    }
}

fn parse_input(line: &str) -> Input<'_> {
    match line.trim() {
        "" => Input::Nothing,
        "/quit" | "/exit" => Input::Quit,
        "/reset" => Input::Reset,
        "/usage" => Input::Usage,
        "/help" => Input::Help,
        text if text.starts_with('/') && !text.contains(char::is_whitespace) => Input::Unknown(text),
        text => Input::Message(text),
    }
}

impl Conversation {
    async fn start(args: ChatArgs) -> anyhow::Result<Self> {
        let client = Client::new(&args.url)?.with_key(args.api_key.clone());
        let model = match &args.model {
            Some(model) => model.clone(),
            None => client.first_model().await?,
        };
        let mut conversation = Self { client, model, args, history: Vec::new() };
        conversation.reset();
        Ok(conversation)
    }

    fn reset(&mut self) {
        self.history.clear();
        self.history.extend(self.args.system.as_deref().map(|text| message("system", text)));
    }

    /// Sends `text`, prints the answer as it arrives, and remembers both. Drops a refused message.
    async fn send(&mut self, text: &str) -> anyhow::Result<()> {
        self.history.push(message("user", text));
        match self.answer().await {
            Ok((answer, usage)) => {
                stdout::write("\n")?;
                self.history.push(message("assistant", &answer));
                if self.args.usage {
                    eprintln!("{}", describe(&usage));
                }
                Ok(())
            }
            Err(error) => {
                self.history.pop();
                Err(error)
            }
        }
    }

    /// Streams and prints an answer to the history. Ctrl-C ends it early; the text so far counts.
    async fn answer(&self) -> anyhow::Result<(String, Usage)> {
        let request = ChatRequest {
            model: &self.model,
            messages: &self.history,
            max_tokens: self.args.max_tokens,
            temperature: self.args.temperature,
            kv_sharing: self.args.kv_sharing.map(Into::into),
            cache_salt: None,
        };
        let mut stream = self.client.stream_chat(&request).await?;
        let (mut answer, mut usage) = (String::new(), Usage::default());
        loop {
            let event = tokio::select! {
                event = stream.next() => event?,
                _ = tokio::signal::ctrl_c() => None,
            };
            match event {
                Some(ChatEvent::Text(text)) => {
                    stdout::write(&text)?;
                    answer.push_str(&text);
                }
                Some(ChatEvent::Usage(final_usage)) => usage = final_usage,
                Some(ChatEvent::Finished(_)) => {}
                None => return Ok((answer, usage)),
            }
        }
    }
}

fn message(role: &str, content: &str) -> Message {
    Message { role: role.to_owned(), content: content.to_owned() }
}

fn describe(usage: &Usage) -> String {
    let sharing = &usage.kv_sharing;
    format!(
        "[prompt {} tokens: {} from a prefix, {} from spans of {} donors, {} recomputed; answer {} tokens]",
        usage.prompt_tokens,
        usage.prompt_tokens_details.cached_tokens,
        sharing.span_tokens,
        sharing.donors,
        sharing.recomputed_tokens,
        usage.completion_tokens
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, expected: Input<'_>) {
        assert_eq!(parse_input(line), expected);
    }

    #[test]
    fn commands_start_with_a_slash_and_have_no_spaces() {
        check("/reset\n", Input::Reset);
        check("/quit\n", Input::Quit);
        check("/usage", Input::Usage);
        check("/resett\n", Input::Unknown("/resett"));
        check("/etc/hosts is what?\n", Input::Message("/etc/hosts is what?"));
        check("/// a comment\n", Input::Message("/// a comment"));
        check("/pasted\nlines\n", Input::Message("/pasted\nlines"));
        check("  hello \n", Input::Message("hello"));
        check("\n", Input::Nothing);
    }

    #[test]
    fn the_accounting_names_every_source() {
        let mut usage = Usage { prompt_tokens: 100, completion_tokens: 7, ..Usage::default() };
        usage.prompt_tokens_details.cached_tokens = 32;
        usage.kv_sharing.span_tokens = 50;
        usage.kv_sharing.donors = 2;
        usage.kv_sharing.recomputed_tokens = 9;
        let expected = "[prompt 100 tokens: 32 from a prefix, 50 from spans of 2 donors, 9 recomputed; answer 7 tokens]";
        assert_eq!(describe(&usage), expected);
    }
}
