//! Recorded connections: what each shows.

use super::super::*;
use crate::model::{Actor, Timestamp};
use crate::tcp::Chunk;

/// A recorded connection: who sent what, in turns.
#[derive(Debug)]
pub(super) struct Recording(pub(super) Vec<(Actor, Vec<u8>)>);

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/tls/fixtures");

impl Recording {
    /// The names of all, sorted.
    pub(super) fn names() -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(FIXTURES)
            .unwrap()
            .filter_map(|entry| {
                let name = entry.unwrap().file_name().into_string().unwrap();
                name.strip_suffix(".txt").map(str::to_owned)
            })
            .collect();
        names.sort();
        names
    }

    pub(super) fn read(name: &str) -> Self {
        let path = format!("{FIXTURES}/{name}.txt");
        let text = std::fs::read_to_string(path).unwrap();
        let turns = text.lines().map(|line| {
            let (mark, hex) = line.split_once(' ').unwrap();
            let by = match mark {
                ">" => Actor::Gateway,
                "<" => Actor::Upstream,
                other => panic!("{other}"),
            };
            let bytes = hex
                .as_bytes()
                .chunks(2)
                .map(|digits| u8::from_str_radix(str::from_utf8(digits).unwrap(), 16).unwrap());
            (by, bytes.collect())
        });
        Self(turns.collect())
    }

    pub(super) fn play(&self) -> Session {
        let mut session = Session::new();
        for (index, (by, bytes)) in self.0.iter().enumerate() {
            let at = Timestamp::from_nanos(index as u64);
            feed(&mut session, *by, at, Chunk::Data(bytes));
        }
        session
    }
}

pub(super) fn feed(session: &mut Session, by: Actor, at: Timestamp, chunk: Chunk<'_>) {
    match by {
        Actor::Gateway => session.sent(at, chunk),
        Actor::Upstream => session.received(at, chunk),
    }
}

/// What a connection said, in a line for each of: versions, name and protocols; certificates; the gateway's
/// records; the upstream's; alerts; foreign bytes.
fn summary(facts: &Facts) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(client) = &facts.client {
        let versions: Vec<_> = client.versions.iter().map(ToString::to_string).collect();
        lines.push(format!(
            "asks {} for {}{}{}{}",
            client.sni.as_deref().unwrap_or("nobody"),
            versions.join("/"),
            format_args!(", alpn {:?}", client.alpn),
            if client.resumes { ", resumes" } else { "" },
            if facts.retried { ", retried" } else { "" },
        ));
        assert!(!client.ciphers.is_empty() && !client.groups.is_empty() && !client.cut);
    }
    if let Some(server) = &facts.server {
        lines.push(format!(
            "gets {} {} group {:?}, alpn {:?}{}",
            server.version,
            cipher_name(server.cipher),
            server.group.map(group_name),
            server.alpn,
            if server.resumed { ", resumed" } else { "" },
        ));
    }
    for certificate in &facts.chain {
        lines.push(format!(
            "certificate {} of {}",
            certificate.subject, certificate.issuer
        ));
    }
    if facts.asked {
        lines.push(format!(
            "client certificate asked for, given {:?}",
            facts.given
        ));
    }
    for (name, side) in [("gateway", facts.to), ("upstream", facts.from)] {
        let Side {
            step,
            gap,
            records,
            application,
            since_finished,
            first_application,
            last,
            partial,
            ..
        } = side;
        assert!(!gap && partial == 0);
        lines.push(format!("{name} {step:?}: {records} records, {application} of data, {since_finished} since, first {first_application:?}, last {last:?}"));
    }
    for alert in &facts.alerts {
        let said = alert
            .said
            .map(|(level, number)| (level, alert_name(number)));
        lines.push(format!(
            "alert by {:?} {:?} at {:?}, other at {:?}",
            alert.by, said, alert.own, alert.other
        ));
    }
    if let Some(foreign) = &facts.foreign {
        lines.push(format!(
            "no TLS by {:?} at {}: {}",
            foreign.by,
            foreign.offset,
            foreign.bytes.escape_ascii()
        ));
    }
    lines
}

#[test]
fn each_recording_shows_what_happened() {
    let expected = std::fs::read_to_string(format!("{FIXTURES}/expected")).unwrap();
    let names = Recording::names();
    assert!(names.len() > 20);
    let mut told = Vec::new();
    for name in names {
        let session = Recording::read(&name).play();
        assert!(session.kept_bytes() < 4096, "{name}");
        let lines = summary(session.facts());
        told.push(name);
        told.extend(lines.into_iter().map(|line| format!("    {line}")));
    }
    let told = told.join("\n") + "\n";
    assert!(told == expected, "{told}");
}
