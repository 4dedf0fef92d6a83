//! Standard output: buffered, explicit about errors, coloured on a terminal only.

use std::io::{self, BufWriter, IsTerminal, Stdout, Write};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::render;
use crate::model::HopEvent;

/// Who reads the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// People: aligned, coloured on a terminal.
    #[default]
    Text,
    /// Programs: one JSON object a line.
    Jsonl,
}

/// Standard output of a command.
#[derive(Debug)]
pub struct Out {
    writer: BufWriter<Stdout>,
    colour: bool,
}

impl Out {
    /// The process's standard output.
    pub fn stdout() -> Self {
        let stdout = io::stdout();
        Self {
            colour: colour_wanted(&stdout),
            writer: BufWriter::new(stdout),
        }
    }

    /// Whether escapes for colours are wanted.
    pub fn colour(&self) -> bool {
        self.colour
    }

    /// Writes one event in `format`, line end included.
    pub fn event(&mut self, event: &HopEvent, format: Format) -> io::Result<()> {
        match format {
            Format::Text => self.line(&render::event_text(event, self.colour)),
            Format::Jsonl => self.line(&render::event_json(event)?),
        }
    }

    /// Writes `value` as one line of JSON.
    pub fn json(&mut self, value: &impl Serialize) -> io::Result<()> {
        self.line(&serde_json::to_string(value)?)
    }

    /// Writes `text` and a line end.
    pub fn line(&mut self, text: &str) -> io::Result<()> {
        self.writer.write_all(text.as_bytes())?;
        self.writer.write_all(b"\n")
    }

    /// Writes what is buffered.
    pub fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// Colours are for terminals whose user has not declined them (<https://no-color.org>).
pub(super) fn colour_wanted(stream: &impl IsTerminal) -> bool {
    let declined = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    stream.is_terminal() && !declined
}
