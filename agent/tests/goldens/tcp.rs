//! Closes, resets and silence on established connections, both sides of each look-alike pair.

use super::Golden;
use super::scenario::{From, GET, OK, scenario};

pub(crate) fn goldens() -> Vec<Golden> {
    vec![
        (
            "tcp/closed_on_accept_before_the_request",
            "A fresh connection is closed at once, the request comes too late and draws a reset.",
            scenario(|hop| {
                hop.open().upstream_fin().send(GET).upstream_rst();
            }),
        ),
        (
            "tcp/closed_on_accept_crossing_the_request",
            "The FIN crosses the request and acknowledges none of it.",
            scenario(|hop| {
                hop.open().send(GET).upstream_fin().upstream_rst();
            }),
        ),
        (
            "tcp/closed_on_accept_without_a_request",
            "Closed at once, and the gateway closes without having sent anything.",
            scenario(|hop| {
                hop.open().close();
            }),
        ),
        (
            "tcp/unused_connection_closed_later",
            "An unused connection is closed after a minute: it was not needed.",
            scenario(|hop| {
                hop.open().ms(60_000).close();
            }),
        ),
        (
            "tcp/closed_no_response",
            "The request is acknowledged, then the upstream closes without a byte.",
            scenario(|hop| {
                hop.open().request().ms(30).close();
            }),
        ),
        (
            "tcp/closed_no_response_reused",
            "The same on a connection that carried an exchange before: acknowledged, so not stale.",
            scenario(|hop| {
                hop.open()
                    .request()
                    .reply(OK)
                    .ms(100)
                    .request()
                    .ms(30)
                    .close();
            }),
        ),
        (
            "tcp/reset_no_response",
            "The request is acknowledged, then comes a reset.",
            scenario(|hop| {
                hop.open().request().ms(30).upstream_rst();
            }),
        ),
        (
            "tcp/reset_at_once_reused",
            "A reset right behind the acknowledged request on a reused connection leaves two causes.",
            scenario(|hop| {
                hop.open()
                    .request()
                    .reply(OK)
                    .ms(5000)
                    .request()
                    .upstream_rst();
            }),
        ),
        (
            "tcp/stale_reuse_fin_before_the_request",
            "The upstream closes the idle connection, and the gateway uses it all the same.",
            scenario(|hop| {
                hop.open().request().reply(OK).ms(5000).upstream_fin();
                hop.send(GET).upstream_rst();
            }),
        ),
        (
            "tcp/stale_reuse_fin_crosses_the_request",
            "The upstream's FIN and the next request cross.",
            scenario(|hop| {
                hop.open().request().reply(OK).ms(5000).send(GET);
                hop.upstream_fin().upstream_rst();
            }),
        ),
        (
            "tcp/stale_reuse_only_the_reset",
            "A request on an idle connection draws a reset that acknowledges nothing.",
            scenario(|hop| {
                hop.open()
                    .request()
                    .reply(OK)
                    .ms(5000)
                    .send(GET)
                    .upstream_rst();
            }),
        ),
        (
            "tcp/idle_connection_closed",
            "A pool that closes an idle connection is healthy.",
            scenario(|hop| {
                hop.open().request().reply(OK).ms(60_000).close();
            }),
        ),
        (
            "tcp/idle_connection_reset",
            "So is one that resets it.",
            scenario(|hop| {
                hop.open().request().reply(OK).ms(60_000).upstream_rst();
            }),
        ),
        (
            "tcp/gateway_resets_behind_the_response",
            "A gateway that has its response and closes with unread bytes is healthy.",
            scenario(|hop| {
                hop.open()
                    .request()
                    .reply(OK)
                    .reply(b"unread")
                    .gateway_rst();
            }),
        ),
        (
            "tcp/slow_first_byte",
            "The request is acknowledged, then nothing for two seconds, then the gateway closes.",
            scenario(|hop| {
                hop.open().request().ms(2000).gateway_fin();
            }),
        ),
        (
            "tcp/request_unacknowledged",
            "The request is sent again and again, nothing acknowledges it, the gateway closes.",
            scenario(|hop| {
                hop.open().send(GET);
                for pause in [200, 400, 800] {
                    hop.ms(pause);
                    let seq = hop.gateway_seq - u32::try_from(GET.len()).unwrap();
                    hop.segment(From::Gateway, 0x10, seq, GET);
                }
                hop.ms(1000).gateway_fin();
            }),
        ),
        (
            "tcp/zero_window",
            "The upstream's window closes inside the request and stays closed.",
            scenario(|hop| {
                hop.open();
                hop.send(b"POST /a HTTP/1.1\r\nContent-Length: 9000\r\n\r\nfirst");
                hop.upstream_window = 0;
                hop.upstream_acks().send(b"x").ms(2000).gateway_fin();
            }),
        ),
        (
            "tcp/gateway_leaves_at_once",
            "The gateway closes 20 ms behind the request: its own client left, most likely.",
            scenario(|hop| {
                hop.open().request().ms(20).gateway_fin();
            }),
        ),
    ]
}
