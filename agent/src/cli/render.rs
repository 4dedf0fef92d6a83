//! Events for people and for programs. Decides layout only.
//!
//! Bytes of the wire end up here (paths, hosts, evidence), so everything that a terminal would act
//! upon is escaped.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

use owo_colors::{OwoColorize as _, Style};

use crate::model::{ExchangeInfo, GatewayAnswer, HopEvent, Proof, Timestamp, TlsInfo};

/// Fits all but three ids of the catalogue; those shift their line.
const CAUSE_WIDTH: usize = 30;

/// `underdetermined`.
const PROOF_WIDTH: usize = 15;

/// An IPv4 address with a port.
const UPSTREAM_WIDTH: usize = 21;

/// One event as one line of JSON.
pub fn event_json(event: &HopEvent) -> Result<String, serde_json::Error> {
    serde_json::to_string(event)
}

/// One event as an aligned line, followed by one indented line for each piece of evidence. No line
/// end at the end.
pub fn event_text(event: &HopEvent, colour: bool) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write_event(&mut text, event, colour);
    text
}

fn write_event(text: &mut String, event: &HopEvent, colour: bool) -> fmt::Result {
    let styled = |style: Style| if colour { style } else { Style::new() };
    let proof = match event.proof {
        Proof::Proven => Style::new().green(),
        Proof::Inferred => Style::new().yellow(),
        Proof::Underdetermined => Style::new().magenta(),
    };
    let faint = styled(Style::new().dimmed());
    write!(
        text,
        "{}  {}  {}  {:UPSTREAM_WIDTH$}",
        time(event.time).style(faint),
        format_args!("{:CAUSE_WIDTH$}", event.cause).style(styled(Style::new().red().bold())),
        format_args!("{:PROOF_WIDTH$}", event.proof.as_str()).style(styled(proof)),
        printable(&event.upstream.to_string()),
    )?;
    match &event.gateway {
        Some(gateway) => write!(text, "  {}[{}]", printable(&gateway.comm), gateway.pid)?,
        None => text.push_str("  -"),
    }
    if let Some(exchange) = &event.exchange {
        write_exchange(text, exchange, event.tls.is_some())?;
    }
    for piece in &event.evidence {
        write!(
            text,
            "\n    {:12}  {}",
            piece.source.as_str().style(faint),
            printable(&piece.text)
        )?;
        if let Some(offset) = piece.offset {
            write!(text, " (byte {offset})")?;
        }
    }
    if let Some(answer) = event.gateway_answer.as_deref() {
        write!(text, "\n    {:12}  ", "client".style(faint))?;
        write_answer(text, answer)?;
    } else if event.hidden_from_client {
        write!(text, "\n    {:12}  saw no failure", "client".style(faint))?;
    }
    for (label, gateways) in [
        ("rejected by", &event.rejected_by),
        ("tolerated by", &event.tolerated_by),
    ] {
        if !gateways.is_empty() {
            let gateways = gateways.join(", ");
            write!(
                text,
                "\n    {:12}  {}",
                label.style(faint),
                printable(&gateways)
            )?;
        }
    }
    if !event.rivals.is_empty() {
        let rivals: Vec<_> = event.rivals.iter().map(|rival| rival.id()).collect();
        write!(
            text,
            "\n    {:12}  {}",
            "or else".style(faint),
            rivals.join(", ")
        )?;
    }
    if let Some(splitter) = &event.splitter {
        write!(
            text,
            "\n    {:12}  {}",
            "to tell".style(faint),
            printable(splitter)
        )?;
    }
    if let Some(tls) = &event.tls {
        write!(
            text,
            "\n    {:12}  {}",
            "tls".style(faint),
            printable(&tls_line(tls))
        )?;
    }
    if let Some(capture) = &event.capture_id {
        write!(
            text,
            "\n    {:12}  {}",
            "capture".style(faint),
            printable(capture)
        )?;
    }
    if let Some(gaps) = gaps(event) {
        write!(text, "\n    {:12}  {gaps}", "incomplete".style(faint))?;
    }
    Ok(())
}

/// Version, cipher suite, server name and application protocol, as far as they are known.
fn tls_line(tls: &TlsInfo) -> String {
    let known = |text: &Option<String>| text.clone();
    let named =
        |name: &str, text: &Option<String>| text.as_ref().map(|text| format!("{name} {text}"));
    let parts = [
        known(&tls.version).or_else(|| Some("no version chosen".to_owned())),
        known(&tls.cipher),
        named("server name", &tls.sni),
        named("ALPN", &tls.alpn),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn write_exchange(text: &mut String, exchange: &ExchangeInfo, tls: bool) -> fmt::Result {
    let hidden = if tls { "(inside TLS)" } else { "?" };
    let method = exchange.method.as_deref().unwrap_or(hidden);
    let host = exchange.host.as_deref().unwrap_or_default();
    let path = exchange.path.as_deref().unwrap_or_default();
    write!(
        text,
        "  {} {}{}",
        printable(method),
        printable(host),
        printable(path)
    )?;
    if let Some(status) = exchange.status {
        write!(text, " -> {status}")?;
    }
    write!(text, " after {:.1} ms", exchange.duration_ms)
}

fn write_answer(text: &mut String, answer: &GatewayAnswer) -> fmt::Result {
    match answer.status {
        Some(status) => write!(text, "got {status}")?,
        None => text.push_str("lost its connection"),
    }
    let path = answer.path.as_deref().unwrap_or_default();
    write!(
        text,
        " for {} {} after {:.1} ms",
        printable(answer.method.as_deref().unwrap_or("?")),
        printable(path),
        answer.latency_ms
    )?;
    if answer.attempts.len() > 1 {
        write!(text, ", the last of {} attempts", answer.attempts.len())?;
    }
    if !answer.candidates.is_empty() {
        write!(
            text,
            ", or for another of {} events",
            answer.candidates.len() + 1
        )?;
    }
    if answer.contested {
        write!(text, ", unless another client was told of this")?;
    }
    Ok(())
}

/// What was lost around a verdict, where anything was.
fn gaps(event: &HopEvent) -> Option<String> {
    let completeness = event.completeness;
    let lost = completeness.lost_segments;
    let gaps: Vec<_> = [
        (lost > 0).then(|| format!("{lost} segments lost")),
        completeness
            .truncated
            .then(|| "payload captured short".to_owned()),
        completeness
            .mid_stream
            .then(|| "joined mid-stream".to_owned()),
    ]
    .into_iter()
    .flatten()
    .collect();
    (!gaps.is_empty()).then(|| gaps.join(", "))
}

/// Milliseconds are enough for people; JSON has the rest.
pub(super) fn time(time: Timestamp) -> String {
    match jiff::Timestamp::from_nanosecond(i128::from(time.as_nanos())) {
        Ok(time) => format!("{time:.3}"),
        Err(_) => time.to_string(),
    }
}

/// `text` with everything escaped that moves the cursor, changes colours, or reorders what is read.
pub fn printable(text: &str) -> Cow<'_, str> {
    let acts = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if acts(c) {
            escaped.extend(c.escape_default());
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}
