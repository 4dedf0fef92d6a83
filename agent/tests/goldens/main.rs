//! One tiny capture per hazard with the verdicts expected from it in words, both made by code.
//!
//! `UPDATE_GOLDENS=1 cargo test -p hopscope --test goldens` writes both anew and shows what changed.
//! Without that variable, captures must be what the code makes and verdicts what the text says.

#![cfg(feature = "std-edges")]
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod connect;
mod dns;
mod http1;
mod peers;
mod render;
mod scenario;
mod stream;
mod tcp;
mod tls;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use hopscope::engine::{Config, Engine};
use hopscope::limits::Limits;
use hopscope::source::{self, Options};

use scenario::Scenario;

/// A hazard: its name, what happens in a sentence, and the traffic.
type Golden = (&'static str, &'static str, Scenario);

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens")
}

fn all() -> Vec<Golden> {
    [
        connect::goldens(),
        dns::goldens(),
        tcp::goldens(),
        http1::goldens(),
        stream::goldens(),
        peers::goldens(),
        tls::goldens(),
    ]
    .concat()
}

/// The verdicts on a capture, in words.
fn verdicts(story: &str, capture: &[u8]) -> String {
    let mut engine = Engine::new(Config::default(), Limits::default());
    let mut events = Vec::new();
    let summary = source::analyze(capture, &Options::default(), &mut engine, &mut |event| {
        events.push(event);
    });
    render::text(story, capture, &events, &summary.unwrap(), &engine.stats())
}

/// The lines in which two texts differ, with their surroundings.
fn difference(old: &str, new: &str) -> String {
    let (old, new): (Vec<_>, Vec<_>) = (old.lines().collect(), new.lines().collect());
    let same = |pairs: &mut dyn Iterator<Item = (&&str, &&str)>| {
        pairs.take_while(|(old, new)| old == new).count()
    };
    let front = same(&mut old.iter().zip(&new));
    let longest = old.len().min(new.len()) - front;
    let back = same(&mut old.iter().rev().zip(new.iter().rev())).min(longest);
    let mut out = String::new();
    for line in &old[front.saturating_sub(2)..front] {
        writeln!(out, "  {line}").unwrap();
    }
    for line in &old[front..old.len() - back] {
        writeln!(out, "- {line}").unwrap();
    }
    for line in &new[front..new.len() - back] {
        writeln!(out, "+ {line}").unwrap();
    }
    for line in new[new.len() - back..].iter().take(2) {
        writeln!(out, "  {line}").unwrap();
    }
    out
}

#[test]
fn captures_give_the_expected_verdicts() {
    let update = std::env::var_os("UPDATE_GOLDENS").is_some();
    let mut wrong = String::new();
    for (name, story, scenario) in all() {
        let capture = scenario.pcap();
        let pcap = folder().join(name).with_extension("pcap");
        let text = folder().join(name).with_extension("txt");
        let told = verdicts(story, &capture);
        let expected = fs::read_to_string(&text).unwrap_or_default();
        if fs::read(&pcap).unwrap_or_default() != capture {
            writeln!(wrong, "{name}: another capture").unwrap();
        }
        if told != expected {
            writeln!(wrong, "{name}:\n{}", difference(&expected, &told)).unwrap();
        }
        if update {
            fs::create_dir_all(pcap.parent().unwrap()).unwrap();
            fs::write(&pcap, &capture).unwrap();
            fs::write(&text, &told).unwrap();
        }
    }
    if update {
        println!("{wrong}");
        return;
    }
    assert!(wrong.is_empty(), "UPDATE_GOLDENS=1 accepts these:\n{wrong}");
}

#[test]
fn every_file_has_its_scenario() {
    let mut names = BTreeSet::new();
    for (name, ..) in all() {
        assert!(names.insert(name.to_owned()), "{name} is there twice");
    }
    let mut found = BTreeSet::new();
    for group in ["connect", "dns", "tcp", "http1", "stream", "peers", "tls"] {
        for entry in fs::read_dir(folder().join(group)).unwrap() {
            let path = entry.unwrap().path();
            // What scenarios are made of.
            if path.extension().is_some_and(|extension| extension == "der") {
                continue;
            }
            let path = path.with_extension("");
            let name = path.strip_prefix(folder()).unwrap();
            found.insert(name.to_str().unwrap().to_owned());
        }
    }
    assert_eq!(found, names);
}
