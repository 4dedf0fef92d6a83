//! Which events a filter lets through, and which filters are refused.

use crate::support;
use hopscope::model::{Cause, HopEvent, Target, Timestamp, UpstreamPattern};
use hopscope::serve::{Filter, FilterError};

fn passes(causes: &[&str], upstreams: &[&str], event: &HopEvent) -> bool {
    Filter::parse(causes, upstreams, None)
        .unwrap()
        .matches(event)
}

#[test]
fn causes_by_id_and_by_family() {
    let event = support::event(1);
    assert!(passes(&[], &[], &event));
    assert!(passes(&["tcp.connect_refused"], &[], &event));
    assert!(passes(&["dns.*", "tcp.*"], &[], &event));
    assert!(!passes(&["tcp.connect_blackholed", "http1.*"], &[], &event));
    for bad in [
        "tcp",
        "tcp.",
        "tc.*",
        "*",
        ".*",
        "tcp.connect_*",
        "TCP.*",
        "",
    ] {
        let error = Filter::parse(&[bad], &[] as &[&str], None).unwrap_err();
        assert_eq!(error, FilterError::Cause(bad.to_owned()));
        assert!(
            error
                .to_string()
                .starts_with(&format!("unknown cause `{bad}`: give an id"))
        );
    }
}

#[test]
fn upstreams_behind_unix_sockets() {
    let inet = support::event(1);
    let unix = HopEvent {
        upstream: Target::Unix("/run/app.sock".into()).into(),
        ..support::event(1)
    };
    assert!(passes(&[], &["unix:/run/app.sock"], &unix));
    assert!(passes(&[], &["10.0.0.9", "unix:/run/app.sock"], &unix));
    assert!(!passes(&[], &["unix:/run/other.sock"], &unix));
    assert!(!passes(&[], &["unix:/run/app.sock"], &inet));
    for any in ["0.0.0.0/0", "::/0", ":8001"] {
        assert!(!passes(&[], &[any], &unix), "{any}");
    }
}

#[test]
fn upstreams_by_address_network_and_port() {
    let matches = |pattern: &str, upstream: &str| {
        let pattern: UpstreamPattern = pattern.parse().unwrap();
        pattern.matches(upstream.parse().unwrap())
    };
    for pattern in [
        "10.1.2.3",
        "10.1.2.3:80",
        "10.1.2.3/32:80",
        "10.1.0.0/16",
        "10.0.0.0/8:80",
        "0.0.0.0/0",
        "[10.1.2.3]:80",
    ] {
        assert!(matches(pattern, "10.1.2.3:80"), "{pattern}");
        assert!(
            matches(pattern, "[::ffff:10.1.2.3]:80"),
            "{pattern}, mapped"
        );
        assert!(!matches(pattern, "[2001:db8::1]:80"), "{pattern}");
    }
    for pattern in [
        "10.1.2.4",
        "10.1.2.3:81",
        "10.1.2.2/32",
        "10.2.0.0/16",
        "::/0",
        "11.0.0.0/8:80",
    ] {
        assert!(!matches(pattern, "10.1.2.3:80"), "{pattern}");
    }
    for pattern in [
        "2001:db8::1",
        "[2001:db8::1]:80",
        "2001:db8::/32",
        "[2001:db8::/32]:80",
        "[2001:db8::]/32:80",
        "[2001:db8::1]",
        "::/0",
        ":80",
        "*:80",
    ] {
        assert!(matches(pattern, "[2001:db8::1]:80"), "{pattern}");
    }
    for pattern in [":81", "[2001:db8::1]:81", "2001:db9::/32", "2001:db8::2"] {
        assert!(!matches(pattern, "[2001:db8::1]:80"), "{pattern}");
    }
}

#[test]
fn a_bad_upstream_is_named_with_the_accepted_forms() {
    for bad in [
        "",
        "shop",
        "10.0.0.1:",
        "10.0.0.1:x",
        "10.0.0.1:65536",
        "10.0.0.1:+80",
        "10.0.0.0/33",
        "10.0.0.0/",
        "10.0.0/8",
        "::/129",
        "[::1",
        "[::1]80",
        "[::1]:",
        ":",
        "*",
        "10.0.0.1/8/8",
    ] {
        let error = bad.parse::<UpstreamPattern>().unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "bad upstream `{bad}`: give ADDRESS, ADDRESS:PORT, CIDR, CIDR:PORT or :PORT, with \
                 IPv6 in brackets before a port, such as 10.0.0.0/8:8080 or [2001:db8::1]:80"
            )
        );
    }
}

#[test]
fn since_includes_its_own_moment() {
    let event = support::event(1);
    let since = |nanos| {
        let none: &[&str] = &[];
        Filter::parse(none, none, Some(Timestamp::from_nanos(nanos))).unwrap()
    };
    let at = event.time.as_nanos();
    assert!(since(at).matches(&event));
    assert!(!since(at + 1).matches(&event));
}

#[test]
fn all_three_must_hold() {
    let event = support::event(1);
    assert_eq!(event.cause, Cause::TcpConnectRefused);
    assert!(passes(&["tcp.*"], &["10.0.0.7:8001"], &event));
    assert!(!passes(&["tcp.*"], &["10.0.0.7:8002"], &event));
    assert!(!passes(&["dns.*"], &["10.0.0.7:8001"], &event));
}
