//! Connections that a balancer begins with a header of the PROXY protocol.

use std::io::Write as _;
use std::net::{Shutdown, SocketAddr, TcpListener};

use crate::accepted::{HELLO, accept, alone, connect, deferred, only, opaque};
use crate::clients::{BAD, GOOD, Pair, REQUEST, answers, config};
use crate::support::{Seen, Watch};

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const LINE: &[u8] = b"PROXY TCP4 192.0.2.7 198.51.100.1 50007 443\r\n";
/// As long as a line can be.
const LONGEST: &[u8] = b"PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff \
    ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n";

/// A header of version 2.
fn binary(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let len = u16::try_from(body.len()).unwrap().to_be_bytes();
    [SIGNATURE, &[command, family], &len, body].concat()
}

/// Addresses and ports of version 2, and `more` bytes behind them.
fn v4(more: usize) -> Vec<u8> {
    let ends = [192, 0, 2, 7, 198, 51, 100, 1, 0xc3, 0x57, 1, 187];
    [&ends, vec![4; more].as_slice()].concat()
}

fn v6() -> Vec<u8> {
    let source = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
    let destination = [0; 16];
    let ports = [0xc3, 0x57, 1, 187];
    [source.as_slice(), &destination, &ports].concat()
}

fn pair(listener: &TcpListener) -> Pair {
    let pair = Pair::of(listener);
    pair.client.set_nodelay(true).unwrap();
    pair.accepted.set_nodelay(true).unwrap();
    pair
}

/// The last answer on a connection: whom it names, how many requests there were, and the last of them.
fn last(watch: &mut Watch, pair: &Pair, count: usize) -> (Option<SocketAddr>, u32, Vec<u8>) {
    let ends = pair.ends();
    watch.until("answer", |watch| answers(watch, ends).len() >= count);
    watch.settle();
    let found = answers(watch, ends);
    assert_eq!(found.len(), count, "{found:?}");
    let Some(Seen::Answer {
        on_behalf_of,
        ordinal,
        request,
        ..
    }) = found.last()
    else {
        panic!("{found:?}")
    };
    (*on_behalf_of, *ordinal, request.clone())
}

#[test]
fn what_follows_a_header_is_the_first_request() {
    alone(|| {
        let mut watch = Watch::start(&config());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let four: SocketAddr = "192.0.2.7:50007".parse().unwrap();
        let six: SocketAddr = "[2001:db8::7]:50007".parse().unwrap();
        assert_eq!(LONGEST.len(), 107);
        for (header, client) in [
            (LINE, Some(four)),
            (
                b"PROXY TCP6 2001:db8::7 2001:db8::1 50007 443\r\n",
                Some(six),
            ),
            (b"PROXY UNKNOWN\r\n", None),
            (LONGEST, None),
            (&binary(0x21, 0x11, &v4(0)), Some(four)),
            (&binary(0x21, 0x11, &v4(200)), Some(four)),
            // Longer than what is kept of a request.
            (&binary(0x21, 0x11, &v4(3000)), Some(four)),
            (&binary(0x21, 0x21, &v6()), Some(six)),
            (&binary(0x21, 0x31, &[b'/'; 216]), None),
            (&binary(0x21, 0, b""), None),
            (&binary(0x20, 0x11, &v4(0)), None),
            (&binary(0x20, 0, b""), None),
        ] {
            for together in [true, false] {
                let shown = header.escape_ascii();
                let mut pair = pair(&listener);
                if together {
                    pair.ask(&[header, REQUEST].concat());
                } else {
                    pair.ask(header);
                    pair.ask(REQUEST);
                }
                pair.answer(BAD);
                let told = last(&mut watch, &pair, 1);
                assert_eq!(told, (client, 1, REQUEST.to_vec()), "{shown}");
                pair.ask(REQUEST);
                pair.answer(GOOD);
                let next = b"GET /next HTTP/1.1\r\nHost: h\r\n\r\n";
                pair.ask(&next[..7]);
                pair.ask(&next[7..]);
                pair.answer(BAD);
                let told = last(&mut watch, &pair, 2);
                assert_eq!(told, (client, 3, next.to_vec()), "{shown}");
            }
        }
        assert_eq!(opaque(&watch), 0);
    });
}

#[test]
fn a_first_request_behind_a_header_may_come_in_pieces() {
    alone(|| {
        let mut watch = Watch::start(&config());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        for cut in [1, 4, REQUEST.len() - 1] {
            let mut pair = pair(&listener);
            pair.ask(&[LINE, &REQUEST[..cut]].concat());
            pair.ask(&REQUEST[cut..]);
            pair.answer(BAD);
            assert_eq!(only(&mut watch, &pair).0, REQUEST, "{cut}");
        }
        // The gateway closes without an answer, which is one where something was asked.
        let mut idle = pair(&listener);
        idle.ask(LINE);
        let mut cut = pair(&listener);
        cut.ask(&[LINE, REQUEST].concat());
        for pair in [&idle, &cut] {
            pair.accepted.shutdown(Shutdown::Both).unwrap();
        }
        assert_eq!(only(&mut watch, &cut), (REQUEST.to_vec(), None));
        assert!(answers(&watch, idle.ends()).is_empty(), "{}", watch.trace());
        assert_eq!(opaque(&watch), 0);
    });
}

#[test]
fn a_header_may_come_before_its_socket() {
    alone(|| {
        let mut watch = Watch::start(&config());
        let listener = deferred(16);
        for header in [LINE, &binary(0x21, 0x11, &v4(9))] {
            let mut client = connect(&listener);
            client.write_all(&[header, REQUEST].concat()).unwrap();
            let mut pair = accept(&listener, client);
            pair.answer(BAD);
            assert_eq!(only(&mut watch, &pair).0, REQUEST);
            let mut client = connect(&listener);
            client.write_all(header).unwrap();
            let mut pair = accept(&listener, client);
            pair.take(header);
            pair.ask(REQUEST);
            pair.answer(BAD);
            assert_eq!(only(&mut watch, &pair).0, REQUEST);
        }
        // Nothing of the last one is taken for a header of the next.
        let mut client = connect(&listener);
        client.write_all(REQUEST).unwrap();
        let mut pair = accept(&listener, client);
        pair.answer(BAD);
        assert_eq!(last(&mut watch, &pair, 1).0, None);
        assert_eq!(opaque(&watch), 0);
    });
}

#[test]
fn a_header_counts_where_a_connection_begins_only() {
    alone(|| {
        let mut watch = Watch::start(&config());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut second = pair(&listener);
        second.ask(&[LINE, LINE, REQUEST].concat());
        second.answer(BAD);
        assert_eq!(only(&mut watch, &second).0, [LINE, REQUEST].concat());
        let mut later = pair(&listener);
        later.ask(REQUEST);
        later.answer(GOOD);
        later.ask(&[LINE, REQUEST].concat());
        later.answer(BAD);
        later.ask(REQUEST);
        later.answer(BAD);
        assert_eq!(last(&mut watch, &later, 1), (None, 2, REQUEST.to_vec()));
        let request = b"PROXY /path HTTP/1.1\r\nHost: h\r\n\r\n";
        let mut method = pair(&listener);
        method.ask(request);
        method.answer(BAD);
        assert_eq!(only(&mut watch, &method).0, request);
        assert_eq!(opaque(&watch), 0);
    });
}

#[test]
fn bad_headers_are_none() {
    alone(|| {
        let mut watch = Watch::start(&config());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let too_long = [&LONGEST[..105], b"0\r\n"].concat();
        for bad in [
            too_long.as_slice(),
            b"PROXY TCP4 192.0.2.7 198.51.100.1 50007 443\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 50007\r443\r\n",
            b"PROXY TCP5 192.0.2.7 198.51.100.1 50007 443\r\n",
        ] {
            let mut pair = pair(&listener);
            pair.ask(&[bad, REQUEST].concat());
            pair.answer(BAD);
            let (client, _, request) = last(&mut watch, &pair, 1);
            assert_eq!((client, request), (None, [bad, REQUEST].concat()));
        }
        assert_eq!(opaque(&watch), 0);
        let mut beyond = binary(0x21, 0x11, &v4(0));
        // As long as what is there, and one more.
        beyond[15] += u8::try_from(REQUEST.len() + 1).unwrap();
        let other = binary(0x31, 0x11, &v4(0));
        let short = binary(0x21, 0x21, &v4(0));
        let broken = [b"\r\n\r\n", REQUEST].concat();
        for (count, bad) in [beyond, other, short, broken].into_iter().enumerate() {
            let mut pair = pair(&listener);
            pair.ask(&[bad.as_slice(), REQUEST].concat());
            pair.answer(BAD);
            pair.ask(REQUEST);
            pair.answer(BAD);
            watch.settle();
            assert!(answers(&watch, pair.ends()).is_empty(), "{}", watch.trace());
            assert_eq!(opaque(&watch), u64::try_from(count).unwrap() + 1);
        }
    });
}

#[test]
fn a_handshake_behind_a_header_is_one() {
    alone(|| {
        let mut watch = Watch::start(&config());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        for together in [true, false] {
            let before = opaque(&watch);
            let mut pair = pair(&listener);
            if together {
                pair.ask(&[LINE, HELLO].concat());
            } else {
                pair.ask(LINE);
                pair.ask(HELLO);
            }
            pair.answer(HELLO);
            pair.ask(REQUEST);
            pair.answer(BAD);
            watch.settle();
            assert!(answers(&watch, pair.ends()).is_empty(), "{}", watch.trace());
            assert_eq!(opaque(&watch), before + 1);
        }
    });
}
