//! The push to a collector, with the real collector at the other end.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support;
use crate::support::{ANY_PORT, counter, event, soon, until, unused_address};
use hopscope::collector::{Collector, Sink, serve_collector};
use hopscope::model::HopEvent;
use hopscope::serve::{Hub, HubConfig, Listener, Push, PushConfig, to_proto};
use hopscope_proto::v1 as proto;
use hopscope_proto::v1::hop_collector_client::HopCollectorClient;
use hopscope_proto::v1::hop_collector_server::{self, HopCollectorServer};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// Keeps ids in memory, beyond the life of one collector.
#[derive(Clone, Debug, Default)]
struct Kept(Arc<Mutex<Vec<String>>>);

impl Kept {
    fn ids(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

impl Sink for Kept {
    fn keep(&mut self, event: &HopEvent) -> io::Result<()> {
        self.0.lock().unwrap().push(event.id.clone());
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Running {
    address: SocketAddr,
    collector: Arc<Collector<Kept>>,
    stop: oneshot::Sender<()>,
    server: tokio::task::JoinHandle<()>,
}

impl Running {
    async fn start(address: SocketAddr, kept: &Kept) -> Self {
        Self::restart(address, Collector::new(kept.clone())).await
    }

    async fn restart(address: SocketAddr, collector: Arc<Collector<Kept>>) -> Self {
        let listener = Listener::bind(address).await.unwrap();
        let address = listener.address();
        let (stop, stopped) = oneshot::channel();
        let serving = serve_collector(listener, Arc::clone(&collector), async {
            let _ = stopped.await;
        });
        Self {
            address,
            collector,
            stop,
            server: tokio::spawn(async { serving.await.unwrap() }),
        }
    }

    async fn stop(self) -> Arc<Collector<Kept>> {
        let _ = self.stop.send(());
        soon("the collector's end", self.server).await.unwrap();
        self.collector
    }
}

fn quick(address: SocketAddr) -> PushConfig {
    PushConfig {
        backoff: Duration::from_millis(10),
        backoff_cap: Duration::from_millis(50),
        ..PushConfig::new(address.to_string().parse().unwrap())
    }
}

fn names(numbers: impl IntoIterator<Item = u16>) -> Vec<String> {
    numbers
        .into_iter()
        .map(|number| format!("event-{number}"))
        .collect()
}

#[tokio::test]
async fn a_restarted_collector_gets_everything_once() {
    let kept = Kept::default();
    let address = unused_address();
    let first = Running::start(address, &kept).await;
    let hub = Hub::new(HubConfig::default());
    let push = Push::start(&hub, quick(address));
    for number in 0..50 {
        hub.publish(event(number));
    }
    until("acknowledged", || counter(&hub, "push_acknowledged") == 50).await;
    // These may or may not be taken over before the stop; either way they come once.
    for number in 50..60 {
        hub.publish(event(number));
    }
    let collector = first.stop().await;

    // Published while nobody listens.
    for number in 60..120 {
        hub.publish(event(number));
    }
    let second = Running::restart(address, collector).await;
    hub.publish(event(120));
    until("acknowledged", || counter(&hub, "push_acknowledged") == 121).await;
    assert_eq!(kept.ids(), names(0..121));
    assert_eq!(counter(&hub, "push_dropped"), 0);
    assert_eq!(counter(&hub, "push_waiting"), 0);
    assert!(counter(&hub, "push_connects") >= 2);
    assert_eq!(push.stop(support::DEADLINE).await, 0);
    second.stop().await;
}

#[tokio::test]
async fn a_collector_that_comes_later_gets_what_waits() {
    let address = unused_address();
    let hub = Hub::new(HubConfig::default());
    let push = Push::start(
        &hub,
        PushConfig {
            queue: 3,
            ..quick(address)
        },
    );
    for number in 0..5 {
        hub.publish(event(number));
    }
    // The first ones explain an incident, so the newest are dropped, and counted.
    assert_eq!(counter(&hub, "push_dropped"), 2);
    assert_eq!(counter(&hub, "push_waiting"), 3);
    let kept = Kept::default();
    let collector = Running::start(address, &kept).await;
    until("acknowledged", || counter(&hub, "push_acknowledged") == 3).await;
    hub.publish(event(5));
    until("acknowledged", || counter(&hub, "push_acknowledged") == 4).await;
    assert_eq!(kept.ids(), names([0, 1, 2, 5]));
    assert_eq!(push.stop(support::DEADLINE).await, 0);
    collector.stop().await;
}

#[tokio::test]
async fn stopping_without_a_collector_says_how_much_is_lost() {
    let address = unused_address();
    let hub = Hub::new(HubConfig::default());
    let push = Push::start(&hub, quick(address));
    hub.publish(event(1));
    hub.publish(event(2));
    assert_eq!(soon("stop", push.stop(Duration::from_millis(50))).await, 2);
}

/// A stream of the collector that answers as it is told, not as it should.
type Answers = Pin<Box<dyn Stream<Item = Result<proto::PublishResponse, Status>> + Send>>;

/// Records each connection's sequence numbers and answers each with `acknowledge` of it.
struct Odd {
    seen: mpsc::Sender<(usize, u64)>,
    connections: std::sync::atomic::AtomicUsize,
    acknowledge: fn(usize, u64) -> Option<u64>,
}

#[tonic::async_trait]
impl hop_collector_server::HopCollector for Odd {
    type PublishStream = Answers;

    async fn publish(
        &self,
        request: Request<Streaming<proto::PublishRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let connection = self
            .connections
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (seen, acknowledge) = (self.seen.clone(), self.acknowledge);
        let (answer, answers) = mpsc::channel(8);
        let mut requests = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                let _ = seen.send((connection, request.sequence)).await;
                if let Some(acknowledged) = acknowledge(connection, request.sequence) {
                    let _ = answer
                        .send(Ok(proto::PublishResponse { acknowledged }))
                        .await;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}

async fn odd(
    acknowledge: fn(usize, u64) -> Option<u64>,
) -> (SocketAddr, mpsc::Receiver<(usize, u64)>) {
    let listener = tokio::net::TcpListener::bind(ANY_PORT).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (seen, received) = mpsc::channel(64);
    let service = HopCollectorServer::new(Odd {
        seen,
        connections: std::sync::atomic::AtomicUsize::new(0),
        acknowledge,
    });
    let router = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
    (address, received)
}

#[tokio::test]
async fn an_acknowledgement_of_what_was_never_sent_takes_nothing() {
    let (address, mut seen) = odd(|_, sequence| (sequence == 1).then_some(1_000_000)).await;
    let hub = Hub::new(HubConfig::default());
    let _push = Push::start(&hub, quick(address));
    hub.publish(event(1));
    until("acknowledged", || counter(&hub, "push_acknowledged") == 1).await;
    hub.publish(event(2));
    assert_eq!(soon("first", seen.recv()).await, Some((0, 1)));
    assert_eq!(soon("second", seen.recv()).await, Some((0, 2)));
    assert_eq!(counter(&hub, "push_waiting"), 1);
}

#[tokio::test]
async fn a_silent_collector_is_reconnected_to_and_gets_everything_again() {
    let (address, mut seen) =
        odd(|connection, sequence| (connection > 0).then_some(sequence)).await;
    let hub = Hub::new(HubConfig::default());
    let _push = Push::start(
        &hub,
        PushConfig {
            patience: Duration::from_millis(50),
            ..quick(address)
        },
    );
    hub.publish(event(1));
    hub.publish(event(2));
    for expected in [(0, 1), (0, 2), (1, 1), (1, 2)] {
        assert_eq!(soon("sequence", seen.recv()).await, Some(expected));
    }
    until("acknowledged", || counter(&hub, "push_acknowledged") == 2).await;
}

#[tokio::test]
async fn the_collector_keeps_a_resent_event_once_and_survives_an_unreadable_one() {
    let kept = Kept::default();
    let running = Running::start(ANY_PORT, &kept).await;
    let mut unreadable = to_proto(&event(3));
    unreadable.cause = "tcp.from_the_future".to_owned();
    let requests = [
        (1, Some(to_proto(&event(1)))),
        (2, Some(to_proto(&event(2)))),
        (2, Some(to_proto(&event(2)))),
        (3, Some(unreadable)),
        (4, None),
        (7, Some(to_proto(&event(4)))),
    ]
    .map(|(sequence, event)| proto::PublishRequest { sequence, event });
    let uri = format!("http://{}", running.address);
    let mut client = HopCollectorClient::connect(uri).await.unwrap();
    let publish = Box::pin(client.publish(tokio_stream::iter(requests)));
    let stream = publish.await.unwrap();
    let mut stream = stream.into_inner();
    let mut last = 0;
    while let Some(response) = soon("answer", stream.message()).await.unwrap() {
        assert!(response.acknowledged >= last, "it never goes back");
        last = response.acknowledged;
    }
    assert_eq!(last, 7);
    assert_eq!(kept.ids(), names([1, 2, 4]));
    let counters = running.collector.counters();
    assert_eq!(
        counters,
        [
            ("events_kept", 3),
            ("events_duplicate", 1),
            ("events_unreadable", 2)
        ]
    );
    running.stop().await;
}

/// Fails on the second event.
struct Full(u32);

impl Sink for Full {
    fn keep(&mut self, _event: &HopEvent) -> io::Result<()> {
        self.0 += 1;
        if self.0 < 2 {
            return Ok(());
        }
        Err(io::Error::from(io::ErrorKind::StorageFull))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn what_cannot_be_written_is_not_acknowledged() {
    let listener = Listener::bind(ANY_PORT).await.unwrap();
    let address = listener.address();
    let collector = Collector::new(Full(0));
    let (_stop, stopped) = oneshot::channel::<()>();
    tokio::spawn(serve_collector(listener, Arc::clone(&collector), async {
        let _ = stopped.await;
    }));
    let hub = Hub::new(HubConfig::default());
    let push = Push::start(&hub, quick(address));
    hub.publish(event(1));
    until("acknowledged", || counter(&hub, "push_acknowledged") == 1).await;
    hub.publish(event(2));
    let error = soon("failure", collector.failed()).await;
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert_eq!(soon("stop", push.stop(Duration::from_millis(20))).await, 1);
    assert_eq!(counter(&hub, "push_acknowledged"), 1);
}
