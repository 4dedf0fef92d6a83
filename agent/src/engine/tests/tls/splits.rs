//! The same verdict, however the bytes are cut into segments.

use proptest::prelude::*;

use super::wire::{
    ALERT, Shown, TICKET, alert, alert_12, certificate, client_12, data, finished_12, finished_13,
    finished_13_with, hello, server_12, server_13, server_13_asking,
};
use crate::engine::tests::sim::Sim;
use crate::model::{Cause, Proof};

/// Bytes of the gateway, or of the upstream.
enum Said {
    To(Vec<u8>),
    From(Vec<u8>),
}

use Said::{From, To};

fn stories() -> Vec<Vec<Said>> {
    let expired = certificate(Shown {
        expired: true,
        ..Shown::default()
    });
    vec![
        vec![To(hello()), From(alert(2, 70))],
        vec![
            To(hello()),
            From(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        ],
        vec![
            To(hello()),
            From(server_12(&expired, false, None)),
            To(alert(2, 45)),
        ],
        vec![
            To(hello()),
            From(server_13_asking()),
            To([finished_13_with(25), data(180)].concat()),
            From(data(ALERT)),
        ],
        vec![
            To(hello()),
            From(server_13()),
            To([finished_13(), data(180)].concat()),
            From([data(TICKET), data(TICKET)].concat()),
        ],
        vec![
            To(hello()),
            From(server_13()),
            To(finished_13()),
            From([data(TICKET), data(TICKET)].concat()),
            To(data(180)),
            From([data(300), data(1400)].concat()),
            To(data(200)),
            From(data(500)),
            From(data(ALERT)),
        ],
        vec![
            To(hello()),
            From(server_12(&expired, false, None)),
            To(client_12(None)),
            From(finished_12()),
            To(data(400)),
            From([data(900), alert_12()].concat()),
        ],
    ]
}

fn told(story: &[Said], mut pieces: impl Iterator<Item = usize>) -> Vec<(Cause, Proof)> {
    let mut sim = Sim::packets();
    sim.open();
    for said in story {
        let (To(bytes) | From(bytes)) = said;
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let length = pieces.next().unwrap_or(usize::MAX).min(rest.len());
            let (piece, behind) = rest.split_at(length);
            match said {
                To(_) => sim.send(piece).ack(),
                From(_) => sim.reply(piece),
            };
            rest = behind;
        }
    }
    sim.upstream_fin().gateway_fin();
    let events = sim.events();
    events
        .iter()
        .map(|event| (event.cause, event.proof))
        .collect()
}

proptest! {
    #[test]
    fn cuts_change_nothing(cuts in prop::collection::vec(1..600usize, 1..40)) {
        for story in stories() {
            let whole = told(&story, std::iter::empty());
            prop_assert_eq!(told(&story, cuts.iter().copied().cycle()), whole);
        }
    }

    #[test]
    fn headers_tell_as_much_as_all_bytes(
        lengths in prop::collection::vec(100..5000usize, 2..12),
        cuts in prop::collection::vec(50..9000usize, 1..12),
        // A header that two segments share ends in what is captured of the second.
        kept in 4..90usize,
        missing in 0..100usize,
    ) {
        let mut response: Vec<u8> = lengths.iter().flat_map(|length| data(*length)).collect();
        response.truncate(response.len() - missing);
        let places = lengths.iter().scan(0, |at, length| Some(std::mem::replace(at, *at + 5 + length)));
        let places: Vec<usize> = places.collect();
        let told = |kept: Option<usize>| {
            let mut sim = Sim::packets();
            sim.handshake_13().tickets().ask();
            let mut at = 0;
            let mut pieces = cuts.iter().copied().cycle();
            while at < response.len() {
                let end = (at + pieces.next().unwrap()).min(response.len());
                let piece = &response[at..end];
                let inside = places.iter().filter(|place| (at..end).contains(*place));
                let inside: Vec<usize> = inside.map(|place| place - at).collect();
                match kept {
                    Some(kept) => sim.reply_marked(piece, kept.min(piece.len()), &inside),
                    None => sim.reply(piece),
                };
                at = end;
            }
            sim.upstream_fin().gateway_fin().ms(100);
            let events = sim.events();
            let causes = events.iter().map(|event| (event.cause, event.proof));
            causes.collect::<Vec<_>>()
        };
        let whole = told(None);
        prop_assert_eq!(whole.len(), usize::from(missing > 0));
        prop_assert_eq!(told(Some(kept)), whole);
    }
}
