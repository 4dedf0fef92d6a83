//! The agent's services over loopback.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::{ANY_PORT, Agent, counter, event, full_event, soon, until};
use hopscope::engine::{Traffic, UpstreamTally};
use hopscope::model::Timestamp;
use hopscope::serve::{HubConfig, Listener, StatusReport, from_proto, timestamp_to_proto};
use hopscope::stats::ProbeStatus;
use hopscope_proto::v1 as proto;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

fn only(causes: &[&str], upstreams: &[&str]) -> proto::EventFilter {
    proto::EventFilter {
        causes: causes.iter().map(|&cause| cause.to_owned()).collect(),
        upstreams: upstreams
            .iter()
            .map(|&upstream| upstream.to_owned())
            .collect(),
        unexplained: false,
        since: None,
    }
}

fn ids(response: proto::QueryResponse) -> Vec<String> {
    response.events.into_iter().map(|event| event.id).collect()
}

#[tokio::test]
async fn a_subscriber_gets_what_its_filter_lets_through() {
    let agent = Agent::start(HubConfig::default()).await;
    agent.hub.publish(event(1));
    let request = proto::SubscribeRequest {
        filter: Some(only(&["tcp.closed_no_response"], &["2001:db8::/32"])),
    };
    let mut stream = agent
        .client()
        .subscribe(request)
        .await
        .unwrap()
        .into_inner();
    agent.hub.publish(event(2));
    agent.hub.publish(full_event());
    let message = soon("event", stream.message()).await.unwrap().unwrap();
    assert_eq!(from_proto(message), Ok(full_event()));

    agent.stop().await;
    let ended = soon("end", stream.message()).await.unwrap_err();
    assert_eq!(
        (ended.code(), ended.message()),
        (Code::Unavailable, "the agent is stopping")
    );
}

#[tokio::test]
async fn a_query_gives_the_newest_of_a_capped_ring_oldest_first() {
    let agent = Agent::start(HubConfig {
        recent: 4,
        ..HubConfig::default()
    })
    .await;
    for number in 0..6 {
        agent.hub.publish(event(number));
    }
    let mut client = agent.client();
    let mut query = async |filter, limit| {
        let request = proto::QueryRequest { filter, limit };
        client.query(request).await.unwrap().into_inner()
    };
    assert_eq!(
        ids(query(None, 0).await),
        ["event-2", "event-3", "event-4", "event-5"]
    );
    let limited = query(None, 3).await;
    assert_eq!(limited.omitted, 1);
    assert_eq!(ids(limited), ["event-3", "event-4", "event-5"]);
    assert_eq!(
        ids(query(Some(only(&[], &["10.0.0.7:8003"])), 0).await),
        ["event-3"]
    );
    assert!(
        query(Some(only(&["http1.*"], &[])), 0)
            .await
            .events
            .is_empty()
    );
    let since = Some(proto::EventFilter {
        since: Some(timestamp_to_proto(event(5).time)),
        ..proto::EventFilter::default()
    });
    assert_eq!(ids(query(since, 0).await), ["event-5"]);
    assert_eq!(counter(&agent.hub, "events_published"), 6);
    assert_eq!(counter(&agent.hub, "events_recent_evicted"), 2);
    agent.stop().await;
}

#[tokio::test]
async fn a_response_stays_below_what_clients_accept() {
    let agent = Agent::start(HubConfig::default()).await;
    for number in 0..100 {
        let mut event = event(number);
        event.evidence[0].bytes = vec![7; 64 * 1024];
        agent.hub.publish(event);
    }
    // This client has the usual limit of 4 MiB and would fail.
    let response = agent
        .client()
        .query(proto::QueryRequest::default())
        .await
        .unwrap();
    let response = response.into_inner();
    assert_eq!(response.events.len() + response.omitted as usize, 100);
    assert!(response.events.len() >= 60, "{}", response.events.len());
    assert_eq!(response.events.last().unwrap().id, "event-99");
    agent.stop().await;
}

#[tokio::test]
async fn bad_filters_are_refused_with_their_value() {
    let agent = Agent::start(HubConfig::default()).await;
    let mut client = agent.client();
    let cases = [
        (
            Some(only(&["tcp.nonsense"], &[])),
            "unknown cause `tcp.nonsense`: give an id",
        ),
        (
            Some(only(&[], &["shop:80"])),
            "bad upstream `shop:80`: give ADDRESS, ADDRESS:PORT, CIDR",
        ),
        (
            Some(proto::EventFilter {
                since: Some(prost_types::Timestamp {
                    seconds: -1,
                    nanos: 0,
                }),
                ..proto::EventFilter::default()
            }),
            "bad time in `since`: give one between",
        ),
    ];
    for (filter, message) in cases {
        let request = proto::SubscribeRequest {
            filter: filter.clone(),
        };
        let subscribed = client.subscribe(request).await.unwrap_err();
        let queried = client
            .query(proto::QueryRequest { filter, limit: 0 })
            .await
            .unwrap_err();
        for status in [subscribed, queried] {
            assert_eq!(status.code(), Code::InvalidArgument);
            assert!(status.message().starts_with(message), "{status}");
        }
    }
    agent.stop().await;
}

#[tokio::test]
async fn status_tells_what_is_attached_and_every_counter() {
    let agent = Agent::start(HubConfig {
        node: Arc::from("gw1"),
        kernel: "6.1.0".to_owned(),
        started: Timestamp::from_nanos(5_000_000_007),
        ..HubConfig::default()
    })
    .await;
    let woken = Arc::new(AtomicBool::new(false));
    let report = StatusReport {
        probes: vec![ProbeStatus {
            name: "reset",
            attached: false,
            reason: "no such tracepoint".to_owned(),
        }],
        counters: vec![("live_ring_full".into(), 3)],
        upstreams: vec![(
            "10.0.0.2:8080".parse().unwrap(),
            UpstreamTally {
                exchanges: 7,
                failures: 2,
                traffic: Traffic {
                    connects: 3,
                    statuses: [0, 5, 0, 0, 1],
                    request_bytes: 700,
                    ..Traffic::default()
                },
                ..UpstreamTally::default()
            },
        )],
    };
    // Stands for the engine's loop, which reports when it is woken.
    let (waker, reporter) = (Arc::clone(&woken), Arc::downgrade(&agent.hub));
    agent.hub.set_waker(move || {
        waker.store(true, Ordering::Relaxed);
        if let Some(hub) = reporter.upgrade() {
            assert!(hub.status_wanted());
            hub.set_status(report.clone());
        }
    });
    let status = agent
        .client()
        .status(proto::StatusRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(woken.load(Ordering::Relaxed));
    assert_eq!(status.version, env!("CARGO_PKG_VERSION"));
    assert_eq!(
        (status.node.as_str(), status.kernel.as_str()),
        ("gw1", "6.1.0")
    );
    let started = status.started.unwrap();
    assert_eq!((started.seconds, started.nanos), (5, 7));
    let [probe] = status.probes.as_slice() else {
        panic!("{:?}", status.probes)
    };
    assert_eq!((probe.name.as_str(), probe.attached), ("reset", false));
    assert_eq!(probe.reason, "no such tracepoint");
    let [upstream] = status.upstreams.as_slice() else {
        panic!("{:?}", status.upstreams)
    };
    assert_eq!(
        (upstream.address.as_str(), upstream.port),
        ("10.0.0.2", 8080)
    );
    assert_eq!(
        (upstream.connects, upstream.exchanges, upstream.failures),
        (3, 7, 2)
    );
    assert_eq!(upstream.statuses, [0, 5, 0, 0, 1]);
    assert_eq!(upstream.request_bytes, 700);
    let counters: Vec<_> = status
        .counters
        .iter()
        .map(|counter| (counter.name.as_str(), counter.value))
        .collect();
    assert!(counters.contains(&("live_ring_full", 3)), "{counters:?}");
    assert!(
        counters.contains(&("subscribers_dropped", 0)),
        "{counters:?}"
    );
    agent.stop().await;
}

#[tokio::test]
async fn status_answers_although_the_loop_does_not() {
    let agent = Agent::start(HubConfig::default()).await;
    agent.hub.set_waker(|| {});
    soon("status", agent.client().status(proto::StatusRequest {}))
        .await
        .unwrap();
    agent.stop().await;
}

#[tokio::test]
async fn a_subscriber_that_does_not_read_is_dropped_and_stalls_nobody() {
    let agent = Agent::start(HubConfig {
        subscriber_queue: 16,
        ..HubConfig::default()
    })
    .await;
    let request = proto::SubscribeRequest::default;
    let mut idle = agent
        .client()
        .subscribe(request())
        .await
        .unwrap()
        .into_inner();
    // The reader has a connection of its own: flow control is per connection too.
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", agent.address));
    let channel = endpoint.unwrap().connect().await.unwrap();
    let mut client = proto::hop_agent_client::HopAgentClient::new(channel);
    let mut reading = client.subscribe(request()).await.unwrap().into_inner();

    // Large events fill the transport's own buffers, then the queue. The reader is served after
    // each, so that its queue never grows.
    let mut published: u16 = 0;
    while counter(&agent.hub, "subscribers_dropped") == 0 {
        assert!(published < 5000, "never dropped");
        let mut large = event(published);
        large.evidence[0].bytes = vec![7; 8 * 1024];
        agent.hub.publish(large);
        let got = soon("event", reading.message()).await.unwrap().unwrap();
        assert_eq!(got.id, format!("event-{published}"));
        published += 1;
    }
    assert_eq!(counter(&agent.hub, "subscribers"), 1);

    let drained = async {
        let mut got: u16 = 0;
        loop {
            match idle.message().await {
                Ok(Some(_)) => got += 1,
                Ok(None) => panic!("it ended without a reason"),
                Err(status) => return (got, status),
            }
        }
    };
    let (got, status) = soon("the reason", drained).await;
    assert!(
        got < published,
        "something was missed, or it would not have been dropped"
    );
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(
        status.message().starts_with("subscriber too slow"),
        "{status}"
    );

    agent.hub.publish(event(9999));
    assert_eq!(
        soon("event", reading.message()).await.unwrap().unwrap().id,
        "event-9999"
    );
    assert_eq!(counter(&agent.hub, "subscribers_dropped"), 1);
    agent.stop().await;
}

#[tokio::test]
async fn subscriptions_are_capped_and_come_free_again() {
    let agent = Agent::start(HubConfig {
        subscribers: 1,
        ..HubConfig::default()
    })
    .await;
    let mut client = agent.client();
    let first = client
        .subscribe(proto::SubscribeRequest::default())
        .await
        .unwrap();
    let refused = client
        .subscribe(proto::SubscribeRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(counter(&agent.hub, "subscribers_refused"), 1);
    drop(first);
    until("the place is free", || {
        counter(&agent.hub, "subscribers") == 0
    })
    .await;
    client
        .subscribe(proto::SubscribeRequest::default())
        .await
        .unwrap();
    agent.stop().await;
}

#[tokio::test]
async fn health_says_serving() {
    let agent = Agent::start(HubConfig::default()).await;
    let request = HealthCheckRequest {
        service: "hopscope.v1.HopAgent".to_owned(),
    };
    let mut client = HealthClient::new(agent.channel.clone());
    let health = client.check(request).await.unwrap().into_inner();
    assert_eq!(health.status(), ServingStatus::Serving);
    agent.stop().await;
}

/// Both versions have the same messages in different modules.
macro_rules! listed {
    ($version:ident, $channel:expr) => {{
        use pb::server_reflection_request::MessageRequest;
        use pb::server_reflection_response::MessageResponse;
        use tonic_reflection::pb::$version as pb;
        let request = pb::ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let mut client = pb::server_reflection_client::ServerReflectionClient::new($channel);
        let stream = client
            .server_reflection_info(tokio_stream::once(request))
            .await
            .unwrap();
        let answer = stream.into_inner().message().await.unwrap().unwrap();
        let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
            panic!("{answer:?}")
        };
        let mut names: Vec<_> = list
            .service
            .into_iter()
            .map(|service| service.name)
            .collect();
        names.sort();
        names
    }};
}

#[tokio::test]
async fn reflection_lists_what_is_served_and_nothing_else() {
    let agent = Agent::start(HubConfig::default()).await;
    let expected = ["grpc.health.v1.Health", "hopscope.v1.HopAgent"];
    assert_eq!(listed!(v1, agent.channel.clone()), expected);
    assert_eq!(listed!(v1alpha, agent.channel.clone()), expected);
    agent.stop().await;
}

#[tokio::test]
async fn a_taken_port_says_what_to_do() {
    let taken = Listener::bind(ANY_PORT).await.unwrap();
    let error = Listener::bind(taken.address()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "cannot listen on {}: the port is taken by another process; stop that one or choose \
             another address with --listen",
            taken.address()
        )
    );
    let foreign = Listener::bind("192.0.2.1:7502".parse().unwrap())
        .await
        .unwrap_err();
    let message = foreign.to_string();
    assert!(
        message.starts_with("cannot listen on 192.0.2.1:7502: "),
        "{message}"
    );
    assert!(
        message.ends_with("; choose another address with --listen"),
        "{message}"
    );
}
