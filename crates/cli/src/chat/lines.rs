//! Lines typed at the prompt: edited and remembered on a terminal, read as they are from a pipe.

use std::io::{self, BufRead, IsTerminal};
use std::path::PathBuf;

use anyhow::Context;
use rustyline::error::ReadlineError;
use rustyline::{Cmd, Config, DefaultEditor, KeyCode, KeyEvent, Modifiers};

use crate::stderr;

/// Lines kept in the history. Chosen: some weeks of use.
const MAX_HISTORY: usize = 1000;

/// Source of lines.
pub(super) enum Lines {
    /// Terminal with line editing.
    Terminal(Box<Terminal>),
    /// Standard input as it is: a pipe, a file, or a terminal whose output goes elsewhere.
    Plain,
}

/// Result of one read.
#[derive(Debug, PartialEq)]
pub(super) enum InputLine {
    /// Text without its line end. Pasted text is one line, however many line breaks it has.
    Text(String),
    /// Ctrl-C: the line is dropped.
    Interrupted,
    /// Ctrl-D, or the end of the input.
    End,
}

/// Editor with the file of its history.
pub(super) struct Terminal {
    editor: DefaultEditor,
    /// `None` keeps the history in memory.
    history: Option<PathBuf>,
}

impl Lines {
    /// Opens an editor if standard input and output are terminals. With `keeps_history`, it has the lines of earlier conversations.
    ///
    /// # Errors
    /// If the terminal cannot be set up.
    pub(super) fn open(keeps_history: bool) -> anyhow::Result<Self> {
        if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
            return Ok(Self::Plain);
        }
        let config = Config::builder().auto_add_history(true).history_ignore_space(true).bracketed_paste(true);
        let config = config.max_history_size(MAX_HISTORY).context("setting up the history")?.build();
        let mut editor = DefaultEditor::with_config(config).context("setting up the terminal")?;
        editor.bind_sequence(KeyEvent(KeyCode::Enter, Modifiers::ALT), Cmd::Newline);
        let history = if keeps_history { history_file() } else { None };
        if let Some(file) = &history {
            // The file is missing before the first conversation; if it cannot be read, the conversation goes on without it.
            editor.load_history(file).ok();
        }
        Ok(Self::Terminal(Box::new(Terminal { editor, history })))
    }

    /// True if a user reads the text printed beside the answers.
    pub(super) fn has_reader(&self) -> bool {
        matches!(self, Self::Terminal(_)) || io::stdin().is_terminal()
    }

    /// Waits for the next line.
    ///
    /// # Errors
    /// If the input cannot be read.
    pub(super) fn next(&mut self) -> anyhow::Result<InputLine> {
        match self {
            Self::Terminal(terminal) => terminal.next(),
            Self::Plain => {
                if io::stdin().is_terminal() {
                    eprint!("> ");
                }
                plain(&mut io::stdin().lock())
            }
        }
    }
}

impl Terminal {
    fn next(&mut self) -> anyhow::Result<InputLine> {
        match self.editor.readline("> ") {
            Ok(text) => {
                self.keep_history();
                Ok(InputLine::Text(text))
            }
            Err(ReadlineError::Interrupted) => Ok(InputLine::Interrupted),
            Err(ReadlineError::Eof) => Ok(InputLine::End),
            Err(ReadlineError::Io(error)) if error.kind() == io::ErrorKind::InvalidData => {
                stderr::write_line("that was no UTF-8 and is dropped");
                Ok(InputLine::Text(String::new()))
            }
            Err(error) => Err(error).context("reading the terminal"),
        }
    }

    /// Appends new lines to the file. If that fails, reports it once and stops.
    fn keep_history(&mut self) {
        let Some(file) = &self.history else { return };
        let folder = file.parent().map_or(Ok(()), std::fs::create_dir_all).map_err(ReadlineError::from);
        if let Err(error) = folder.and_then(|()| self.editor.append_history(file)) {
            eprintln!("the history is not kept: {}: {error}", file.display());
            self.history = None;
        }
    }
}

/// Reads one line of `input`.
fn plain(input: &mut impl BufRead) -> anyhow::Result<InputLine> {
    let mut line = Vec::new();
    match input.read_until(b'\n', &mut line).context("reading standard input")? {
        0 => Ok(InputLine::End),
        // Invalid UTF-8 is replaced: one wrong byte does not end a conversation.
        _ => Ok(InputLine::Text(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned())),
    }
}

/// Returns the path in the user's folder of application state; `None` if there is no such folder.
fn history_file() -> Option<PathBuf> {
    Some(dirs::state_dir().or_else(dirs::data_local_dir)?.join("kvshare").join("chat-history"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_is_read_line_by_line_to_its_end() {
        let mut input = &b"one\r\n\ntw\xe9"[..];
        let lines: Vec<InputLine> = (0..4).map(|_| plain(&mut input).unwrap()).collect();
        let text = |text: &str| InputLine::Text(text.to_owned());
        assert_eq!(lines, [text("one"), text(""), text("tw\u{fffd}"), InputLine::End]);
    }
}
