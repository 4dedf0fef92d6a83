//! The flags that protect a server's address and that get a client through such protection.
//!
//! Decides which flags belong together; whether their files are any good is decided in
//! [`crate::serve`].

use core::net::SocketAddr;
use std::path::PathBuf;

use tracing::{error, info, warn};

use super::CliError;
use super::runtime::ReloadSignal;
use crate::serve::{ClientTls, Endpoint, PemFile, ServerFiles, ServerTls, check_listen};

/// Flags of a command that listens.
#[derive(Debug, Default, clap::Args)]
pub(super) struct ServerFlags {
    /// PEM file with this server's certificate and the chain to its CA. An address other than
    /// loopback needs this, --tls-key and --tls-client-ca.
    #[arg(long, value_name = "FILE")]
    pub(super) tls_cert: Option<PathBuf>,

    /// PEM file with the private key of --tls-cert.
    #[arg(long, value_name = "FILE")]
    pub(super) tls_key: Option<PathBuf>,

    /// PEM file with the CAs whose certificates clients must have.
    #[arg(long, value_name = "FILE")]
    pub(super) tls_client_ca: Option<PathBuf>,

    /// PEM file with lists of client certificates that were revoked, one of each CA in --tls-client-ca.
    #[arg(long, value_name = "FILE")]
    pub(super) client_crl: Option<PathBuf>,

    /// Listen in plain text where other hosts can connect. Nobody gets captures then.
    #[arg(long)]
    pub(super) insecure: bool,
}

impl ServerFlags {
    /// These flags where given, otherwise `file`.
    pub(super) fn or(self, file: Self) -> Self {
        Self {
            tls_cert: self.tls_cert.or(file.tls_cert),
            tls_key: self.tls_key.or(file.tls_key),
            tls_client_ca: self.tls_client_ca.or(file.tls_client_ca),
            client_crl: self.client_crl.or(file.client_crl),
            insecure: self.insecure || file.insecure,
        }
    }

    /// What protects `listen`, if it may be listened on at all.
    pub(super) fn protect(self, listen: SocketAddr) -> Result<Option<ServerTls>, CliError> {
        let files = [
            ("--tls-cert", self.tls_cert),
            ("--tls-key", self.tls_key),
            ("--tls-client-ca", self.tls_client_ca),
        ];
        let files = together(files)?;
        check_listen(listen, files.is_some(), self.insecure).map_err(CliError::usage)?;
        if self.insecure && !listen.ip().to_canonical().is_loopback() {
            warn!(%listen, "--insecure: whoever can connect can read what is served here");
        }
        let client_crl = self
            .client_crl
            .map(|path| PemFile::new(path, "--client-crl"));
        let Some([cert, key, client_ca]) = files else {
            return match client_crl {
                Some(file) => Err(CliError::usage(format!(
                    "{} is given without --tls-client-ca: give the CA that made it too",
                    file.flag
                ))),
                None => Ok(None),
            };
        };
        let tls = ServerTls::load(ServerFiles {
            cert,
            key,
            client_ca,
            client_crl,
        });
        tls.map(Some).map_err(CliError::usage)
    }
}

/// Reads the files of `tls` again on each SIGHUP. What is wrong with them is logged, and the old ones stay
/// in use. Never returns.
pub(super) async fn reload_on(mut signal: ReloadSignal, tls: Option<ServerTls>) {
    loop {
        signal.wait().await;
        match tls.as_ref().map(ServerTls::reload) {
            Some(Ok(())) => info!("read the TLS files again"),
            Some(Err(problem)) => error!("the TLS files stay as they were: {problem}"),
            None => info!("SIGHUP: there are no TLS files to read again"),
        }
    }
}

/// Flags of a command that connects.
#[derive(Debug, Default, clap::Args)]
pub(super) struct ClientFlags {
    /// PEM file with the CA of the agent's certificate; TLS is spoken where it is given.
    #[arg(long = "tls-ca", value_name = "FILE")]
    pub(super) ca: Option<PathBuf>,

    /// PEM file with the certificate to show to the agent.
    #[arg(long = "tls-cert", value_name = "FILE")]
    pub(super) cert: Option<PathBuf>,

    /// PEM file with the private key of --tls-cert.
    #[arg(long = "tls-key", value_name = "FILE")]
    pub(super) key: Option<PathBuf>,
}

/// The same flags for the connections of an agent to its collectors.
#[derive(Debug, Default, clap::Args)]
pub(super) struct CollectorFlags {
    /// PEM file with the CA of the collectors' certificates; TLS is spoken where it is given.
    #[arg(long = "collector-tls-ca", value_name = "FILE")]
    pub(super) ca: Option<PathBuf>,

    /// PEM file with the certificate to show to collectors.
    #[arg(long = "collector-tls-cert", value_name = "FILE")]
    pub(super) cert: Option<PathBuf>,

    /// PEM file with the private key of --collector-tls-cert.
    #[arg(long = "collector-tls-key", value_name = "FILE")]
    pub(super) key: Option<PathBuf>,
}

impl ClientFlags {
    /// These flags where given, otherwise `file`.
    pub(super) fn or(self, file: Self) -> Self {
        Self {
            ca: self.ca.or(file.ca),
            cert: self.cert.or(file.cert),
            key: self.key.or(file.key),
        }
    }

    /// The agent at `address`.
    pub(super) fn endpoint(self, address: &str) -> Result<Endpoint, CliError> {
        let flags = ["--tls-ca", "--tls-cert", "--tls-key"];
        let tls = client(flags, self.ca, self.cert, self.key)?;
        Endpoint::parse(address, tls, "--tls-ca").map_err(CliError::usage)
    }
}

impl CollectorFlags {
    /// These flags where given, otherwise `file`.
    pub(super) fn or(self, file: Self) -> Self {
        Self {
            ca: self.ca.or(file.ca),
            cert: self.cert.or(file.cert),
            key: self.key.or(file.key),
        }
    }

    /// The collectors at `addresses`.
    pub(super) fn endpoints(self, addresses: &[String]) -> Result<Vec<Endpoint>, CliError> {
        let flags = [
            "--collector-tls-ca",
            "--collector-tls-cert",
            "--collector-tls-key",
        ];
        let tls = client(flags, self.ca, self.cert, self.key)?;
        let endpoints = addresses
            .iter()
            .map(|address| Endpoint::parse(address, tls.clone(), "--collector-tls-ca"));
        endpoints.collect::<Result<_, _>>().map_err(CliError::usage)
    }
}

/// TLS of a client whose flags are called `flags`.
fn client(
    [ca_flag, cert_flag, key_flag]: [&'static str; 3],
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
) -> Result<Option<ClientTls>, CliError> {
    let identity = together([(cert_flag, cert), (key_flag, key)])?;
    let Some(ca) = ca else {
        return match identity {
            Some(_) => Err(CliError::usage(format!(
                "{cert_flag} is given without {ca_flag}: give the CA of the server's certificate too"
            ))),
            None => Ok(None),
        };
    };
    let ca = PemFile::new(ca, ca_flag);
    let identity = identity.as_ref().map(|[cert, key]| (cert, key));
    let tls = ClientTls::load(&ca, identity).map_err(CliError::usage)?;
    Ok(Some(tls))
}

/// The files of flags that make sense together only.
fn together<const N: usize>(
    flags: [(&'static str, Option<PathBuf>); N],
) -> Result<Option<[PemFile; N]>, CliError> {
    let absent = |wanted: bool| {
        let named: Vec<_> = flags
            .iter()
            .filter(|(_, path)| path.is_none() == wanted)
            .map(|(flag, _)| *flag)
            .collect();
        named.join(" and ")
    };
    let missing = flags.iter().filter(|(_, path)| path.is_none()).count();
    if missing == N {
        return Ok(None);
    }
    if missing > 0 {
        let (given, missing) = (absent(false), absent(true));
        return Err(CliError::usage(format!(
            "{given} needs {missing} as well: give all of them, or none"
        )));
    }
    Ok(Some(flags.map(|(flag, path)| {
        PemFile::new(path.unwrap_or_default(), flag)
    })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_that_belong_together_are_asked_for_together() {
        let flags = ServerFlags {
            tls_cert: Some("cert".into()),
            ..ServerFlags::default()
        };
        let error = flags.protect(([127, 0, 0, 1], 1).into()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "--tls-cert needs --tls-key and --tls-client-ca as well: give all of them, or none"
        );
        let flags = ClientFlags {
            ca: Some("ca".into()),
            key: Some("key".into()),
            ..ClientFlags::default()
        };
        let error = flags.endpoint("a:1").unwrap_err();
        assert_eq!(
            error.to_string(),
            "--tls-key needs --tls-cert as well: give all of them, or none"
        );
        let flags = ClientFlags {
            cert: Some("cert".into()),
            key: Some("key".into()),
            ..ClientFlags::default()
        };
        let error = flags.endpoint("a:1").unwrap_err();
        assert_eq!(
            error.to_string(),
            "--tls-cert is given without --tls-ca: give the CA of the server's certificate too"
        );
    }

    #[test]
    fn flags_win_over_the_file_one_by_one() {
        let flags = ServerFlags {
            tls_cert: Some("flag".into()),
            ..ServerFlags::default()
        };
        let both = flags.or(ServerFlags {
            tls_cert: Some("file".into()),
            tls_key: Some("file".into()),
            insecure: true,
            ..ServerFlags::default()
        });
        assert_eq!(both.tls_cert, Some("flag".into()));
        assert_eq!(both.tls_key, Some("file".into()));
        assert_eq!((both.tls_client_ca, both.insecure), (None, true));
    }
}
