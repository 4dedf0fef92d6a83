//! `hopscope run`: the agent.

use core::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::oneshot;
use tracing::{info, warn};

use super::access::{CollectorFlags, ServerFlags, reload_on};
use super::record::RecordFlags;
use super::size::ByteSize;
use super::wait::Wait;
use super::watch::Watcher;
use super::{CliError, clock, config, runtime};
use hopscope_ebpf::{MAX_HEAD_LEN, MAX_SNAP_LEN, MIN_HEAD_LEN};

use crate::engine::{self, Engine};
use crate::limits::Limits;
use crate::live::LiveConfig;
use crate::serve::{
    Captures, Endpoint, Hub, HubConfig, Listener, Push, PushConfig, STOP_GRACE, ServerTls,
    check_listen, serve_agent, serve_metrics,
};

/// Where the agent serves gRPC unless told otherwise.
const LISTEN: SocketAddr = SocketAddr::new(core::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7502);

/// The smallest ring that is any use: a handful of the largest records.
const MIN_RING_BYTES: u32 = 256 * 1024;

/// Flags of `hopscope run`.
#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag")]
pub(super) struct Args {
    /// Address for gRPC [default: 127.0.0.1:7502].
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,

    /// Address for Prometheus, which finds the metrics at /metrics; protected like --listen.
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics: Option<SocketAddr>,

    /// Command name of a gateway; repeat for more. NAME replaces the built-in list, +NAME adds to it.
    #[arg(long = "gateway", value_name = "NAME")]
    gateways: Vec<String>,

    /// Cgroup whose processes all count as gateways; repeat for more.
    #[arg(long = "cgroup", value_name = "PATH")]
    cgroups: Vec<PathBuf>,

    /// Upstream whose clients all count as gateways: ADDRESS, CIDR, either with :PORT, or :PORT
    /// alone; repeat for more.
    #[arg(long = "upstream", value_name = "UPSTREAM")]
    upstreams: Vec<String>,

    /// Payload bytes taken of each segment [default: 2048]. From 2048 on, heads of responses that are longer are
    /// taken as well.
    #[arg(long, value_name = "BYTES")]
    snap_len: Option<ByteSize>,

    /// Payload bytes of a request that are held back in the kernel until it is known whether its exchange
    /// matters, from 64 to 2048 [default: 2048].
    #[arg(long, value_name = "BYTES")]
    request_head: Option<ByteSize>,

    /// The same of a response [default: 2048].
    #[arg(long, value_name = "BYTES")]
    response_head: Option<ByteSize>,

    /// Size of the ring between kernel and agent, such as 8M.
    #[arg(long, value_name = "BYTES")]
    ring_size: Option<ByteSize>,

    /// How long a first response byte may take before its exchange is looked at in any case
    /// [default: 1s].
    #[arg(long, value_name = "DURATION")]
    slow_first_byte: Option<Wait>,

    /// Cgroup whose packets are looked at, with those below it; repeat for more, `/` is the whole host. Of
    /// hops elsewhere only connects are seen [default: the cgroups of gateways, found as they start].
    #[arg(long = "packets-of", value_name = "PATH")]
    packets_of: Vec<PathBuf>,

    /// Look at no system calls: all of them are a little faster then, those of other processes as well,
    /// and a connect that fails before its first SYN, or to a unix socket, is not seen.
    #[arg(long)]
    no_system_calls: bool,

    /// Do not look at what the gateways' own clients get: no event says what the client got then, and a 5xx
    /// that a gateway makes without asking an upstream is not seen.
    #[arg(long)]
    no_client_side: bool,

    /// Read what gateways write and read inside TLS, where their TLS library can be asked: exchanges over
    /// TLS are then judged and captured like others, secrets masked the same way, and what clients get over TLS is
    /// told. It costs four
    /// breakpoints or more for each exchange over TLS.
    #[arg(long)]
    tls_plaintext: bool,

    /// Name of this node on every event [default: the host's name].
    #[arg(long, value_name = "NAME")]
    node: Option<String>,

    /// Collector to push events to; repeat for more.
    #[arg(long = "collector", value_name = "HOST:PORT")]
    collectors: Vec<String>,

    /// Recent events kept for queries [default: 10000].
    #[arg(long, value_name = "N")]
    recent: Option<usize>,

    /// Log the kernel programs' own lines.
    #[arg(long)]
    kernel_log: bool,

    #[command(flatten)]
    record: RecordFlags,

    #[command(flatten)]
    server: ServerFlags,

    #[command(flatten)]
    collector: CollectorFlags,
}

/// Flags and file together.
#[derive(Debug)]
struct Settings {
    listen: SocketAddr,
    metrics: Option<SocketAddr>,
    tls: Option<ServerTls>,
    live: LiveConfig,
    hub: HubConfig,
    record: RecordFlags,
    collectors: Vec<Endpoint>,
}

impl Settings {
    fn merge(args: Args, mut file: config::Run) -> Result<Self, CliError> {
        let listen = args.listen.or(file.listen).unwrap_or(LISTEN);
        let metrics = args.metrics.or(file.metrics);
        let server = args.server.or(file.server());
        let insecure = server.insecure;
        let tls = server.protect(listen)?;
        if let Some(metrics) = metrics {
            check_listen(metrics, tls.is_some(), insecure).map_err(CliError::usage)?;
        }
        let collector_tls = args.collector.or(file.collector());
        let record = args.record.or(file.record()).checked()?;
        let mut live = LiveConfig::default();
        choose_gateways(&mut live.gateways, given(args.gateways, file.gateways));
        live.sample = record.sample.unwrap_or(live.sample);
        live.cgroups = given(args.cgroups, file.cgroups);
        for text in given(args.upstreams, file.upstreams) {
            live.upstreams.push(text.parse().map_err(CliError::usage)?);
        }
        if let Some(ByteSize(bytes)) = args.snap_len.or(file.snap_len) {
            if bytes > MAX_SNAP_LEN {
                let most = format!("snap_len {bytes} is too large: at most {MAX_SNAP_LEN} bytes");
                return Err(CliError::usage(most));
            }
            live.snap_len = bytes;
        }
        let heads = [
            ("request_head", args.request_head.or(file.request_head)),
            ("response_head", args.response_head.or(file.response_head)),
        ];
        for ((name, given), head) in heads
            .into_iter()
            .zip([&mut live.request_head, &mut live.response_head])
        {
            let Some(ByteSize(bytes)) = given else {
                continue;
            };
            if !(MIN_HEAD_LEN..=MAX_HEAD_LEN).contains(&bytes) {
                return Err(CliError::usage(format!(
                    "{name} {bytes} is out of range: give {MIN_HEAD_LEN} to {MAX_HEAD_LEN} bytes"
                )));
            }
            *head = bytes;
        }
        if let Some(ByteSize(bytes)) = args.ring_size.or(file.ring_size) {
            if bytes < MIN_RING_BYTES {
                let least =
                    format!("ring_size {bytes} is too small: at least {MIN_RING_BYTES} bytes");
                return Err(CliError::usage(least));
            }
            live.ring_bytes = bytes;
        }
        if let Some(Wait(millis)) = args.slow_first_byte.or(file.slow_first_byte) {
            live.slow_first_byte_ms = millis;
        }
        live.packets_of = given(args.packets_of, file.packets_of);
        live.system_calls = !(args.no_system_calls || file.no_system_calls);
        live.client_side = !(args.no_client_side || file.no_client_side);
        live.tls_plaintext = args.tls_plaintext || file.tls_plaintext;
        live.kernel_log = args.kernel_log || file.kernel_log;
        let collectors = collector_tls.endpoints(&given(args.collectors, file.collectors))?;
        let host = rustix::system::uname();
        let node = args.node.or(file.node);
        let node = node.unwrap_or_else(|| host.nodename().to_string_lossy().into_owned());
        let defaults = HubConfig::default();
        Ok(Self {
            listen,
            metrics,
            tls,
            live,
            hub: HubConfig {
                recent: args.recent.or(file.recent).unwrap_or(defaults.recent),
                node: Arc::from(node),
                kernel: host.release().to_string_lossy().into_owned(),
                started: clock::now(),
                ..defaults
            },
            record,
            collectors,
        })
    }
}

/// A list on the command line replaces the file's.
fn given<T>(flags: Vec<T>, file: Vec<T>) -> Vec<T> {
    if flags.is_empty() { file } else { flags }
}

/// Plain names replace the built-in ones; names after a plus are added.
fn choose_gateways(gateways: &mut Vec<String>, chosen: Vec<String>) {
    if chosen.iter().any(|name| !name.starts_with('+')) {
        gateways.clear();
    }
    for name in chosen {
        let name = name.strip_prefix('+').unwrap_or(&name).to_owned();
        if !gateways.contains(&name) {
            gateways.push(name);
        }
    }
}

pub(super) fn run(args: Args, file: config::Run) -> Result<(), CliError> {
    let settings = Settings::merge(args, file)?;
    runtime::service()?.block_on(watch_and_serve(settings))
}

async fn watch_and_serve(settings: Settings) -> Result<(), CliError> {
    let mut signal = runtime::StopSignal::new()?;
    // The port comes first: it is the cheapest thing to fail, and needs no undoing.
    let mut listener = Listener::bind(settings.listen)
        .await
        .map_err(CliError::failed)?;
    let mut metrics = match settings.metrics {
        Some(address) => Some(Listener::bind_for(address, "--metrics").await),
        None => None,
    }
    .transpose()
    .map_err(CliError::failed)?;
    let reload = runtime::ReloadSignal::new()?;
    tokio::spawn(reload_on(reload, settings.tls.clone()));
    if let Some(tls) = settings.tls {
        metrics = metrics.map(|metrics| metrics.with_tls_for_http1(tls.clone()));
        listener = listener.with_tls(tls);
    }
    let address = listener.address();
    let recording = settings.record.open(&settings.hub.node)?;
    let engine_config = engine::Config {
        node: Arc::clone(&settings.hub.node),
        tell_healthy: recording.captures.is_some(),
        ..engine::Config::default()
    };
    let engine = Engine::new(engine_config, Limits::default());
    let hub = Hub::new(settings.hub);
    if let Some((store, sampler)) = recording.captures {
        hub.set_captures(Captures::new(store, sampler, clock::now));
    }
    let start = Watcher::start(settings.live, engine, recording.recorder, Arc::clone(&hub));
    let mut watcher = start.await.map_err(CliError::failed)?;
    let collectors = settings.collectors.into_iter();
    let pushes: Vec<_> = collectors
        .map(|endpoint| Push::start(&hub, PushConfig::new(endpoint)))
        .collect();
    let (stop_serving, stopped) = oneshot::channel::<()>();
    let stopped = async {
        // A dropped sender means stop as well.
        let _ = stopped.await;
    };
    let mut server = tokio::spawn(serve_agent(listener, Arc::clone(&hub), stopped));
    let scraped = metrics.map(|listener| {
        info!(listen = %listener.address(), "serving metrics");
        tokio::spawn(serve_metrics(listener, Arc::clone(&hub)))
    });

    let attached = watcher.probes.iter().filter(|probe| probe.attached).count();
    for probe in watcher.probes.iter().filter(|probe| !probe.attached) {
        warn!("probe {} is not attached: {}", probe.name, probe.reason);
    }
    info!(
        node = %hub.config().node,
        listen = %address,
        probes = %format_args!("{attached}/{}", watcher.probes.len()),
        "watching"
    );

    let mut ended = None;
    let failure = tokio::select! {
        name = signal.wait() => {
            info!("stopping on {name}");
            None
        }
        error = watcher.failed() => Some(CliError::failed(error)),
        outcome = &mut server => {
            ended = Some(outcome);
            None
        }
    };

    // The source first, so that nothing is published after the readers have gone.
    watcher.stop().await;
    let stopping: Vec<_> = pushes
        .into_iter()
        .map(|push| tokio::spawn(push.stop(STOP_GRACE)))
        .collect();
    for push in stopping {
        match push.await {
            Ok(0) | Err(_) => {}
            Ok(lost) => warn!(
                lost,
                "events were not acknowledged by a collector and are lost"
            ),
        }
    }
    // Nothing waits for a scrape.
    if let Some(scraped) = scraped {
        scraped.abort();
    }
    drop(stop_serving);
    let outcome = match ended {
        Some(outcome) => outcome,
        None => server.await,
    };
    match failure {
        Some(error) => Err(error),
        None => outcome.map_err(CliError::failed)?.map_err(CliError::failed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(names: &[&str]) -> Vec<String> {
        let mut gateways = vec!["nginx".to_owned(), "haproxy".to_owned()];
        choose_gateways(
            &mut gateways,
            names.iter().map(|&name| name.to_owned()).collect(),
        );
        gateways
    }

    #[test]
    fn gateways_replace_or_add() {
        assert_eq!(chosen(&[]), ["nginx", "haproxy"]);
        assert_eq!(chosen(&["+edge", "+nginx"]), ["nginx", "haproxy", "edge"]);
        assert_eq!(chosen(&["edge"]), ["edge"]);
        assert_eq!(chosen(&["+other", "edge"]), ["other", "edge"]);
    }

    #[test]
    fn flags_win_over_the_file() {
        assert_eq!(given(vec![1], vec![2, 3]), [1]);
        assert_eq!(given(Vec::new(), vec![2, 3]), [2, 3]);
    }
}
