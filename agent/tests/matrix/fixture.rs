//! `cases.txt` as values.

use std::sync::LazyLock;

use hopscope::http1::{GATEWAYS, Outcome};
use hopscope::model::Cause;

/// What followed the response.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Then {
    Fin,
    Rst,
    /// The upstream kept the connection open for so many milliseconds.
    Hold(u64),
}

/// One response and what became of it.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) then: Then,
    /// As written, in the order of [`GATEWAYS`].
    pub(crate) outcomes: Vec<String>,
    pub(crate) cause: Option<Cause>,
}

/// A gateway product, with the versions of it that were measured.
pub(crate) struct Product {
    pub(crate) comm: &'static str,
    /// Places of its versions in [`GATEWAYS`].
    pub(crate) versions: Vec<usize>,
}

/// The measured products.
pub(crate) fn products() -> Vec<Product> {
    let mut products: Vec<Product> = Vec::new();
    for (index, gateway) in GATEWAYS.iter().enumerate() {
        let comm = gateway.comms[0];
        match products.iter_mut().find(|product| product.comm == comm) {
            Some(product) => product.versions.push(index),
            None => products.push(Product {
                comm,
                versions: vec![index],
            }),
        }
    }
    products
}

/// Every case, read once.
pub(crate) fn cases() -> &'static [Case] {
    static CASES: LazyLock<Vec<Case>> = LazyLock::new(read);
    &CASES
}

fn read() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for line in include_str!("cases.txt").lines() {
        if let Some(name) = line.strip_prefix('[') {
            cases.push(Case {
                name: name.trim_end_matches(']').to_owned(),
                bytes: Vec::new(),
                then: Then::Fin,
                outcomes: Vec::new(),
                cause: None,
            });
        } else if let Some((key, value)) = line.split_once('=').filter(|_| !line.starts_with('#')) {
            let case = cases.last_mut().unwrap();
            let value = value.strip_prefix(' ').unwrap_or(value);
            match key.trim() {
                "bytes" => case.bytes = bytes(value),
                "then" => case.then = then(value),
                "outcomes" => case.outcomes = value.split(" | ").map(str::to_owned).collect(),
                "cause" if value == "none" => {}
                "cause" => case.cause = Some(Cause::from_id(value).unwrap()),
                other => panic!("unknown key {other}"),
            }
        }
    }
    cases
}

/// The ending as `fin`, `rst` or `hold SECONDS`.
pub(crate) fn then(text: &str) -> Then {
    match text {
        "fin" => Then::Fin,
        "rst" => Then::Rst,
        _ => {
            let seconds: f64 = text
                .trim_start_matches("hold")
                .trim_matches([' ', ':'])
                .parse()
                .unwrap();
            Then::Hold((seconds * 1e3).round() as u64)
        }
    }
}

/// What a gateway made of a response, in the words of the profiles.
pub(crate) fn outcome(text: &str) -> Outcome {
    let first = text.split([' ', ',']).next().unwrap();
    match text {
        "empty" => Outcome::Silent,
        "ok, framing leaked" | "raw/009" | "1xx taken as final" | "as 0.9 body, 200" => {
            Outcome::Garbles
        }
        // An interim response is no answer to the client's request.
        "fwd 100" | "fwd 101" => Outcome::Garbles,
        _ if matches!(first, "ok" | "fwd") => Outcome::Tolerates,
        _ if first == "cut" => Outcome::Cuts,
        _ => Outcome::Rejects(first.parse().unwrap()),
    }
}

fn bytes(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if let Some(run) = rest.strip_prefix("<<") {
            let (run, behind) = run.split_once(">>").unwrap();
            repeat(run, &mut out);
            rest = behind;
            continue;
        }
        rest = &rest[first.len_utf8()..];
        if first != '\\' {
            out.push(u8::try_from(first).unwrap());
            continue;
        }
        let code = rest.as_bytes()[0];
        rest = &rest[1..];
        out.push(match code {
            b'r' => b'\r',
            b'n' => b'\n',
            b't' => b'\t',
            b'x' => {
                let (hex, behind) = rest.split_at(2);
                rest = behind;
                u8::from_str_radix(hex, 16).unwrap()
            }
            other => other,
        });
    }
    out
}

/// `COUNT C`, or `COUNT fields X-#: LEN a`.
fn repeat(run: &str, out: &mut Vec<u8>) {
    let words: Vec<&str> = run.split(' ').collect();
    let count: usize = words[0].parse().unwrap();
    match words[1..] {
        [one] => out.extend(one.repeat(count).bytes()),
        ["fields", name, len, letter] => {
            let value = letter.repeat(len.parse().unwrap());
            for number in 0..count {
                let name = name.replace('#', &number.to_string());
                out.extend(format!("{name} {value}\r\n").bytes());
            }
        }
        _ => panic!("unknown run {run}"),
    }
}
