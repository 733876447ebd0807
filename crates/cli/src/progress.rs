//! Progress of a long operation, on standard error: a bar for users, plain lines for log files.

use std::fmt;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use models::{Reporter, Transfer};

use crate::stderr;

/// Progress report of one operation, in bytes or counted items.
pub(crate) struct Progress {
    label: String,
    unit: Unit,
    bar: Option<ProgressBar>,
    total: u64,
    done: u64,
    last_line: Instant,
}

/// Time between two plain lines: a log file shows life without filling up. Chosen.
const LINE_INTERVAL: Duration = Duration::from_secs(2);

/// Unit of progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Bytes of a file.
    Bytes,
    /// Requests, or other items.
    Count,
}

impl Progress {
    /// Starts at 0 of `total`. Draws a bar if standard error is a terminal.
    pub(crate) fn new(label: impl Into<String>, unit: Unit, total: u64) -> Self {
        let label = label.into();
        let bar = std::io::stderr().is_terminal().then(|| new_bar(&label, unit, total));
        Self { label, unit, bar, total, done: 0, last_line: Instant::now() }
    }

    /// Adds `amount` to the work done.
    pub(crate) fn add(&mut self, amount: u64) {
        self.set(self.done + amount);
    }

    /// Sets the total work done.
    pub(crate) fn set(&mut self, done: u64) {
        self.done = done;
        match &self.bar {
            Some(bar) => bar.set_position(done),
            None => self.print_line(),
        }
    }

    /// Removes the bar, so that a result can be printed in its place.
    pub(crate) fn finish(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn print_line(&mut self) {
        if self.last_line.elapsed() < LINE_INTERVAL {
            return;
        }
        self.last_line = Instant::now();
        let percent = (self.done * 100).checked_div(self.total).unwrap_or(0);
        let (done, total) = (self.amount(self.done), self.amount(self.total));
        stderr::write_line(format_args!("{}: {done} of {total} ({percent} %)", self.label));
    }

    fn amount(&self, n: u64) -> String {
        match self.unit {
            Unit::Bytes => HumanBytes(n).to_string(),
            Unit::Count => n.to_string(),
        }
    }
}

/// Longest label of a bar: with counts in bytes, speed and time left it leaves a bar of eight columns on a terminal of 80.
const LABEL_COLUMNS: usize = 32;

/// Returns `label`, or its end where it is longer: paths and names of files differ there.
fn shortened(label: &str) -> String {
    let num_chars = label.chars().count();
    if num_chars <= LABEL_COLUMNS {
        return label.to_owned();
    }
    std::iter::once('…').chain(label.chars().skip(num_chars + 1 - LABEL_COLUMNS)).collect()
}

fn new_bar(label: &str, unit: Unit, total: u64) -> ProgressBar {
    let counts = match unit {
        Unit::Bytes => "{bytes}/{total_bytes} {bytes_per_sec}",
        Unit::Count => "{pos}/{len} {per_sec}",
    };
    let template = format!("{{msg}} [{{wide_bar}}] {counts} ({{eta}})");
    let style = ProgressStyle::with_template(&template).expect("the template is a constant and valid").progress_chars("=> ");
    ProgressBar::new(total).with_style(style).with_message(shortened(label))
}

/// Shows on standard error how a model is fetched.
pub(crate) struct FetchProgress;

impl Reporter for FetchProgress {
    fn announce(&self, line: fmt::Arguments<'_>) {
        stderr::write_line(line);
    }

    fn begin(&self, label: &str, num_bytes: u64) -> Box<dyn Transfer> {
        Box::new(Progress::new(label, Unit::Bytes, num_bytes))
    }
}

impl Transfer for Progress {
    fn set(&mut self, num_bytes: u64) {
        Self::set(self, num_bytes);
    }

    fn add(&mut self, num_bytes: u64) {
        Self::add(self, num_bytes);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_fits_beside_its_bar_and_keeps_its_end() {
        assert_eq!(shortened("SmolLM2-135M-Instruct.Q4_1.gguf"), "SmolLM2-135M-Instruct.Q4_1.gguf");
        let long = shortened("loading qwen2.5-coder-0.5b-instruct-q4_k_m.gguf (%)");
        assert_eq!(long, "…r-0.5b-instruct-q4_k_m.gguf (%)");
        assert_eq!(long.chars().count(), LABEL_COLUMNS);
    }
}
