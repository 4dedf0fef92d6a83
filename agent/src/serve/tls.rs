//! TLS from PEM files: what a server proves and demands, what a client proves and trusts.
//!
//! Decides which files are good enough to start with: every fault names the file, the flag that gave
//! it, and the remedy, before anything listens or connects. Who may call what is in [`super::access`].

use std::error::Error;
use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::watch;
use tokio_rustls::rustls;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime,
};
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::server::{
    NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier,
};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tokio_stream::wrappers::WatchStream;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::X509Version;

/// A peer that does not finish its handshake this long is given up.
pub(super) const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(5);

/// Certificates and keys are a few kilobytes; anything longer was meant for something else. The longest
/// lists of revoked certificates have some megabytes.
const MAX_FILE: u64 = 1024 * 1024;
const MAX_LIST: u64 = 64 * 1024 * 1024;

/// A PEM file and the flag that named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PemFile {
    /// Where it is.
    pub path: PathBuf,
    /// How it was given, for messages.
    pub flag: &'static str,
}

impl PemFile {
    /// The file at `path`, given by `flag`.
    pub fn new(path: impl Into<PathBuf>, flag: &'static str) -> Self {
        Self {
            path: path.into(),
            flag,
        }
    }
}

impl fmt::Display for PemFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.path.display(), self.flag)
    }
}

/// What is wrong with the files for TLS.
#[derive(Debug, Error)]
pub enum TlsError {
    /// Absent, unreadable or no file.
    #[error("cannot read {file}: {source}; check the path and its permissions")]
    Read {
        /// Which.
        file: PemFile,
        /// What the system said.
        source: io::Error,
    },
    /// Far longer than such files are.
    #[error("{file} is longer than {most} bytes: give a PEM file")]
    Length {
        /// Which.
        file: PemFile,
        /// How long it may be.
        most: u64,
    },
    /// Holds nothing of the kind that is wanted.
    #[error("{file} holds no {wanted}{found}: give a PEM file with a `BEGIN {label}` block")]
    Absent {
        /// Which.
        file: PemFile,
        /// What was looked for.
        wanted: &'static str,
        /// What is there instead, as the rest of the sentence.
        found: &'static str,
        /// The PEM label that was looked for.
        label: &'static str,
    },
    /// A key behind a passphrase.
    #[error(
        "{file} holds an encrypted key, and nobody is there to type its passphrase: decrypt it with \
         `openssl pkey -in {} -out FILE`", file.path.display()
    )]
    Encrypted {
        /// Which.
        file: PemFile,
    },
    /// PEM, but broken inside.
    #[error("{file} is damaged: {source}; make it again")]
    Damaged {
        /// Which.
        file: PemFile,
        /// What the parser said.
        source: rustls::pki_types::pem::Error,
    },
    /// A certificate or key that TLS cannot be done with.
    #[error("{file} cannot be used: {source}; make it again")]
    Unusable {
        /// Which.
        file: PemFile,
        /// What rustls said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A certificate of the time before extensions, which TLS here does not take.
    #[error(
        "{file} is a certificate of X.509 version 1, as `openssl x509 -req` makes without extensions: \
         sign it with some, such as extendedKeyUsage, by -extfile or -copy_extensions copy"
    )]
    Version {
        /// Which.
        file: PemFile,
    },
    /// A key of another certificate.
    #[error(
        "the key in {key} does not belong to the certificate in {cert}: give the key that this \
         certificate was made for; the server's or client's own certificate comes first in its file"
    )]
    Mismatch {
        /// The certificate.
        cert: PemFile,
        /// The key.
        key: PemFile,
    },
}

/// The files of a server.
#[derive(Clone, Debug)]
pub struct ServerFiles {
    /// Its certificate and the chain to its CA.
    pub cert: PemFile,
    /// The key of that.
    pub key: PemFile,
    /// The CAs whose certificates clients must have.
    pub client_ca: PemFile,
    /// Lists of the certificates that those have revoked. Where it is given, each CA between a client's
    /// certificate and the last one needs a list in it.
    pub client_crl: Option<PemFile>,
}

/// What a server proves itself with, and whose certificates it takes. Clones share both.
#[derive(Clone, Debug)]
pub struct ServerTls {
    files: Arc<ServerFiles>,
    current: watch::Sender<Current>,
}

/// What is spoken inside TLS; the client has to offer it (RFC 7301), if it offers anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http2,
    Http1,
}

/// What the files said when they were read last.
#[derive(Clone)]
pub(super) struct Current {
    http2: Arc<ServerConfig>,
    http1: Arc<ServerConfig>,
    verifier: Arc<dyn ClientCertVerifier>,
}

impl ServerTls {
    /// A server that proves itself with its certificate and key, and takes only clients with a certificate
    /// that one of its CAs has signed and not revoked.
    pub fn load(files: ServerFiles) -> Result<Self, TlsError> {
        let current = Current::load(&files)?;
        Ok(Self {
            files: Arc::new(files),
            current: watch::Sender::new(current),
        })
    }

    /// Reads the files again. New connections go by them, and open ones end whose client is not taken any
    /// more. Where anything is wrong with them, everything stays as it was.
    pub fn reload(&self) -> Result<(), TlsError> {
        let current = Current::load(&self.files)?;
        self.current.send_replace(current);
        Ok(())
    }

    pub(super) fn config(&self, protocol: Protocol) -> Arc<ServerConfig> {
        let current = self.current.borrow();
        Arc::clone(match protocol {
            Protocol::Http2 => &current.http2,
            Protocol::Http1 => &current.http1,
        })
    }

    /// What the files say from now on, each time that they are read again.
    pub(super) fn reloads(&self) -> WatchStream<Current> {
        WatchStream::from_changes(self.current.subscribe())
    }
}

impl Current {
    fn load(files: &ServerFiles) -> Result<Self, TlsError> {
        let ServerFiles {
            cert,
            key,
            client_ca,
            client_crl,
        } = files;
        let provider = provider();
        let (_, chain) = certificates(cert)?;
        let (_, private) = private_key(key)?;
        let unusable = |file: &PemFile, source: Box<dyn Error + Send + Sync>| TlsError::Unusable {
            file: file.clone(),
            source,
        };
        check_pair((cert, chain.clone()), (key, &private), &provider)?;
        let (_, roots) = roots(client_ca)?;
        let mut builder =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        if let Some(file) = client_crl {
            builder = builder.with_crls(revocations(file)?);
        }
        let verifier = builder
            .build()
            .map_err(|error| match (&error, client_crl) {
                (VerifierBuilderError::InvalidCrl(_), Some(file)) => unusable(file, error.into()),
                _ => unusable(client_ca, error.into()),
            })?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| {
                builder
                    .with_client_cert_verifier(Arc::clone(&verifier))
                    .with_single_cert(chain, private)
            })
            .map_err(|error| unusable(cert, error.into()))?;
        // A resumed session would outlive the certificate that it was checked with.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        let speaking = |name: &[u8]| {
            let mut config = config.clone();
            config.alpn_protocols = vec![name.to_vec()];
            Arc::new(config)
        };
        Ok(Self {
            http2: speaking(b"h2"),
            http1: speaking(b"http/1.1"),
            verifier,
        })
    }

    /// Whether a client with this certificate and the chain behind it would be let in at `now`.
    pub(super) fn takes(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> bool {
        chain.split_first().is_some_and(|(own, others)| {
            let verified = self.verifier.verify_client_cert(own, others, now);
            verified.is_ok()
        })
    }
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Current").finish_non_exhaustive()
    }
}

/// What a client trusts, and what it proves itself with.
#[derive(Clone, Debug)]
pub struct ClientTls(ClientTlsConfig);

impl ClientTls {
    /// A client that takes servers with a certificate that a CA in `ca` has signed, and proves itself
    /// with the certificate and key of `identity`.
    pub fn load(ca: &PemFile, identity: Option<(&PemFile, &PemFile)>) -> Result<Self, TlsError> {
        let (ca, _) = roots(ca)?;
        let mut config = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(ca))
            .timeout(HANDSHAKE_PATIENCE);
        if let Some((cert, key)) = identity {
            let (cert_pem, chain) = certificates(cert)?;
            let (key_pem, private) = private_key(key)?;
            check_pair((cert, chain), (key, &private), &provider())?;
            config = config.identity(Identity::from_pem(cert_pem, key_pem));
        }
        Ok(Self(config))
    }

    pub(super) fn config(&self) -> ClientTlsConfig {
        self.0.clone()
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Whether the first certificate can be used, and the key is its own.
fn check_pair(
    (cert, chain): (&PemFile, Vec<CertificateDer<'static>>),
    (key, private): (&PemFile, &PrivateKeyDer<'static>),
    provider: &CryptoProvider,
) -> Result<(), TlsError> {
    // Authorities may be as old as they like.
    let is_old = |der: &CertificateDer<'_>| {
        let parsed = X509Certificate::from_der(der);
        parsed.is_ok_and(|(_, certificate)| certificate.version() != X509Version::V3)
    };
    if chain.first().is_some_and(is_old) {
        let file = cert.clone();
        return Err(TlsError::Version { file });
    }
    let Err(error) = CertifiedKey::from_der(chain, private.clone_key(), provider) else {
        return Ok(());
    };
    Err(match error {
        rustls::Error::InconsistentKeys(_) => TlsError::Mismatch {
            cert: cert.clone(),
            key: key.clone(),
        },
        rustls::Error::InvalidCertificate(_) => TlsError::Unusable {
            file: cert.clone(),
            source: error.into(),
        },
        _ => TlsError::Unusable {
            file: key.clone(),
            source: error.into(),
        },
    })
}

fn read(file: &PemFile, most: u64) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Read {
        file: file.clone(),
        source,
    };
    let length = fs::metadata(&file.path).map_err(failed)?.len();
    if length > most {
        let file = file.clone();
        return Err(TlsError::Length { file, most });
    }
    fs::read(&file.path).map_err(failed)
}

/// The text of a file and the certificates in it, at least one.
fn certificates(file: &PemFile) -> Result<(Vec<u8>, Vec<CertificateDer<'static>>), TlsError> {
    let pem = read(file, MAX_FILE)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let certificates = certificates.map_err(|source| TlsError::Damaged {
        file: file.clone(),
        source,
    })?;
    if certificates.is_empty() {
        return Err(TlsError::Absent {
            file: file.clone(),
            wanted: "certificate",
            found: match PrivateKeyDer::from_pem_slice(&pem) {
                Ok(_) => ", but a private key",
                Err(_) => "",
            },
            label: "CERTIFICATE",
        });
    }
    Ok((pem, certificates))
}

/// The lists of revoked certificates in a file, at least one.
fn revocations(file: &PemFile) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let pem = read(file, MAX_LIST)?;
    let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&pem).collect();
    let lists = lists.map_err(|source| TlsError::Damaged {
        file: file.clone(),
        source,
    })?;
    if lists.is_empty() {
        return Err(TlsError::Absent {
            file: file.clone(),
            wanted: "list of revoked certificates",
            found: match CertificateDer::from_pem_slice(&pem) {
                Ok(_) => ", but a certificate",
                Err(_) => "",
            },
            label: "X509 CRL",
        });
    }
    Ok(lists)
}

/// The text of a file and the first key in it.
fn private_key(file: &PemFile) -> Result<(Vec<u8>, PrivateKeyDer<'static>), TlsError> {
    let pem = read(file, MAX_FILE)?;
    let file = file.clone();
    match PrivateKeyDer::from_pem_slice(&pem) {
        Ok(key) => Ok((pem, key)),
        Err(rustls::pki_types::pem::Error::NoItemsFound) => {
            if is_encrypted(&pem) {
                return Err(TlsError::Encrypted { file });
            }
            Err(TlsError::Absent {
                file,
                wanted: "private key",
                found: match CertificateDer::from_pem_slice(&pem) {
                    Ok(_) => ", but a certificate",
                    Err(_) => "",
                },
                label: "PRIVATE KEY",
            })
        }
        Err(source) => Err(TlsError::Damaged { file, source }),
    }
}

/// Both ways to write an encrypted key: a label of its own, or a header inside the old labels.
fn is_encrypted(pem: &[u8]) -> bool {
    ["BEGIN ENCRYPTED PRIVATE KEY", "Proc-Type: 4,ENCRYPTED"]
        .iter()
        .any(|mark| memchr::memmem::find(pem, mark.as_bytes()).is_some())
}

fn roots(file: &PemFile) -> Result<(Vec<u8>, RootCertStore), TlsError> {
    let (pem, certificates) = certificates(file)?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate).map_err(|error| TlsError::Unusable {
            file: file.clone(),
            source: error.into(),
        })?;
    }
    Ok((pem, roots))
}

/// Why a peer could not be reached or talked to, in the words of an operator where the reason is
/// one of TLS, and otherwise as the last error of the chain puts it: tonic itself says no more than
/// "transport error".
pub fn reason(error: &(dyn Error + 'static)) -> String {
    let mut last = error;
    let mut chain = last.to_string();
    while let Some(source) = last.source() {
        last = source;
        chain.push('\n');
        chain += &last.to_string();
    }
    // HTTP/2 keeps only the text of an error of the layer below, so text is what can be matched.
    let plain = REASONS.iter().find(|(said, _)| chain.contains(said));
    plain.map_or_else(|| last.to_string(), |(_, means)| (*means).to_owned())
}

/// What rustls says, and what that means here.
const REASONS: &[(&str, &str)] = &[
    (
        "received fatal alert: CertificateRequired",
        "it demands a certificate of the client; give one with --tls-cert and --tls-key",
    ),
    (
        "received fatal alert: UnknownCA",
        "it does not trust the CA of the client's certificate; give a certificate of the CA that it \
         has as --tls-client-ca",
    ),
    (
        "received fatal alert: CertificateExpired",
        "the client's certificate has expired; renew it",
    ),
    (
        "received fatal alert: CertificateRevoked",
        "the client's certificate was revoked; give another",
    ),
    (
        "received fatal alert: UnsupportedCertificate",
        "the client's certificate is not one for clients; give one with the extended key usage \
         clientAuth",
    ),
    (
        "received fatal alert: BadCertificate",
        "it refuses the client's certificate; its log has the reason",
    ),
    (
        "received fatal alert: DecryptError",
        "it does not trust the CA of the client's certificate; give a certificate of the CA that it \
         has as --tls-client-ca",
    ),
    (
        "invalid peer certificate: UnknownIssuer",
        "its certificate is not signed by the CA in --tls-ca; give the CA that signed it",
    ),
    (
        "invalid peer certificate: BadSignature",
        "its certificate is not signed by the CA in --tls-ca; give the CA that signed it",
    ),
    (
        "invalid peer certificate: certificate expired",
        "its certificate has expired; renew it",
    ),
    (
        "invalid peer certificate: certificate not valid for name",
        "its certificate is for another name; give the address by a name in the certificate",
    ),
    (
        "received corrupt message of type InvalidContentType",
        "it answers in plain text; leave the --tls flags out, or give the port that speaks TLS",
    ),
    // What HTTP/2 makes of the alert that a TLS server answers plain text with.
    (
        "frame with invalid size",
        "it does not answer in plain HTTP/2; if it listens with TLS, give --tls-ca, --tls-cert and \
         --tls-key",
    ),
];
