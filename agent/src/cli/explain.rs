//! `hopscope explain`: the cause catalogue on the terminal, and the last answer of a gateway by it.

mod last;

use std::fmt::Write as _;

use comfy_table::Table;
use serde::Serialize;

use super::access::ClientFlags;
use super::output::{Format, Out};
use super::{CliError, config};
use crate::http1;
use crate::model::{Cause, CauseInfo, catalogue};

/// Lines are no longer than this, and shorter on a narrower terminal.
const WIDTH: usize = 96;

/// Column in which the text of a field starts.
const INDENT: usize = 16;

/// Flags of `hopscope explain`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Id of a cause, such as `tcp.connect_refused`; without one, all are listed.
    #[arg(value_name = "CAUSE", conflicts_with = "last")]
    cause: Option<String>,

    /// Why a client of a gateway just got what it got: the last such answer that the agent saw, or the
    /// last with this status or path, such as `--last 502 /shop`.
    #[arg(long, num_args = 0..=2, value_names = ["STATUS", "PATH"])]
    last: Option<Vec<String>>,

    /// Agent to ask for it [default: 127.0.0.1:7502].
    #[arg(long, value_name = "HOST:PORT", requires = "last")]
    agent: Option<String>,

    /// Text for people or JSON lines for programs.
    #[arg(long, value_enum, default_value_t)]
    format: Format,

    #[command(flatten)]
    client: ClientFlags,
}

/// A row of the catalogue as JSON.
#[derive(Debug, Serialize)]
struct Line {
    cause: &'static str,
    family: &'static str,
    definition: &'static str,
    proof: &'static str,
    proxy_error: Option<&'static str>,
    proxy_error_note: &'static str,
    recommended_status: Option<u16>,
    status_note: &'static str,
    cloudflare: Option<&'static str>,
    envoy: Option<&'static str>,
    haproxy: Option<&'static str>,
    nginx: Option<&'static str>,
    fault_side: &'static str,
    fault_note: &'static str,
    next_step: &'static str,
    wrong_fix: &'static str,
    /// What was measured: each rule of the cause with the gateways that reject and tolerate it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rules: Vec<Rule>,
}

/// One rule that upstreams break, and what gateways do about it.
#[derive(Debug, Serialize)]
struct Rule {
    text: String,
    rejected_by: Vec<String>,
    tolerated_by: Vec<String>,
}

/// The rules of a cause, as measured.
fn rules(cause: Cause) -> Vec<Rule> {
    http1::measured(cause)
        .into_iter()
        .map(|(text, outcomes)| {
            let (rejected_by, tolerated_by) = http1::split(outcomes);
            Rule {
                text,
                rejected_by,
                tolerated_by,
            }
        })
        .collect()
}

impl Line {
    fn new(row: &CauseInfo) -> Self {
        Self {
            cause: row.id,
            family: row.family.title(),
            definition: row.definition,
            proof: row.proof,
            proxy_error: row.proxy_error,
            proxy_error_note: row.proxy_error_note,
            recommended_status: row.recommended_status,
            status_note: row.status_note,
            cloudflare: row.cloudflare,
            envoy: row.envoy,
            haproxy: row.haproxy,
            nginx: row.nginx,
            fault_side: row.fault_side.as_str(),
            fault_note: row.fault_note,
            next_step: row.next_step,
            wrong_fix: row.wrong_fix,
            rules: Cause::from_id(row.id).map(rules).unwrap_or_default(),
        }
    }
}

pub(super) fn run(args: Args, file: config::Client) -> Result<(), CliError> {
    if let Some(words) = &args.last {
        return last::run(words, args.agent, args.client, args.format, file);
    }
    let one = match &args.cause {
        Some(id) => Some(Cause::from_id(id).ok_or_else(|| unknown(id))?.info()),
        None => None,
    };
    let mut out = Out::stdout();
    match (one, args.format) {
        (Some(row), Format::Text) => out.line(&page(row, width()))?,
        (None, Format::Text) => out.line(&list(width()))?,
        (one, Format::Jsonl) => {
            for row in one.map_or_else(catalogue, std::slice::from_ref) {
                let line = serde_json::to_string(&Line::new(row)).map_err(CliError::failed)?;
                out.line(&line)?;
            }
        }
    }
    Ok(out.flush()?)
}

fn width() -> usize {
    let terminal = Table::new().width().map_or(WIDTH, usize::from);
    terminal.clamp(INDENT + 24, WIDTH)
}

/// Everything about one cause.
fn page(row: &CauseInfo, width: usize) -> String {
    let mut text = format!("{}  ({})\n", row.id, row.family.title());
    field(&mut text, "meaning", row.definition, width);
    field(&mut text, "proof", row.proof, width);
    field(&mut text, "fault side", row.fault_note, width);
    field(&mut text, "status", row.status_note, width);
    field(&mut text, "RFC 9209 type", row.proxy_error_note, width);
    field(&mut text, "nginx", row.nginx.unwrap_or("-"), width);
    field(&mut text, "HAProxy", row.haproxy.unwrap_or("-"), width);
    field(&mut text, "Envoy", row.envoy.unwrap_or("-"), width);
    field(
        &mut text,
        "Cloudflare",
        row.cloudflare.unwrap_or("-"),
        width,
    );
    field(&mut text, "next step", row.next_step, width);
    field(&mut text, "wrong fix", row.wrong_fix, width);
    let cause = Cause::from_id(row.id);
    for rule in cause.map(rules).unwrap_or_default() {
        text.push('\n');
        wrapped(&mut text, "  ", 2, &rule.text, width);
        for (label, gateways) in [
            ("rejected by", rule.rejected_by),
            ("tolerated by", rule.tolerated_by),
        ] {
            if !gateways.is_empty() {
                field(&mut text, label, &gateways.join(", "), width);
            }
        }
    }
    if cause == Some(Cause::Http1HeaderTooLarge) {
        text += "\n  largest response head by default\n";
        for gateway in &http1::GATEWAYS {
            field(&mut text, gateway.name, &gateway.limits(), width);
        }
    }
    text.truncate(text.trim_end().len());
    text
}

/// Every id with its definition, by family.
fn list(width: usize) -> String {
    let mut text = String::new();
    let mut family = None;
    for row in catalogue() {
        if family.replace(row.family) != Some(row.family) {
            let gap = if text.is_empty() { "" } else { "\n" };
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{gap}{}", row.family.title());
        }
        let id = format!("  {}", row.id);
        wrapped(&mut text, &id, 38, row.definition, width);
    }
    text.truncate(text.trim_end().len());
    text
}

fn field(text: &mut String, name: &str, value: &str, width: usize) {
    // The catalogue marks emphasis for a document; a terminal shows the marks.
    let value = value.replace("**", "");
    let value = if value.is_empty() { "-" } else { &value };
    wrapped(text, &format!("  {name}"), INDENT, value, width);
}

/// `label`, then `value` in the column `indent`, broken between words so that lines fit `width`.
fn wrapped(text: &mut String, label: &str, indent: usize, value: &str, width: usize) {
    let _ = write!(text, "{label:indent$}");
    let mut column = label.chars().count().max(indent);
    let mut first = true;
    for word in value.split_whitespace() {
        let length = word.chars().count();
        if !first && column + 1 + length > width {
            let _ = write!(text, "\n{:indent$}", "");
            column = indent;
        } else if !first {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += length;
        first = false;
    }
    text.push('\n');
}

fn unknown(id: &str) -> CliError {
    let near = nearest(id);
    let hint = if near.is_empty() {
        "`hopscope explain` lists all".to_owned()
    } else {
        format!("did you mean {}?", near.join(" or "))
    };
    CliError::usage(format!(
        "unknown cause `{}`; {hint}",
        super::render::printable(id)
    ))
}

/// At most three ids that look like `id`, the nearest first.
fn nearest(id: &str) -> Vec<&'static str> {
    // No id is longer than 64; more would only cost time.
    let id: Vec<char> = id.chars().take(64).collect();
    let tail: String = id.iter().collect();
    let mut near: Vec<_> = catalogue()
        .iter()
        .filter_map(|row| {
            let contained = tail.len() >= 4 && row.id.contains(&tail);
            let start: String = row.id.chars().take(id.len() + 1).collect();
            let distance = if contained {
                1
            } else {
                // An id that was broken off counts as near to those that go on like it.
                distance(&id, row.id).min(distance(&id, &start) + 1)
            };
            // A third of the id wrong is still a slip; more is another word.
            (distance <= id.len().div_ceil(3)).then_some((distance, row.id))
        })
        .collect();
    near.sort_by_key(|(distance, _)| *distance);
    near.into_iter().take(3).map(|(_, id)| id).collect()
}

/// Levenshtein distance: single characters inserted, removed or replaced.
fn distance(from: &[char], to: &str) -> usize {
    let mut row: Vec<usize> = (0..=from.len()).collect();
    for (above, wanted) in to.chars().enumerate() {
        let mut diagonal = above;
        let mut left = above + 1;
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (cell, have) in row.iter_mut().skip(1).zip(from) {
            let replaced = diagonal + usize::from(*have != wanted);
            diagonal = *cell;
            left = replaced.min(diagonal + 1).min(left + 1);
            *cell = left;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chars(text: &str) -> Vec<char> {
        text.chars().collect()
    }

    #[test]
    fn distances() {
        assert_eq!(distance(&chars(""), "abc"), 3);
        assert_eq!(distance(&chars("abc"), ""), 3);
        assert_eq!(distance(&chars("kitten"), "sitting"), 3);
        assert_eq!(distance(&chars("same"), "same"), 0);
    }

    #[test]
    fn slips_find_their_cause() {
        assert_eq!(
            nearest("tcp.connect_refuse").first(),
            Some(&"tcp.connect_refused")
        );
        assert_eq!(nearest("connect_refused"), ["tcp.connect_refused"]);
        assert_eq!(nearest("tcp.conect").len(), 3);
        assert!(nearest("zzz").is_empty());
        assert!(nearest("").is_empty());
    }

    #[test]
    fn every_page_fits_its_width_and_lists_every_column() {
        for row in catalogue() {
            for width in [40, 80, WIDTH] {
                let page = page(row, width);
                assert_eq!(
                    page.lines()
                        .take_while(|line| !line.is_empty())
                        .filter(|line| !line.starts_with("   "))
                        .count(),
                    12
                );
                // One word alone may be longer than a line.
                let long = page.lines().skip(1).filter(|line| {
                    let value: String = line.chars().skip(INDENT).collect();
                    line.chars().count() > width && value.contains(' ')
                });
                assert_eq!(long.count(), 0, "{page}");
            }
        }
    }
}
