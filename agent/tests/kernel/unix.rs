//! Connects to unix sockets. The gateway is this very process: a shell cannot open such sockets. Other
//! tests of the process connect to none below this test's directory.

use std::io;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::thread;

use hopscope::live::LiveConfig;
use hopscope::model::{Errno, Target};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};
use rustix::process::Uid;
use rustix::thread::set_thread_res_uid;
use tempfile::TempDir;

use crate::support::{Seen, Watch};

/// A user without rights.
const NOBODY: u32 = 65534;

fn socket(kind: SocketType) -> OwnedFd {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, kind, flags, None).unwrap()
}

/// Watches this process.
fn watch() -> Watch {
    let name = std::fs::read_to_string("/proc/self/comm").unwrap();
    Watch::start(&LiveConfig {
        gateways: vec![name.trim_end().to_owned()],
        ..LiveConfig::default()
    })
}

/// The failed connects to names that begin with `prefix`, each with what is behind it.
fn failures(watch: &Watch, prefix: &str) -> Vec<(String, Errno)> {
    let failed = watch.seen.iter().filter_map(|(_, seen)| match seen {
        Seen::ConnectFailed {
            process,
            upstream: Target::Unix(name),
            errno,
        } => {
            assert_eq!(process.pid, std::process::id());
            assert_ne!(process.netns, 0);
            Some((name.strip_prefix(prefix)?.to_owned(), *errno))
        }
        _ => None,
    });
    failed.collect()
}

fn refused(result: io::Result<UnixStream>) -> Errno {
    Errno(result.unwrap_err().raw_os_error().unwrap())
}

#[test]
fn a_unix_socket_that_fails_is_seen_with_its_path_and_number() {
    let home = TempDir::new().unwrap();
    let path = |name: &str| home.path().join(name);
    let mut watch = watch();

    assert_eq!(refused(UnixStream::connect(path("missing"))), Errno::ENOENT);

    drop(UnixListener::bind(path("stale")).unwrap());
    assert_eq!(
        refused(UnixStream::connect(path("stale"))),
        Errno::ECONNREFUSED
    );

    let _forbidden = UnixListener::bind(path("forbidden")).unwrap();
    let mode = std::fs::Permissions::from_mode;
    std::fs::set_permissions(home.path(), mode(0o755)).unwrap();
    std::fs::set_permissions(path("forbidden"), mode(0o600)).unwrap();
    let errno = thread::scope(|scope| {
        let stranger = scope.spawn(|| {
            let nobody = Uid::from_raw(NOBODY);
            // Of this thread alone.
            set_thread_res_uid(nobody, nobody, nobody).unwrap();
            refused(UnixStream::connect(path("forbidden")))
        });
        stranger.join().unwrap()
    });
    assert_eq!(errno, Errno::EACCES);

    let full = SocketAddrUnix::new(path("full")).unwrap();
    let listener = socket(SocketType::STREAM);
    bind(&listener, &full).unwrap();
    listen(&listener, 0).unwrap();
    let mut waiting = Vec::new();
    let errno = loop {
        let client = socket(SocketType::STREAM);
        match connect(&client, &full) {
            Ok(()) => waiting.push(client),
            Err(error) => break Errno(error.raw_os_error()),
        }
    };
    assert_eq!((errno, waiting.len()), (Errno::EAGAIN, 1));

    watch.until("full backlog", |watch| {
        let prefix = format!("{}/", home.path().display());
        failures(watch, &prefix).len() >= 4
    });
    watch.settle();
    let expected = [
        ("missing", Errno::ENOENT),
        ("stale", Errno::ECONNREFUSED),
        ("forbidden", Errno::EACCES),
        ("full", Errno::EAGAIN),
    ]
    .map(|(name, errno)| (name.to_owned(), errno));
    let prefix = format!("{}/", home.path().display());
    assert_eq!(failures(&watch, &prefix), expected);
    watch.assert_no_loss();
}

#[test]
fn abstract_names_and_paths_of_any_length_are_whole() {
    let home = TempDir::new().unwrap();
    let mut watch = watch();
    let own = format!("hopscope-{}", std::process::id());
    let name = SocketAddr::from_abstract_name(&own).unwrap();
    assert_eq!(
        refused(UnixStream::connect_addr(&name)),
        Errno::ECONNREFUSED
    );
    // The longest that std takes: a NUL has to fit behind it.
    let base = home.path().display().to_string();
    let long = format!("{base}/{}", "x".repeat(107 - base.len() - 1));
    assert_eq!(refused(UnixStream::connect(&long)), Errno::ENOENT);
    watch.until("both", |watch| {
        !failures(watch, &format!("@{own}")).is_empty() && !failures(watch, &long).is_empty()
    });
    assert_eq!(
        failures(&watch, &format!("@{own}")),
        [(String::new(), Errno::ECONNREFUSED)]
    );
    assert_eq!(failures(&watch, &long), [(String::new(), Errno::ENOENT)]);
    watch.assert_no_loss();
}

#[test]
fn healthy_connects_datagrams_and_services_of_the_system_are_none_of_ours() {
    let home = TempDir::new().unwrap();
    let path = |name: &str| home.path().join(name);
    let mut watch = watch();
    let datagram = |to: &Path| {
        let address = SocketAddrUnix::new(to).unwrap();
        connect(socket(SocketType::DGRAM), &address)
    };

    let _listener = UnixListener::bind(path("healthy")).unwrap();
    drop(UnixStream::connect(path("healthy")).unwrap());
    assert!(datagram(&path("missing")).is_err());
    let service = format!("/run/nscd/hopscope-{}", std::process::id());
    assert_eq!(refused(UnixStream::connect(&service)), Errno::ENOENT);
    assert_eq!(refused(UnixStream::connect(path("last"))), Errno::ENOENT);

    let prefix = format!("{}/", home.path().display());
    watch.until("last connect", |watch| !failures(watch, &prefix).is_empty());
    watch.settle();
    assert_eq!(
        failures(&watch, &prefix),
        [("last".to_owned(), Errno::ENOENT)]
    );
    assert_eq!(failures(&watch, &service), []);
    watch.assert_no_loss();
}
