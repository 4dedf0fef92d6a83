//! Who gets in, and who gets captures: TLS, client certificates and roles.

use std::error::Error as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Output;

use crate::commands::{Service, failure, hopscope, outcome, text};
use crate::pki::{Authority, Pair};
use crate::support::{ANY_PORT, Agent, DEADLINE, counter, event, soon, until};
use hopscope::cli::render::event_json;
use hopscope::collector::{Collector, Sink, serve_collector};
use hopscope::model::HopEvent;
use hopscope::serve::{
    CAPTURES_UNIT, ClientTls, Endpoint, Hub, HubConfig, Listener, PemFile, Push, PushConfig,
    ServerFiles, ServerTls, reason,
};
use hopscope_proto::v1 as proto;
use hopscope_proto::v1::hop_agent_client::HopAgentClient;
use rustix::process::Signal;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// An agent with one event, behind the TLS of `authority`.
async fn agent(authority: &Authority) -> Agent {
    let listener = Listener::bind(ANY_PORT).await.unwrap();
    let agent = Agent::serve(listener.with_tls(authority.serve()), HubConfig::default());
    agent.hub.publish(event(1));
    agent
}

/// A client of `address` that connects when it is used.
fn client(address: SocketAddr, tls: Option<ClientTls>) -> HopAgentClient<Channel> {
    let endpoint = Endpoint::parse(&address.to_string(), tls, "--tls-ca").unwrap();
    HopAgentClient::new(endpoint.channel().unwrap())
}

async fn query(client: &mut HopAgentClient<Channel>) -> Result<usize, Status> {
    let response = soon("query", client.query(proto::QueryRequest::default())).await?;
    Ok(response.into_inner().events.len())
}

async fn list(client: &mut HopAgentClient<Channel>) -> Result<usize, Status> {
    let call = client.list_captures(proto::ListCapturesRequest::default());
    Ok(soon("list", call).await?.into_inner().captures.len())
}

/// What every call that needs the role `captures` says.
async fn refusals(client: &mut HopAgentClient<Channel>) -> Vec<(Code, String)> {
    let list = list(client).await.unwrap_err();
    let pull = client.pull_capture(proto::PullCaptureRequest::default());
    let pull = soon("pull", pull).await.unwrap_err();
    let boost = client.boost_sampling(proto::BoostSamplingRequest::default());
    let boost = soon("boost", boost).await.unwrap_err();
    [list, pull, boost]
        .map(|status| (status.code(), status.message().to_owned()))
        .into()
}

/// A call that came to nothing before anybody could say no. tonic calls that unavailable where its
/// own side of the handshake failed, and unknown where the server's did.
fn failed_below_grpc(outcome: Result<usize, Status>) -> String {
    let status = outcome.unwrap_err();
    assert!(status.source().is_some(), "{status:?}");
    assert!(
        matches!(status.code(), Code::Unavailable | Code::Unknown),
        "{status:?}"
    );
    reason(&status)
}

#[tokio::test]
async fn without_a_good_certificate_nobody_gets_in() {
    let authority = Authority::new("ours");
    let agent = agent(&authority).await;
    let other = Authority::new("another");
    let cases = [
        (None, "it demands a certificate of the client; give one"),
        (
            Some(other.client("stranger", Some(CAPTURES_UNIT))),
            "it does not trust the CA of the client's certificate; give",
        ),
        (
            Some(authority.expired("late", Some(CAPTURES_UNIT))),
            "the client's certificate has expired; renew it",
        ),
        (
            // A server's certificate is not one to come with.
            Some(authority.server("127.0.0.1")),
            "the client's certificate is not one for clients; give",
        ),
    ];
    for (pair, expected) in cases {
        let tls = authority.trusting(pair.as_ref());
        let refused = failed_below_grpc(query(&mut client(agent.address, Some(tls))).await);
        assert!(refused.starts_with(expected), "{pair:?}: {refused}");
    }
    agent.stop().await;
}

#[tokio::test]
async fn a_client_takes_only_the_server_that_it_meant() {
    let authority = Authority::new("ours");
    let agent = agent(&authority).await;
    let reader = authority.client("reader", None);
    let other = Authority::new("another");
    let tls = other.trusting(Some(&reader));
    let refused = failed_below_grpc(query(&mut client(agent.address, Some(tls))).await);
    assert!(
        refused.starts_with("its certificate is not signed by the CA in --tls-ca"),
        "{refused}"
    );
    let by_name = format!("localhost:{}", agent.address.port());
    let tls = Some(authority.trusting(Some(&reader)));
    let endpoint = Endpoint::parse(&by_name, tls, "--tls-ca").unwrap();
    let mut client = HopAgentClient::new(endpoint.channel().unwrap());
    let refused = failed_below_grpc(query(&mut client).await);
    assert!(
        refused.starts_with("its certificate is for another name"),
        "{refused}"
    );
    agent.stop().await;
}

#[tokio::test]
async fn plain_text_and_tls_do_not_meet() {
    let authority = Authority::new("ours");
    let protected = agent(&authority).await;
    let refused = query(&mut client(protected.address, None))
        .await
        .unwrap_err();
    assert_eq!(
        reason(&refused),
        "it does not answer in plain HTTP/2; if it listens with TLS, give --tls-ca, --tls-cert and \
         --tls-key"
    );
    protected.stop().await;

    let plain = Agent::start(HubConfig::default()).await;
    let tls = authority.trusting(Some(&authority.client("reader", None)));
    let refused = failed_below_grpc(query(&mut client(plain.address, Some(tls))).await);
    assert!(refused.starts_with("it answers in plain text"), "{refused}");
    plain.stop().await;
}

#[tokio::test]
async fn events_take_any_certificate_and_captures_one_with_the_role() {
    let authority = Authority::new("ours");
    let agent = agent(&authority).await;
    for unit in [
        None,
        Some("hopscope"),
        Some("hopscope-captures "),
        Some("Hopscope-Captures"),
    ] {
        let reader = authority.client("reader", unit);
        let tls = authority.trusting(Some(&reader));
        let mut client = client(agent.address, Some(tls));
        assert_eq!(query(&mut client).await.unwrap(), 1);
        for (code, message) in refusals(&mut client).await {
            assert_eq!(code, Code::PermissionDenied, "{message}");
            assert!(
                message.starts_with("this needs the role `captures`, which the certificate of `")
                    && message.contains("CN=reader")
                    && message.ends_with("use one with OU=hopscope-captures in its subject"),
                "{message}"
            );
        }
    }
    let operator = authority.client("operator", Some(CAPTURES_UNIT));
    let tls = authority.trusting(Some(&operator));
    let mut client = client(agent.address, Some(tls));
    assert_eq!(query(&mut client).await.unwrap(), 1);
    let admitted = list(&mut client).await.unwrap_err();
    assert_eq!(admitted.code(), Code::FailedPrecondition, "{admitted:?}");
    agent.stop().await;
}

#[tokio::test]
async fn plain_text_gives_captures_on_loopback_only() {
    let agent = Agent::start(HubConfig::default()).await;
    let admitted = list(&mut agent.client()).await.unwrap_err();
    assert_eq!(admitted.code(), Code::FailedPrecondition, "{admitted:?}");
    agent.stop().await;

    let everywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let listener = Listener::bind(everywhere).await.unwrap();
    let agent = Agent::serve(listener, HubConfig::default());
    agent.hub.publish(event(1));
    let mut client = client((Ipv4Addr::LOCALHOST, agent.address.port()).into(), None);
    assert_eq!(query(&mut client).await.unwrap(), 1);
    for (code, message) in refusals(&mut client).await {
        assert_eq!(code, Code::PermissionDenied, "{message}");
        assert!(
            message.starts_with("this needs the role `captures`, which nobody has where the agent"),
            "{message}"
        );
    }
    agent.stop().await;
}

#[tokio::test]
async fn a_peer_that_stalls_in_its_handshake_keeps_nobody_out() {
    let authority = Authority::new("ours");
    let agent = agent(&authority).await;
    let mut stalled = Vec::new();
    for _ in 0..32 {
        let connect = tokio::net::TcpStream::connect(agent.address);
        stalled.push(soon("connect", connect).await.unwrap());
    }
    let reader = authority.client("reader", None);
    let mut client = client(agent.address, Some(authority.trusting(Some(&reader))));
    assert_eq!(query(&mut client).await.unwrap(), 1);
    drop(stalled);
    agent.stop().await;
}

#[tokio::test]
async fn revoked_certificates_are_refused_and_let_go_of() {
    let authority = Authority::new("ours");
    let tls = ServerTls::load(authority.files_with_list()).unwrap();
    let listener = Listener::bind(ANY_PORT).await.unwrap();
    let agent = Agent::serve(listener.with_tls(tls.clone()), HubConfig::default());
    agent.hub.publish(event(1));
    let show = |pair| client(agent.address, Some(authority.trusting(Some(pair))));
    let (good, lost) = (authority.numbered("good", 5), authority.numbered("lost", 6));
    let subscribe = |mut client: HopAgentClient<Channel>| async move {
        let stream = client.subscribe(proto::SubscribeRequest::default());
        soon("subscribe", stream).await.unwrap().into_inner()
    };
    let mut kept = subscribe(show(&good)).await;
    let mut ended = subscribe(show(&lost)).await;
    authority.revoke(&[6]);
    assert_eq!(query(&mut show(&lost)).await.unwrap(), 1);
    tls.reload().unwrap();
    soon("the end", ended.message()).await.unwrap_err();
    let refused = failed_below_grpc(query(&mut show(&lost)).await);
    assert_eq!(
        refused,
        "the client's certificate was revoked; give another"
    );
    assert_eq!(query(&mut show(&good)).await.unwrap(), 1);
    agent.hub.publish(event(2));
    let message = soon("an event", kept.message()).await.unwrap();
    assert!(message.is_some());
    // Of a CA that has no list here nothing is known.
    let other = Authority::new("another");
    let unlisted = ServerFiles {
        client_ca: authority.files().client_ca,
        client_crl: Some(PemFile::new(other.revoke(&[]), "--client-crl")),
        ..authority.files()
    };
    let strict = ServerTls::load(unlisted).unwrap();
    let listener = Listener::bind(ANY_PORT).await.unwrap();
    let strict = Agent::serve(listener.with_tls(strict), HubConfig::default());
    let tls = Some(authority.trusting(Some(&good)));
    failed_below_grpc(query(&mut client(strict.address, tls)).await);
    drop(kept);
    strict.stop().await;
    agent.stop().await;
}

#[tokio::test]
async fn files_are_read_again_and_broken_ones_change_nothing() {
    let (ours, next) = (Authority::new("ours"), Authority::new("next"));
    let files = ours.files();
    let tls = ServerTls::load(files.clone()).unwrap();
    let listener = Listener::bind(ANY_PORT).await.unwrap();
    let agent = Agent::serve(listener.with_tls(tls.clone()), HubConfig::default());
    let show = |authority: &Authority| {
        let reader = authority.client("reader", None);
        client(agent.address, Some(authority.trusting(Some(&reader))))
    };
    let mut open = show(&ours);
    query(&mut open).await.unwrap();
    let renewed = next.files();
    fs::copy(&renewed.cert.path, &files.cert.path).unwrap();
    let error = tls.reload().unwrap_err().to_string();
    assert!(
        error.contains("does not belong to the certificate"),
        "{error}"
    );
    query(&mut open).await.unwrap();
    query(&mut show(&ours)).await.unwrap();
    // The server's certificate and the clients' CA are another one's now.
    fs::copy(&renewed.key.path, &files.key.path).unwrap();
    fs::copy(next.ca(), &files.client_ca.path).unwrap();
    tls.reload().unwrap();
    query(&mut show(&next)).await.unwrap();
    failed_below_grpc(query(&mut show(&ours)).await);
    agent.stop().await;
}

/// Keeps the ids of events.
#[derive(Debug, Default)]
struct Nothing;

impl Sink for Nothing {
    fn keep(&mut self, _: &HopEvent) -> std::io::Result<()> {
        Ok(())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn an_agent_pushes_to_a_collector_through_tls() {
    let authority = Authority::new("ours");
    let listener = Listener::bind(ANY_PORT).await.unwrap();
    let listener = listener.with_tls(authority.serve());
    let address = listener.address().to_string();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = serve_collector(listener, Collector::new(Nothing), async {
        let _ = stopped.await;
    });
    let server = tokio::spawn(serving);
    let tls = authority.trusting(Some(&authority.client("agent", None)));
    let endpoint = Endpoint::parse(&address, Some(tls), "--collector-tls-ca").unwrap();
    let hub = Hub::new(HubConfig::default());
    let push = Push::start(&hub, PushConfig::new(endpoint));
    hub.publish(event(1));
    until("acknowledged", || counter(&hub, "push_acknowledged") == 1).await;
    assert_eq!(push.stop(DEADLINE).await, 0);
    drop(stop);
    soon("the collector's end", server).await.unwrap().unwrap();
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs `hopscope events` with the certificate in `pair`.
async fn events(agent: &Agent, ca: &Path, pair: Option<&Pair>) -> Output {
    let mut command = hopscope(&["events", "--format", "jsonl", "--tls-ca", path(ca)]);
    command.args(["--agent", &agent.address.to_string()]);
    if let Some(Pair { cert, key }) = pair {
        command.args(["--tls-cert", path(cert), "--tls-key", path(key)]);
    }
    let output = tokio::task::spawn_blocking(move || command.output().unwrap());
    soon("events", output).await.unwrap()
}

#[tokio::test]
async fn the_events_command_goes_through_tls_and_says_why_not() {
    let authority = Authority::new("ours");
    let agent = agent(&authority).await;
    let reader = authority.client("reader", None);
    let output = events(&agent, &authority.ca(), Some(&reader)).await;
    assert_eq!(text(&output.stderr), "");
    assert_eq!(
        text(&output.stdout),
        format!("{}\n", event_json(&event(1)).unwrap())
    );
    let address = agent.address;
    let output = events(&agent, &authority.ca(), None).await;
    assert_eq!(
        (output.status.code(), text(&output.stderr)),
        (
            Some(1),
            format!(
                "hopscope: cannot reach an agent at https://{address}: it demands a certificate of \
                 the client; give one with --tls-cert and --tls-key\n"
            )
            .as_str()
        )
    );
    agent.stop().await;
}

#[test]
fn an_address_that_others_reach_needs_tls_or_the_word() {
    for (command, flag) in [
        ("run", "--listen"),
        ("run", "--metrics"),
        ("collect", "--listen"),
    ] {
        let (code, message) = failure(&[command, flag, "0.0.0.0:0"]);
        assert_eq!(code, 2);
        assert_eq!(
            message,
            "refusing to listen on 0.0.0.0:0 in plain text, where others than this host can \
             connect: give --tls-cert, --tls-key and --tls-client-ca, or --insecure to let anybody \
             in"
        );
    }
}

#[test]
fn files_that_tls_cannot_be_done_with_are_named() {
    let authority = Authority::new("ours");
    let pair = authority.server("127.0.0.1");
    let (cert, key, ca) = (path(&pair.cert), path(&pair.key), &authority.ca());
    let ca = path(ca);
    let other = authority.server("127.0.0.2");
    let written = |name: &str, content: &str| {
        let file = authority.dir().join(name);
        fs::write(&file, content).unwrap();
        path(&file).to_owned()
    };
    let words = written("words", "certificate\n");
    let torn = &fs::read_to_string(cert).unwrap()[..200];
    let torn = written("torn", torn);
    let wrong = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let wrong = written("wrong", wrong);
    let encrypted =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let encrypted = written("encrypted", encrypted);
    let absent = authority.dir().join("absent");
    let absent = path(&absent);
    let dir = path(authority.dir());
    let cases = [
        (
            [absent, key, ca],
            format!(
                "cannot read {absent} (--tls-cert): No such file or directory (os error 2); check the path"
            ),
        ),
        (
            [cert, dir, ca],
            format!("cannot read {dir} (--tls-key): Is a directory"),
        ),
        (
            [cert, key, &words],
            format!(
                "{words} (--tls-client-ca) holds no certificate: give a PEM file with a `BEGIN CERTIFICATE` block"
            ),
        ),
        (
            [key, cert, ca],
            format!("{key} (--tls-cert) holds no certificate, but a private key: give"),
        ),
        (
            [cert, cert, ca],
            format!("{cert} (--tls-key) holds no private key, but a certificate: give"),
        ),
        (
            [cert, path(&other.key), ca],
            format!(
                "the key in {} (--tls-key) does not belong to the certificate in {cert} (--tls-cert): give the key",
                path(&other.key)
            ),
        ),
        (
            [&torn, key, ca],
            format!("{torn} (--tls-cert) is damaged: "),
        ),
        (
            [&wrong, key, ca],
            format!("{wrong} (--tls-cert) cannot be used: "),
        ),
        (
            [cert, key, &wrong],
            format!("{wrong} (--tls-client-ca) cannot be used: "),
        ),
        (
            [cert, &encrypted, ca],
            format!("{encrypted} (--tls-key) holds an encrypted key"),
        ),
    ];
    for ([cert, key, ca], expected) in cases {
        let flags = ["--tls-cert", cert, "--tls-key", key, "--tls-client-ca", ca];
        for command in ["run", "collect"] {
            let (code, message) = failure(&[&[command][..], &flags[..]].concat());
            assert_eq!(code, 2, "{message}");
            assert!(message.starts_with(&expected), "{message}");
        }
    }
    for (list, expected) in [
        (absent, "cannot read "),
        (
            ca,
            "holds no list of revoked certificates, but a certificate: give",
        ),
        (
            &written(
                "list",
                "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n",
            ),
            "(--client-crl) cannot be used: ",
        ),
    ] {
        let flags = ["--tls-cert", cert, "--tls-key", key, "--tls-client-ca", ca];
        let (code, message) = failure(&[&["run"][..], &flags, &["--client-crl", list]].concat());
        assert_eq!(code, 2, "{message}");
        assert!(message.contains(expected), "{message}");
    }
    let (code, message) = failure(&["collect", "--client-crl", ca]);
    assert_eq!(
        (code, message.as_str()),
        (
            2,
            "--client-crl is given without --tls-client-ca: give the CA that made it too"
        )
    );
    let (code, message) = failure(&["run", "--tls-key", key]);
    assert_eq!(
        (code, message.as_str()),
        (
            2,
            "--tls-key needs --tls-cert and --tls-client-ca as well: give all of them, or none"
        )
    );
    let (code, message) = failure(&["events", "--agent", "http://a:1", "--tls-ca", ca]);
    assert_eq!(
        (code, message.as_str()),
        (
            2,
            "bad address `http://a:1`: http does without --tls-ca; write https or leave that out"
        )
    );
    // The same keys in the configuration file.
    let file = written(
        "hopscope.toml",
        &format!("[collect]\ntls_cert = '{absent}'\ntls_key = '{key}'\ntls_client_ca = '{ca}'\n"),
    );
    let output = outcome(&["collect", "--config", &file]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr).starts_with(&format!("hopscope: cannot read {absent} (--tls-cert)"))
    );
}

#[test]
fn a_service_reads_its_files_again_on_sighup() {
    let authority = Authority::new("ours");
    let files = authority.files_with_list();
    let list = files.client_crl.unwrap().path;
    let mut collect = Service::start(&[
        "collect",
        "--listen",
        "127.0.0.1:0",
        "--tls-cert",
        path(&files.cert.path),
        "--tls-key",
        path(&files.key.path),
        "--tls-client-ca",
        path(&files.client_ca.path),
        "--client-crl",
        path(&list),
    ]);
    collect.ready("collecting");
    collect.signal(Signal::HUP);
    collect.error_line("read the TLS files again");
    fs::write(&list, "nothing").unwrap();
    collect.signal(Signal::HUP);
    let line = collect.error_line("the TLS files stay as they were");
    assert!(
        line.contains("holds no list of revoked certificates"),
        "{line}"
    );
    collect.signal(Signal::TERM);
    assert_eq!(collect.ended().0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_collect_command_takes_tls_and_logs_whom_it_refuses() {
    let authority = Authority::new("ours");
    let Pair { cert, key } = authority.server("127.0.0.1");
    let ca = authority.ca();
    let mut collect = Service::start(&[
        "collect",
        "--listen",
        "127.0.0.1:0",
        "--tls-cert",
        path(&cert),
        "--tls-key",
        path(&key),
        "--tls-client-ca",
        path(&ca),
    ]);
    let address = collect.ready("collecting").to_string();
    let push = |hub: &Hub, tls| {
        let endpoint = Endpoint::parse(&address, tls, "--collector-tls-ca").unwrap();
        Push::start(hub, PushConfig::new(endpoint))
    };
    let stranger = Hub::new(HubConfig::default());
    let refused = push(&stranger, Some(authority.trusting(None)));
    let plain = Hub::new(HubConfig::default());
    let unheard = push(&plain, None);
    let line = collect.error_line("TLS connection refused");
    assert!(
        line.contains("it sent no certificate") || line.contains("it speaks plain text"),
        "{line}"
    );
    let hub = Hub::new(HubConfig::default());
    let tls = authority.trusting(Some(&authority.client("agent", None)));
    let push = push(&hub, Some(tls));
    for hub in [&stranger, &plain, &hub] {
        hub.publish(event(1));
    }
    assert_eq!(collect.line(), event_json(&event(1)).unwrap());
    until("acknowledged", || counter(&hub, "push_acknowledged") == 1).await;
    assert_eq!(push.stop(DEADLINE).await, 0);
    for lost in [refused, unheard] {
        assert_eq!(lost.stop(std::time::Duration::ZERO).await, 1);
    }
    // It has no events to ask for.
    let operator = authority.client("operator", None);
    let (cert, key) = (path(&operator.cert), path(&operator.key));
    let (code, message) = failure(&[
        "events",
        "--agent",
        &address,
        "--tls-ca",
        path(&ca),
        "--tls-cert",
        cert,
        "--tls-key",
        key,
    ]);
    assert_eq!(code, 1);
    assert!(
        message.ends_with("does not offer this: is it a collector, or another version?"),
        "{message}"
    );
    collect.signal(Signal::TERM);
    assert_eq!(collect.ended().0, 0);
}
