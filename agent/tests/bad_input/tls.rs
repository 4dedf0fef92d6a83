//! TLS that keeps a reader busy: records without end, of the smallest size, and certificates of nothing.

use hopscope::limits::Limits;

use crate::feed::Feed;
use crate::measure::assert_linear;

/// A ClientHello of TLS 1.2 that offers one cipher suite.
pub(crate) fn client_hello() -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0xc0, 0x2f, 1, 0]);
    let mut hello = vec![22, 3, 1, 0, 4 + body.len().to_le_bytes()[0], 1, 0, 0];
    hello.push(body.len().to_le_bytes()[0]);
    hello.extend(body);
    hello
}

#[test]
fn very_many_tiny_records() {
    // A piece of a message, an empty piece of data, and a warning that the user canceled.
    const RECORDS: &[u8] = &[22, 3, 3, 0, 1, 1, 23, 3, 3, 0, 0, 21, 3, 3, 0, 2, 1, 90];
    assert_linear(2_000_000 / 4, |bytes| {
        let mut feed = Feed::open();
        feed.up(&client_hello());
        feed.down_repeated(RECORDS, bytes);
        feed.up_repeated(RECORDS, bytes);
        assert_eq!(feed.stats().hops_tls, 1);
        feed.causes();
    });
}

#[test]
fn very_many_certificates_of_nothing() {
    // A chain of fifty certificates, each of four bytes.
    let mut message = vec![11, 0, 1, 0x61, 0, 1, 0x5e];
    message.extend([0, 0, 4, 0x30, 2, 5, 0].repeat(50));
    let mut record = vec![22, 3, 3, 1, 0x65];
    record.extend(message);
    assert_linear(4_000_000 / 4, |bytes| {
        let mut feed = Feed::new(Limits::default());
        feed.up(&client_hello());
        feed.down_repeated(&record, bytes);
        feed.causes();
    });
}
