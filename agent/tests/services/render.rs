//! What people and programs are shown of an event, letter by letter.

use crate::support;
use hopscope::cli::render::{event_json, event_text, printable};
use hopscope::model::{EvidenceSource, Proof};

#[test]
fn json_keys_are_the_designs() {
    assert_eq!(
        event_json(&support::full_event()).unwrap(),
        concat!(
            r#"{"id":"event-0","time":"2023-11-14T22:13:20.000000000Z","node":"gw1","#,
            r#""cause":"tcp.closed_no_response","proof":"underdetermined","#,
            r#""rivals":["tcp.reset_no_response","pool.stale_reuse"],"#,
            r#""splitter":"the upstream's own log","proxy_error":"connection_terminated","#,
            r#""recommended_status":502,"fault_side":"both","phase":"response_head","#,
            r#""upstream":{"address":"2001:db8::7","port":8080,"name":"shop.internal"},"#,
            r#""local":{"address":"2001:db8::1","port":41000},"#,
            r#""gateway":{"pid":412,"comm":"nginx","netns":4026531840,"#,
            r#""cgroup":"/system.slice/nginx.service","container_id":"0123456789ab"},"#,
            r#""exchange":{"method":"GET","path":"/cart","host":"shop.example","#,
            r#""request_id":"r-1","#,
            r#""traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01","#,
            r#""status":200,"ordinal":3,"first_byte_ms":1.5,"duration_ms":12.25,"#,
            r#""request_bytes":321,"response_bytes":17},"#,
            r#""connection":{"reused":true,"age_ms":2500.0,"idle_ms":1000.0,"rtt_us":150,"#,
            r#""syn_retransmits":1,"retransmits":2},"#,
            r#""tls":{"version":"TLS 1.3","cipher":"TLS_AES_128_GCM_SHA256","sni":"shop.internal","#,
            r#""source":"packet"},"#,
            r#""evidence":[{"source":"packet","what":"fin_before_response","offset":17,"#,
            r#""bytes":"SFRUUC8xLjEgMjAwIE9LDQo=","text":"FIN in the middle of the head"}],"#,
            r#""rejected_by":["HAProxy 2.6 (502)"],"tolerated_by":["nginx 1.22"],"#,
            r#""capture_id":"c-9","#,
            r#""completeness":{"lost_segments":4,"truncated":true,"mid_stream":true},"#,
            r#""gateway_answer":{"status":502,"client":{"address":"198.51.100.7","port":50123},"#,
            r#""time":"2023-11-14T22:13:20.000000000Z","method":"GET","path":"/shop/cart","#,
            r#""host":"shop.example","request_id":"r-1","latency_ms":3.25,"#,
            r#""attempts":[{"event":"e-1","cause":"tcp.connect_refused","#,
            r#""upstream":{"address":"none","port":0}}],"candidates":["e-2"],"contested":true},"#,
            r#""hidden_from_client":true}"#,
        )
    );
}

#[test]
fn json_leaves_out_what_is_not_known() {
    assert_eq!(
        event_json(&support::event(1)).unwrap(),
        concat!(
            r#"{"id":"event-1","time":"2023-11-14T22:13:21.000000000Z","node":"gw1","#,
            r#""cause":"tcp.connect_refused","proof":"proven","#,
            r#""proxy_error":"connection_refused","recommended_status":502,"#,
            r#""fault_side":"upstream","phase":"connect","#,
            r#""upstream":{"address":"10.0.0.7","port":8001},"#,
            r#""connection":{"reused":false,"age_ms":0.0,"syn_retransmits":0,"retransmits":0},"#,
            r#""evidence":[{"source":"kernel","what":"connect_errno","#,
            r#""text":"connect() returned ECONNREFUSED (111)"}],"#,
            r#""completeness":{"lost_segments":0,"truncated":false,"mid_stream":false}}"#,
        )
    );
}

#[test]
fn text_is_aligned_with_its_evidence_below() {
    let minimal = event_text(&support::event(1), false);
    let full = event_text(&support::full_event(), false);
    let lines: Vec<_> = minimal.lines().chain(full.lines()).collect();
    assert_eq!(
        lines,
        [
            "2023-11-14T22:13:21.000Z  tcp.connect_refused             proven           \
             10.0.0.7:8001          -",
            "    kernel        connect() returned ECONNREFUSED (111)",
            "2023-11-14T22:13:20.000Z  tcp.closed_no_response          underdetermined  \
             [2001:db8::7]:8080 (shop.internal)  nginx[412]  GET shop.example/cart -> 200 after 12.2 ms",
            "    packet        FIN in the middle of the head (byte 17)",
            "    client        got 502 for GET /shop/cart after 3.2 ms, or for another of 2 events, unless another client was told of this",
            "    rejected by   HAProxy 2.6 (502)",
            "    tolerated by  nginx 1.22",
            "    or else       tcp.reset_no_response, pool.stale_reuse",
            "    to tell       the upstream's own log",
            "    tls           TLS 1.3, TLS_AES_128_GCM_SHA256, server name shop.internal",
            "    capture       c-9",
            "    incomplete    4 segments lost, payload captured short, joined mid-stream",
        ]
    );
}

#[test]
fn colours_change_nothing_but_escapes() {
    for proof in [Proof::Proven, Proof::Inferred, Proof::Underdetermined] {
        let mut event = support::full_event();
        event.proof = proof;
        let coloured = event_text(&event, true);
        assert!(coloured.contains("\u{1b}["));
        let mut plain = String::new();
        let mut rest = coloured.as_str();
        while let Some((before, escape)) = rest.split_once("\u{1b}[") {
            plain.push_str(before);
            rest = escape.split_once('m').unwrap().1;
        }
        plain.push_str(rest);
        assert_eq!(plain, event_text(&event, false));
    }
}

#[test]
fn bytes_of_the_wire_cannot_drive_the_terminal() {
    let hostile = "a\u{1b}[2Jb\r\nc\u{9b}d\u{202e}e";
    assert_eq!(printable(hostile), "a\\u{1b}[2Jb\\r\\nc\\u{9b}d\\u{202e}e");
    assert_eq!(printable("/straße?q=\"x\""), "/straße?q=\"x\"");
    let mut event = support::full_event();
    event.evidence[0].text = hostile.to_owned();
    event.evidence[0].source = EvidenceSource::TlsLibrary;
    event.splitter = Some(hostile.to_owned());
    event.tls.as_mut().unwrap().sni = Some(hostile.to_owned());
    event.capture_id = Some(hostile.to_owned());
    event.rejected_by = vec![hostile.to_owned()];
    let exchange = event.exchange.as_mut().unwrap();
    for field in [&mut exchange.method, &mut exchange.host, &mut exchange.path] {
        *field = Some(hostile.to_owned());
    }
    event.gateway.as_mut().unwrap().comm = hostile.into();
    let answer = event.gateway_answer.as_mut().unwrap();
    (answer.method, answer.path) = (Some(hostile.to_owned()), Some(hostile.to_owned()));
    let text = event_text(&event, false);
    assert_eq!(text.lines().count(), 10, "{text:?}");
    assert!(
        !text.contains(|c: char| c.is_control() && c != '\n'),
        "{text:?}"
    );
}
