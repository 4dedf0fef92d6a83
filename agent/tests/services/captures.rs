//! Captures over gRPC.

use std::fs;
use std::time::Duration;

use crate::shelf::{GET, START, agent, exchange, shelf, upstream};
use crate::support::{Agent, soon};
use hopscope::serve::duration_to_proto;
use hopscope::source::Reader;
use hopscope_proto::v1 as proto;
use hopscope_proto::v1::capture_filter::Outcome;
use tonic::{Code, Status};

fn only(causes: &[&str], upstreams: &[&str], outcome: Outcome) -> proto::CaptureFilter {
    let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
    proto::CaptureFilter {
        causes: owned(causes),
        upstreams: owned(upstreams),
        since: None,
        outcome: outcome.into(),
    }
}

async fn list(agent: &Agent, filter: proto::CaptureFilter, limit: u32) -> (Vec<String>, u32) {
    let request = proto::ListCapturesRequest {
        filter: Some(filter),
        limit,
    };
    let mut client = agent.client();
    let response = soon("list", client.list_captures(request))
        .await
        .unwrap()
        .into_inner();
    let ids = response.captures.into_iter().map(|capture| capture.id);
    (ids.collect(), response.omitted)
}

/// The chunks of a pull.
async fn pull(
    agent: &Agent,
    request: proto::PullCaptureRequest,
) -> Result<Vec<proto::CaptureChunk>, Status> {
    let mut client = agent.client();
    let mut stream = soon("pull", client.pull_capture(request))
        .await?
        .into_inner();
    let mut chunks = Vec::new();
    while let Some(chunk) = soon("chunk", stream.message()).await? {
        chunks.push(chunk);
    }
    Ok(chunks)
}

fn by_id(ids: &[&str]) -> proto::PullCaptureRequest {
    proto::PullCaptureRequest {
        ids: ids.iter().map(|&id| id.to_owned()).collect(),
        filter: None,
    }
}

#[tokio::test]
async fn a_list_is_filtered_and_limited_to_the_newest() {
    let (agent, shelf) = agent().await;
    let all = proto::CaptureFilter::default();
    let ids = |places: &[usize]| {
        let ids = places.iter().map(|&place| shelf.id(place).to_owned());
        ids.collect::<Vec<_>>()
    };
    assert_eq!(list(&agent, all.clone(), 0).await, (ids(&[0, 1, 2]), 0));
    assert_eq!(list(&agent, all, 2).await, (ids(&[1, 2]), 1));
    let cases = [
        (only(&["http1.*"], &[], Outcome::Unspecified), ids(&[1])),
        (
            only(&[], &["10.0.0.7:80"], Outcome::Unspecified),
            ids(&[0, 1]),
        ),
        (only(&[], &["10.0.0.7:80"], Outcome::Healthy), ids(&[0])),
        (only(&[], &[], Outcome::Failed), ids(&[1, 2])),
        (only(&["tcp.*"], &[], Outcome::Healthy), ids(&[])),
    ];
    for (filter, expected) in cases {
        assert_eq!(list(&agent, filter, 0).await, (expected, 0));
    }
    let mut client = agent.client();
    let request = proto::ListCapturesRequest {
        filter: Some(only(&["http1.nope"], &[], Outcome::Unspecified)),
        limit: 0,
    };
    let refused = client.list_captures(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    agent.stop().await;
}

#[tokio::test]
async fn a_pull_is_one_valid_file_in_chunks() {
    let mut shelf = shelf(16 << 20);
    let large = exchange(upstream(82), GET, &vec![b'x'; 60_000]);
    let large = [large.clone(), large.clone(), large].concat();
    shelf.add(None, upstream(82), large);
    let agent = shelf.serve().await;
    let chunks = pull(&agent, proto::PullCaptureRequest::default()).await;
    let chunks = chunks.unwrap();
    let begins: Vec<_> = chunks
        .iter()
        .map(|chunk| chunk.capture_id.as_str())
        .filter(|id| !id.is_empty())
        .collect();
    assert_eq!(begins, shelf.ids);
    assert!(chunks.iter().all(|chunk| chunk.data.len() <= 64 * 1024));
    assert!(chunks.len() > begins.len());
    let file: Vec<u8> = chunks.into_iter().flat_map(|chunk| chunk.data).collect();
    assert_eq!(file, shelf.all());
    let mut reader = Reader::open(file.as_slice()).unwrap();
    let mut packets = 0;
    while reader.next_packet().unwrap().is_some() {
        packets += 1;
    }
    assert_eq!((packets, reader.cut()), (2 + 2 + 1 + 6, None));
    agent.stop().await;
}

#[tokio::test]
async fn an_id_that_is_gone_is_not_found() {
    let (agent, shelf) = agent().await;
    for unknown in ["0000000000000", "c-1", "../../etc/passwd"] {
        let refused = pull(&agent, by_id(&[shelf.id(0), unknown])).await;
        let refused = refused.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound);
        let said = format!("there is no capture {unknown}: it was deleted to make room");
        assert!(refused.message().starts_with(&said), "{refused:?}");
    }
    let both = proto::PullCaptureRequest {
        filter: Some(only(&[], &[":80"], Outcome::Unspecified)),
        ..by_id(&[shelf.id(0)])
    };
    let refused = pull(&agent, both).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    agent.stop().await;
}

#[tokio::test]
async fn what_others_do_to_the_files_is_said_and_breaks_nothing_else() {
    let (agent, shelf) = agent().await;
    let (first, second, third) = (shelf.id(0), shelf.id(1), shelf.id(2));
    shelf.damage(1);
    fs::remove_file(shelf.path(0)).unwrap();
    let refused = pull(&agent, by_id(&[first])).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    let said = format!("capture {first} is gone: its file");
    assert!(refused.message().starts_with(&said), "{refused:?}");
    let refused = pull(&agent, by_id(&[second])).await.unwrap_err();
    assert_eq!(refused.code(), Code::DataLoss);
    let said = format!("capture {second} is damaged");
    assert!(refused.message().starts_with(&said), "{refused:?}");
    assert_eq!(pull(&agent, by_id(&[third])).await.unwrap().len(), 1);
    // One that a filter chose does not keep the others back; one whose file is gone is held no more.
    let all = pull(&agent, proto::PullCaptureRequest::default()).await;
    let all: Vec<_> = all
        .unwrap()
        .into_iter()
        .map(|chunk| (chunk.capture_id, chunk.unreadable, chunk.data))
        .collect();
    let [damaged, whole] = all.as_slice() else {
        panic!("{} chunks", all.len());
    };
    assert_eq!((damaged.0.as_str(), damaged.2.len()), (second, 0));
    assert!(damaged.1.contains("is damaged"), "{}", damaged.1);
    assert_eq!(*whole, (third.to_owned(), String::new(), shelf.bytes(2)));
    agent.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_place() {
    let mut shelf = shelf(64 << 20);
    for _ in 0..8 {
        let large = exchange(upstream(83), GET, &vec![b'x'; 60_000]);
        let large = std::iter::repeat_n(large, 16).flatten().collect();
        shelf.add(None, upstream(83), large);
    }
    let agent = shelf.serve().await;
    let mut abandoned = Vec::new();
    for _ in 0..8 {
        let mut client = agent.client();
        let stream = client.pull_capture(proto::PullCaptureRequest::default());
        abandoned.push(soon("pull", stream).await.unwrap());
    }
    let refused = pull(&agent, by_id(&[shelf.id(0)])).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    drop(abandoned);
    let freed = async {
        while pull(&agent, by_id(&[shelf.id(0)])).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    soon("a place", freed).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_boost_is_limited_and_passed_on() {
    let (agent, shelf) = agent().await;
    let mut client = agent.client();
    let mut boost = async |upstream: &str, seconds, one_in| {
        let request = proto::BoostSamplingRequest {
            upstream: upstream.to_owned(),
            one_in,
            duration: Some(duration_to_proto(Duration::from_secs(seconds))),
        };
        soon("boost", client.boost_sampling(request)).await
    };
    let response = boost("10.0.0.0/8:80", 3600, 0).await.unwrap().into_inner();
    let until = response.until.unwrap().seconds;
    assert_eq!(
        (response.one_in, until),
        (1, i64::try_from(START).unwrap() + 3600)
    );
    assert_eq!(shelf.sampler.counters()[0], ("sampler_boosts", 1));
    for (patterns, seconds, said) in [
        ("shop", 60, "bad upstream `shop`: give"),
        (
            ":80",
            3601,
            "a boost cannot last 3601s: give more than nothing and at most 60 minutes",
        ),
        (":80", 0, "a boost cannot last 0ns: give"),
    ] {
        let refused = boost(patterns, seconds, 1).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().starts_with(said), "{refused:?}");
    }
    agent.stop().await;
}
