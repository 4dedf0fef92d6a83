//! Certificates for the tests of TLS, made as they are needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hopscope::serve::{ClientTls, PemFile, ServerFiles, ServerTls};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams,
    SerialNumber, date_time_ymd,
};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// A certificate authority and the directory in which everything that it signs is written.
pub(crate) struct Authority {
    dir: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// Files of a certificate and its key.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("ca.pem"), issuer.as_ref().pem()).unwrap();
        Self { dir, issuer }
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.dir().join("ca.pem")
    }

    /// A server's certificate for `name`.
    pub(crate) fn server(&self, name: &str) -> Pair {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(&format!("server-{name}"), &params)
    }

    /// A client's certificate with the unit that gives `role`, if any.
    pub(crate) fn client(&self, name: &str, unit: Option<&str>) -> Pair {
        self.sign(name, &client_params(name, unit))
    }

    /// The same, but out of date.
    pub(crate) fn expired(&self, name: &str, unit: Option<&str>) -> Pair {
        let mut params = client_params(name, unit);
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
        self.sign(name, &params)
    }

    fn sign(&self, name: &str, params: &CertificateParams) -> Pair {
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        let pair = Pair {
            cert: self.dir().join(format!("{name}.pem")),
            key: self.dir().join(format!("{name}.key")),
        };
        fs::write(&pair.cert, cert.pem()).unwrap();
        fs::write(&pair.key, key.serialize_pem()).unwrap();
        pair
    }

    /// A client's certificate that [`revoke`](Self::revoke) knows by this number.
    pub(crate) fn numbered(&self, name: &str, number: u64) -> Pair {
        let mut params = client_params(name, None);
        params.serial_number = Some(SerialNumber::from(number));
        self.sign(name, &params)
    }

    /// Writes the list of revoked certificates with these numbers.
    pub(crate) fn revoke(&self, numbers: &[u64]) -> PathBuf {
        let revoked = |number: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*number),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2124, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: numbers.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = params.signed_by(&self.issuer).unwrap();
        let path = self.dir().join("crl.pem");
        fs::write(&path, list.pem().unwrap()).unwrap();
        path
    }

    /// The files of a server on 127.0.0.1 that takes clients of this authority.
    pub(crate) fn files(&self) -> ServerFiles {
        let pair = self.server("127.0.0.1");
        ServerFiles {
            cert: PemFile::new(pair.cert, "--tls-cert"),
            key: PemFile::new(pair.key, "--tls-key"),
            client_ca: PemFile::new(self.ca(), "--tls-client-ca"),
            client_crl: None,
        }
    }

    /// The same, that takes no revoked ones.
    pub(crate) fn files_with_list(&self) -> ServerFiles {
        ServerFiles {
            client_crl: Some(PemFile::new(self.revoke(&[]), "--client-crl")),
            ..self.files()
        }
    }

    /// A server with those files.
    pub(crate) fn serve(&self) -> ServerTls {
        ServerTls::load(self.files()).unwrap()
    }

    /// A client without gRPC that trusts this authority, shows `pair` and offers these protocols.
    pub(crate) fn connector(&self, pair: &Pair, protocols: &[&str]) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.ca()) {
            roots.add(certificate).unwrap();
        }
        let key = PrivateKeyDer::from_pem_file(&pair.key).unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(certificates(&pair.cert), key)
            .unwrap();
        config.alpn_protocols = protocols
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        TlsConnector::from(Arc::new(config))
    }

    /// A client that trusts this authority and shows the certificate in `pair`, if any.
    pub(crate) fn trusting(&self, pair: Option<&Pair>) -> ClientTls {
        let files = pair.map(|pair| {
            (
                PemFile::new(&pair.cert, "--tls-cert"),
                PemFile::new(&pair.key, "--tls-key"),
            )
        });
        let files = files.as_ref().map(|(cert, key)| (cert, key));
        ClientTls::load(&PemFile::new(self.ca(), "--tls-ca"), files).unwrap()
    }
}

fn certificates(path: &Path) -> Vec<CertificateDer<'static>> {
    let read = CertificateDer::pem_file_iter(path).unwrap();
    read.map(|certificate| certificate.unwrap()).collect()
}

fn client_params(name: &str, unit: Option<&str>) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(unit) = unit {
        params
            .distinguished_name
            .push(DnType::OrganizationalUnitName, unit);
    }
    params
}
