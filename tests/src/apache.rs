//! The configuration of Apache httpd: one process that serves, below one that only starts it.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;

use crate::gateway::{Kind, Route, TIMEOUT};
use crate::socket::Target;
use crate::tls::gateway::Secure;

/// Requests at once: every scenario, and more.
const THREADS: u32 = 256;

/// The lines that load these modules, from where Debian keeps them.
pub fn load(modules: &[&str]) -> String {
    let line =
        |name: &&str| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n");
    modules.iter().map(line).collect()
}

pub(crate) fn config(directory: &Path, routes: &[Route]) -> Result<String> {
    let mut text = format!(
        "ServerRoot {0}\nDefaultRuntimeDir {0}\nPidFile {0}/pid\nErrorLog {0}/log\nLogLevel info\n\
         ServerName lab\nListen {1}\nUser www-data\nGroup www-data\n",
        directory.display(),
        Kind::Apache.address()
    );
    text += &load(&[
        "mpm_event",
        "authz_core",
        "ssl",
        "http2",
        "proxy",
        "proxy_http",
        "proxy_http2",
    ]);
    writeln!(
        text,
        "ServerLimit 1\nStartServers 1\nThreadLimit {THREADS}\nThreadsPerChild {THREADS}\n\
         MaxRequestWorkers {THREADS}\nMinSpareThreads 1\nMaxSpareThreads {THREADS}\n\
         MaxConnectionsPerChild 0\nKeepAlive On\nMaxKeepAliveRequests 0\nProxyTimeout {}",
        TIMEOUT.as_secs()
    )?;
    for route in routes {
        let Route { name, upstream, .. } = route;
        let scheme = match &route.tls {
            None => "http",
            Some(tls) if tls.http2() => "h2",
            Some(_) => "https",
        };
        let url = match upstream {
            Target::Inet(address) => format!("{scheme}://{address}"),
            Target::Unix(path) => format!("unix:{}|{scheme}://{name}", path.display()),
            Target::Name(host) => format!("{scheme}://{host}"),
        };
        if let Some(tls) = &route.tls {
            writeln!(text, "<Proxy \"{url}\">\n{}</Proxy>", tls.apache()?)?;
        }
        let preserve = if route.tls.as_ref().is_none_or(Secure::preserve_host) {
            "On"
        } else {
            "Off"
        };
        let reuse = if route.keep_alive { "Off" } else { "On" };
        // A worker that failed once would not be asked again for a minute.
        writeln!(
            text,
            "<Location \"/{name}\">\nProxyPreserveHost {preserve}\n\
             ProxyPass \"{url}/\" connectiontimeout={} timeout={} retry=0 disablereuse={reuse}\n\
             </Location>",
            route.connect_timeout.as_secs(),
            route.read_timeout.as_secs()
        )?;
    }
    Ok(text)
}
