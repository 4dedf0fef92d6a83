use proptest::prelude::*;

use super::*;

/// A record of `size` bytes with its header filled in and every other byte `fill`.
fn record(kind: u16, size: usize, fill: u8) -> Vec<u8> {
    let mut out = vec![fill; size];
    put(&mut out, offset_of!(Header, kind), &kind.to_ne_bytes());
    put(
        &mut out,
        offset_of!(Header, len),
        &u32::try_from(size).unwrap().to_ne_bytes(),
    );
    put(&mut out, offset_of!(Header, time_ns), &77_u64.to_ne_bytes());
    put(&mut out, offset_of!(Header, cookie), &99_u64.to_ne_bytes());
    out
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn state(old: u32, new: u32, flags: u32) -> Vec<u8> {
    let mut out = record(kind::STATE, size_of::<StateRecord>(), 0);
    put(
        &mut out,
        offset_of!(StateRecord, old_state),
        &old.to_ne_bytes(),
    );
    put(
        &mut out,
        offset_of!(StateRecord, new_state),
        &new.to_ne_bytes(),
    );
    put(
        &mut out,
        offset_of!(StateRecord, sk_err),
        &111_i32.to_ne_bytes(),
    );
    put(
        &mut out,
        offset_of!(StateRecord, bytes_acked),
        &5_u64.to_ne_bytes(),
    );
    put(
        &mut out,
        offset_of!(StateRecord, srtt_us),
        &6_u32.to_ne_bytes(),
    );
    put(
        &mut out,
        offset_of!(StateRecord, flags),
        &flags.to_ne_bytes(),
    );
    put(
        &mut out,
        offset_of!(StateRecord, tid),
        &44_u32.to_ne_bytes(),
    );
    put(
        &mut out,
        offset_of!(StateRecord, turn),
        &3_u32.to_ne_bytes(),
    );
    out
}

fn segment(payload: &[u8]) -> Vec<u8> {
    let mut out = record(kind::SEGMENT, size_of::<SegmentHeader>() + payload.len(), 0);
    let captured = u32::try_from(payload.len()).unwrap();
    put(
        &mut out,
        offset_of!(SegmentHeader, captured),
        &captured.to_ne_bytes(),
    );
    put(
        &mut out,
        offset_of!(SegmentHeader, wire_len),
        &9000_u32.to_ne_bytes(),
    );
    put(
        &mut out,
        offset_of!(SegmentHeader, egress),
        &1_u32.to_ne_bytes(),
    );
    put(&mut out, size_of::<SegmentHeader>(), payload);
    out
}

fn library(what: u32) -> Vec<u8> {
    let mut out = record(kind::LIBRARY, size_of::<LibraryRecord>(), 0);
    for (at, value) in [
        (offset_of!(LibraryRecord, what), what),
        (offset_of!(LibraryRecord, library), 20),
        (offset_of!(LibraryRecord, value), 1116),
    ] {
        put(&mut out, at, &value.to_ne_bytes());
    }
    out
}

#[test]
fn a_library_says_one_of_three_things() {
    let said = |what| match decode(&library(what)).map(|record| record.body) {
        Ok(Body::Library(fact)) => Ok(fact),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error),
    };
    let verified = |asked| LibraryFact::Verified { code: 1116, asked };
    assert_eq!(
        said(library::RAISED),
        Ok(LibraryFact::Raised {
            library: 20,
            reason: 1116
        })
    );
    assert_eq!(said(library::REFUSED), Ok(verified(false)));
    assert_eq!(said(library::ASKED), Ok(verified(true)));
    assert_eq!(said(4), Err(Malformed::Library(4)));
}

/// One good record of every kind.
fn every_kind() -> Vec<Vec<u8>> {
    let mut all = vec![
        state(2, 7, 15),
        segment(b"bytes"),
        library(library::RAISED),
        record(kind::OPEN, size_of::<OpenRecord>(), 1),
        record(kind::CONNECT, size_of::<ConnectRecord>(), 1),
        record(kind::CLIENT_LEFT, size_of::<OpenRecord>(), 1),
        record(kind::UNIX_CONNECT, size_of::<UnixConnectRecord>(), 0),
    ];
    for kind in [
        kind::RESET_IN,
        kind::RESET_OUT,
        kind::RESET_PEER,
        kind::RETRANSMIT,
        kind::ERROR,
    ] {
        all.push(record(kind, size_of::<SocketRecord>(), 1));
    }
    all
}

#[test]
fn every_kind_is_read() {
    for bytes in every_kind() {
        let record = decode(&bytes).unwrap();
        assert_eq!((record.time_ns, record.cookie), (77, 99));
    }
}

#[test]
fn values_that_could_not_be_read_are_not_taken_for_zero() {
    let all = state(2, 7, flag::SK_ERR | flag::BYTES_ACKED | flag::SRTT);
    assert_eq!(
        decode(&all).unwrap().body,
        Body::State {
            old: TcpState::SynSent,
            new: TcpState::Close,
            sk_err: Some(111),
            bytes_acked: Some(5),
            srtt_us: Some(6),
            turn: Turn {
                thread: 44,
                number: 3,
            },
        }
    );
    let Body::State {
        sk_err,
        bytes_acked,
        srtt_us,
        ..
    } = decode(&state(2, 7, 0)).unwrap().body
    else {
        panic!("another kind of record");
    };
    assert_eq!((sk_err, bytes_acked, srtt_us), (None, None, None));
    let unknown = record(kind::ERROR, size_of::<SocketRecord>(), 0);
    assert_eq!(decode(&unknown).unwrap().body, Body::Error { errno: None });
}

#[test]
fn addresses_and_names_are_read() {
    let mut bytes = record(kind::OPEN, size_of::<OpenRecord>(), 0);
    let ends = offset_of!(OpenRecord, ends);
    let v4 = std::net::Ipv4Addr::new(192, 0, 2, 7)
        .to_ipv6_mapped()
        .octets();
    put(&mut bytes, ends + offset_of!(Endpoints, remote_addr), &v4);
    put(
        &mut bytes,
        ends + offset_of!(Endpoints, remote_port),
        &8080_u16.to_ne_bytes(),
    );
    let caller = offset_of!(OpenRecord, caller);
    put(&mut bytes, caller + offset_of!(Caller, comm), b"nginx\0old");
    let Body::Open { ends, caller, .. } = decode(&bytes).unwrap().body else {
        panic!("another kind of record");
    };
    assert_eq!(ends.remote, "192.0.2.7:8080".parse().unwrap());
    assert_eq!(ends.local, "[::]:0".parse().unwrap());
    assert_eq!(comm_text(&caller.comm), "nginx");
}

#[test]
fn a_goroutine_is_known_by_a_number_that_is_not_zero() {
    for (id, parent, expected) in [
        (0_u64, 0_u64, None),
        (0, 7, None),
        (8, 7, Some(Goroutine { id: 8, parent: 7 })),
        (1, 0, Some(Goroutine { id: 1, parent: 0 })),
    ] {
        for (kind, size, at) in [
            (
                kind::OPEN,
                size_of::<OpenRecord>(),
                offset_of!(OpenRecord, goroutine),
            ),
            (
                kind::CONNECT,
                size_of::<ConnectRecord>(),
                offset_of!(ConnectRecord, goroutine),
            ),
            (
                kind::UNIX_CONNECT,
                size_of::<UnixConnectRecord>(),
                offset_of!(UnixConnectRecord, goroutine),
            ),
            (
                kind::CLIENT,
                size_of::<ClientRecord>(),
                offset_of!(ClientRecord, goroutine),
            ),
        ] {
            let mut bytes = record(kind, size, 0);
            put(&mut bytes, at, &id.to_ne_bytes());
            put(&mut bytes, at + size_of::<u64>(), &parent.to_ne_bytes());
            let goroutine = match decode(&bytes).unwrap().body {
                Body::Open { goroutine, .. }
                | Body::Connect { goroutine, .. }
                | Body::UnixConnect { goroutine, .. }
                | Body::Client(ClientSaw { goroutine, .. }) => goroutine,
                other => panic!("{other:?}"),
            };
            assert_eq!(goroutine, expected, "{kind}");
        }
    }
}

#[test]
fn a_departure_names_thread_and_turn() {
    for (kind, departure) in [
        (kind::CLIENT_LEFT, Departure::Unknown),
        (kind::CLIENT_LEFT_WAITING, Departure::Waiting),
        (kind::CLIENT_LEFT_ANSWERED, Departure::Answered),
    ] {
        let mut bytes = record(kind, size_of::<OpenRecord>(), 0);
        let caller = offset_of!(OpenRecord, caller);
        let (tid, turn) = (offset_of!(Caller, tid), offset_of!(Caller, turn));
        put(&mut bytes, caller + tid, &45_u32.to_ne_bytes());
        put(&mut bytes, caller + turn, &9_u32.to_ne_bytes());
        let turn = Turn {
            thread: 45,
            number: 9,
        };
        let left = Body::ClientLeft { turn, departure };
        assert_eq!(decode(&bytes).unwrap().body, left);
    }
}

#[test]
fn a_unix_path_has_the_length_that_was_given() {
    let mut bytes = record(kind::UNIX_CONNECT, size_of::<UnixConnectRecord>(), 0);
    let (path, len) = (
        offset_of!(UnixConnectRecord, path),
        offset_of!(UnixConnectRecord, path_len),
    );
    put(&mut bytes, path, b"/run/app.sock");
    for (given, expected) in [(13, Some(13)), (108, Some(108)), (0, Some(0)), (109, None)] {
        put(&mut bytes, len, &u32::to_ne_bytes(given));
        let found = decode(&bytes).ok().map(|record| match record.body {
            Body::UnixConnect { path, .. } => path.len(),
            other => panic!("{other:?}"),
        });
        assert_eq!(found, expected);
    }
}

#[test]
fn a_segment_carries_headers_of_records_behind_the_room_for_its_bytes() {
    let marks = size_of::<SegmentHeader>() + HEADER_ROOM as usize;
    let mut bytes = record(kind::SEGMENT, marks + 3 * size_of::<RecordMark>(), 0xee);
    let put_u32 = |bytes: &mut Vec<u8>, at, value: u32| put(bytes, at, &value.to_ne_bytes());
    put_u32(&mut bytes, offset_of!(SegmentHeader, captured), 100);
    put_u32(&mut bytes, offset_of!(SegmentHeader, marks), 2);
    for (n, place) in [(0, 7), (1, 16_400)] {
        let at = marks + n * size_of::<RecordMark>();
        put_u32(&mut bytes, at + offset_of!(RecordMark, at), place);
        put(
            &mut bytes,
            at + offset_of!(RecordMark, header),
            b"\x17\x03\x03\x40\x11",
        );
    }
    let Body::Segment {
        bytes: captured,
        records,
        ..
    } = decode(&bytes).unwrap().body
    else {
        panic!("no segment");
    };
    assert_eq!(captured, [0xee; 100]);
    let head = &b"\x17\x03\x03\x40\x11"[..];
    assert_eq!(
        records.iter().collect::<Vec<_>>(),
        [(7, head), (16_400, head)]
    );
    // More of either than there is room for.
    for (field, most) in [
        (offset_of!(SegmentHeader, captured), HEADER_ROOM),
        (offset_of!(SegmentHeader, marks), 3),
    ] {
        let mut wrong = bytes.clone();
        put_u32(&mut wrong, field, most);
        assert!(decode(&wrong).is_ok());
        for more in [most + 1, u32::MAX] {
            put_u32(&mut wrong, field, more);
            assert!(decode(&wrong).is_err());
        }
    }
}

#[test]
fn a_segment_carries_its_bytes() {
    let bytes = segment(b"bytes");
    assert_eq!(
        decode(&bytes).unwrap().body,
        Body::Segment {
            egress: true,
            wire_len: 9000,
            bytes: b"bytes",
            records: RecordHeads::NONE,
        }
    );
    let mut longer = bytes.clone();
    longer.resize(bytes.len() + 100, 0xee);
    assert_eq!(
        decode(&longer),
        decode(&bytes),
        "what lies behind the record is left alone"
    );
}

#[test]
fn every_truncation_is_refused() {
    for bytes in every_kind() {
        for cut in 0..bytes.len() {
            assert!(decode(&bytes[..cut]).is_err(), "{cut} of {}", bytes.len());
            // The same with a header that admits it.
            let mut honest = bytes[..cut].to_vec();
            if cut >= size_of::<Header>() {
                put(
                    &mut honest,
                    offset_of!(Header, len),
                    &u32::try_from(cut).unwrap().to_ne_bytes(),
                );
                assert!(decode(&honest).is_err(), "{cut} of {}", bytes.len());
            }
        }
    }
}

#[test]
fn unknown_numbers_are_refused() {
    assert_eq!(decode(&record(99, 64, 0)), Err(Malformed::Kind(99)));
    assert_eq!(decode(&record(0, 64, 0)), Err(Malformed::Kind(0)));
    assert_eq!(decode(&state(2, 13, 0)), Err(Malformed::State(13)));
    assert_eq!(decode(&state(0, 7, 0)), Err(Malformed::State(0)));
    let mut lying = segment(b"bytes");
    put(
        &mut lying,
        offset_of!(SegmentHeader, captured),
        &4_u32.to_ne_bytes(),
    );
    assert!(decode(&lying).is_err());
}

proptest! {
    #[test]
    fn random_bytes_never_panic(mut bytes: Vec<u8>, kind in 0_u16..12, len in 0_u32..200) {
        let _ = decode(&bytes);
        if bytes.len() >= size_of::<Header>() {
            put(&mut bytes, offset_of!(Header, kind), &kind.to_ne_bytes());
            put(&mut bytes, offset_of!(Header, len), &len.to_ne_bytes());
            let _ = decode(&bytes);
        }
    }
}

/// A record of what a client got, with these lengths of request and response.
fn client_record(request_len: u32, response_len: u32, task_flags: u32) -> Vec<u8> {
    let mut bytes = vec![0; size_of::<ClientRecord>()];
    let len = u32::try_from(bytes.len()).unwrap();
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(offset_of!(Header, kind), &kind::CLIENT.to_ne_bytes());
    put(offset_of!(Header, len), &len.to_ne_bytes());
    put(offset_of!(Header, time_ns), &900_u64.to_ne_bytes());
    put(
        offset_of!(ClientRecord, requested_ns),
        &400_u64.to_ne_bytes(),
    );
    put(
        offset_of!(ClientRecord, request_len),
        &request_len.to_ne_bytes(),
    );
    put(
        offset_of!(ClientRecord, response_len),
        &response_len.to_ne_bytes(),
    );
    put(
        offset_of!(ClientRecord, task_flags),
        &task_flags.to_ne_bytes(),
    );
    put(offset_of!(ClientRecord, exit_code), &9_u32.to_ne_bytes());
    put(offset_of!(ClientRecord, request), b"GET /");
    put(offset_of!(ClientRecord, response), b"HTTP/1.1 502");
    bytes
}

#[test]
fn what_a_client_got_is_read_within_its_bounds() {
    let bytes = client_record(5, 12, 0);
    let Ok(Record {
        body: Body::Client(saw),
        ..
    }) = decode(&bytes)
    else {
        panic!("{:?}", decode(&bytes))
    };
    assert_eq!(
        (saw.request, saw.response),
        (&b"GET /"[..], &b"HTTP/1.1 502"[..])
    );
    assert_eq!((saw.waited_ns, saw.exit_code), (500, None));

    let bytes = client_record(0, 0, PF_EXITING);
    let read = decode(&bytes).unwrap();
    assert!(matches!(read.body, Body::Client(saw) if saw.exit_code == Some(9)));

    for (request, response) in [(1025, 0), (0, 257), (u32::MAX, u32::MAX)] {
        let bytes = client_record(request, response, 0);
        assert!(matches!(decode(&bytes), Err(Malformed::Length { .. })));
    }
    let mut bytes = client_record(1024, 256, 0);
    for (len, read) in [(0, Some(0)), (108, Some(108)), (109, None)] {
        put(
            &mut bytes,
            offset_of!(ClientRecord, proxied_len),
            &u32::to_ne_bytes(len),
        );
        let proxied = match decode(&bytes).map(|record| record.body) {
            Ok(Body::Client(saw)) => Some(saw.proxied.len()),
            _ => None,
        };
        assert_eq!(proxied, read);
    }
    let bytes = client_record(1024, 256, 0);
    assert!(decode(&bytes).is_ok());
    assert!(decode(&bytes[..bytes.len() - 1]).is_err());
}

#[test]
fn word_of_a_gateway_names_its_process() {
    let mut bytes = record(kind::ARRIVAL, size_of::<ArrivalRecord>(), 0);
    let pid = offset_of!(ArrivalRecord, caller) + offset_of!(Caller, pid);
    put(&mut bytes, pid, &4711_u32.to_ne_bytes());
    assert_eq!(arrival(&bytes).unwrap().pid, 4711);
    assert!(arrival(&bytes[..bytes.len() - 1]).is_err());
    let other = record(kind::OPEN, size_of::<ArrivalRecord>(), 0);
    assert!(arrival(&other).is_err());
}

proptest! {
    #[test]
    fn word_of_a_gateway_may_be_anything(bytes in proptest::collection::vec(any::<u8>(), 0..96)) {
        let _ = arrival(&bytes);
    }
}
