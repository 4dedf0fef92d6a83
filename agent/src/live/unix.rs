//! Unix sockets: the name in a `sockaddr_un`, and which names are no upstream.

use std::sync::Arc;

/// Sockets that a process connects to on behalf of its libraries rather than of a request: where name
/// services, the system's log and buses have theirs. A name matches by its beginning, after `/var/run`
/// was read as `/run`.
const SERVICES: [&str; 20] = [
    // syslog(3) over a stream.
    "/dev/log",
    // Journal, notify socket, and the varlink services behind name lookups.
    "/run/systemd/",
    "/run/userdb/",
    // Name service caches and the sources behind nsswitch.conf(5).
    "/run/nscd/",
    "/run/nslcd/",
    "/run/unscd/",
    "/var/db/nscd/",
    "/var/lib/sss/pipes/",
    "/run/avahi-daemon/",
    "/run/mdnsd",
    "/run/samba/winbindd/",
    "/run/winbindd/",
    // Buses.
    "/run/dbus/",
    "@/tmp/dbus-",
    "@/org/freedesktop/",
    // Smart cards and hardware keys behind a crypto library.
    "/run/pcscd/",
    "/run/p11-kit/",
    // Device events and identifiers.
    "/run/udev/",
    "/run/uuidd/",
    // HAProxy fetches its listeners from the one that it replaces.
    "/run/haproxy/admin.sock",
];

/// The buses of users, below a directory that may hold upstreams as well.
const USERS: &str = "/run/user/";

/// The name in `sun_path`, of which `bytes` were given: a path up to its NUL, or `@` and an abstract
/// name, as unix(7) and ss(8) show it. `None` for a socket without a name.
pub(super) fn name(bytes: &[u8]) -> Option<Arc<str>> {
    let name = match bytes {
        [] => return None,
        // Every byte of an abstract name counts. Callers that pass the whole structure fill it up.
        [0, abstract_name @ ..] => {
            let len = abstract_name.iter().rposition(|byte| *byte != 0)? + 1;
            let text = String::from_utf8_lossy(&abstract_name[..len]).replace('\0', "@");
            format!("@{text}")
        }
        path => {
            let len = path.iter().position(|byte| *byte == 0);
            String::from_utf8_lossy(&path[..len.unwrap_or(path.len())]).into_owned()
        }
    };
    Some(Arc::from(name))
}

/// Whether the socket called `name` belongs to a service of the system, so that no upstream is behind it.
pub(super) fn is_service(name: &str) -> bool {
    let canonical = match name.strip_prefix("/var/run/") {
        Some(rest) => format!("/run/{rest}"),
        None => name.to_owned(),
    };
    let of_user = canonical
        .strip_prefix(USERS)
        .and_then(|rest| rest.split_once('/'))
        .is_some_and(|(_, rest)| rest == "bus" || rest.starts_with("systemd/"));
    of_user
        || SERVICES
            .iter()
            .any(|service| canonical.starts_with(service))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_end_at_their_nul() {
        assert_eq!(name(b"/run/app.sock").as_deref(), Some("/run/app.sock"));
        assert_eq!(
            name(b"/run/app.sock\0old").as_deref(),
            Some("/run/app.sock")
        );
        assert_eq!(name(&[b'a'; 108]).map(|name| name.len()), Some(108));
        assert_eq!(name(b"/run/\xff").as_deref(), Some("/run/\u{fffd}"));
    }

    #[test]
    fn abstract_names_are_shown_with_an_at_sign() {
        assert_eq!(name(b"\0app").as_deref(), Some("@app"));
        assert_eq!(name(b"\0app\0\0\0").as_deref(), Some("@app"));
        assert_eq!(name(b"\0a\0b").as_deref(), Some("@a@b"));
        for nameless in [&b""[..], b"\0", b"\0\0\0"] {
            assert_eq!(name(nameless), None);
        }
    }

    #[test]
    fn services_are_told_from_upstreams() {
        for service in [
            "/dev/log",
            "/run/systemd/journal/stdout",
            "/run/systemd/resolve/io.systemd.Resolve",
            "/var/run/nscd/socket",
            "/var/run/dbus/system_bus_socket",
            "/run/user/1000/bus",
            "/var/lib/sss/pipes/nss",
            "@/tmp/dbus-Xyz",
        ] {
            assert!(is_service(service), "{service}");
        }
        for upstream in [
            "/run/app.sock",
            "/run/php/php8.2-fpm.sock",
            "/var/run/gunicorn.sock",
            "/run/user/1000/app.sock",
            "/run/user/1000/business.sock",
            "/srv/dev/log",
            "app.sock",
            "@app",
        ] {
            assert!(!is_service(upstream), "{upstream}");
        }
    }
}
