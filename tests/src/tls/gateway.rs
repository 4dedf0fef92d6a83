//! How each gateway is told to speak TLS to one upstream.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Result;

use crate::tls::pki::{NAME, Pki};
use crate::tls::{Client, Versions};

/// TLS to one upstream, with the files that it takes.
#[derive(Clone, Debug)]
pub struct Secure {
    client: Client,
    roots: PathBuf,
    revocations: Option<PathBuf>,
    identity: Option<PathBuf>,
}

impl Secure {
    /// The files that `client` takes are those of `pki`.
    pub fn new(client: Client, pki: &Pki) -> Self {
        Self {
            client,
            roots: pki.roots(),
            revocations: client.revocations.then(|| pki.revocations()),
            identity: client.identity.map(|identity| pki.identity(identity)),
        }
    }

    /// Whether the gateway speaks HTTP/2 inside.
    pub fn http2(&self) -> bool {
        self.client.http2
    }

    /// Directives of nginx for a location that passes to https or grpcs.
    pub fn nginx(&self) -> Result<String> {
        let of = if self.http2() { "grpc" } else { "proxy" };
        let mut text = format!(
            "{of}_ssl_verify on; {of}_ssl_verify_depth 3; {of}_ssl_trusted_certificate {}; \
             {of}_ssl_name {NAME}; {of}_ssl_server_name {}; {of}_ssl_protocols {}; ",
            self.roots.display(),
            if self.client.sni { "on" } else { "off" },
            self.protocols("", "TLSv1.2", "TLSv1.3", " "),
        );
        if let Some(list) = &self.revocations {
            write!(text, "{of}_ssl_crl {}; ", list.display())?;
        }
        if let Some(file) = &self.identity {
            write!(
                text,
                "{of}_ssl_certificate {0}; {of}_ssl_certificate_key {0}; ",
                file.display()
            )?;
        }
        Ok(text)
    }

    /// Words of a `server` line of HAProxy.
    pub fn haproxy(&self) -> Result<String> {
        let mut text = format!(
            " ssl verify required ca-file {} verifyhost {NAME}",
            self.roots.display()
        );
        if self.client.sni {
            write!(text, " sni str({NAME})")?;
        }
        if let Some(list) = &self.revocations {
            write!(text, " crl-file {}", list.display())?;
        }
        if let Some(file) = &self.identity {
            write!(text, " crt {}", file.display())?;
        }
        match self.client.versions {
            Versions::Only12 => text += " ssl-min-ver TLSv1.2 ssl-max-ver TLSv1.2",
            Versions::Only13 => text += " ssl-min-ver TLSv1.3",
            // It would take TLS 1.0 as well.
            Versions::Both | Versions::Only11 => text += " ssl-min-ver TLSv1.2",
        }
        if self.http2() {
            text += " alpn h2";
        }
        Ok(text)
    }

    /// Lines of Apache for a `Proxy` section.
    pub fn apache(&self) -> Result<String> {
        let mut text = format!(
            "SSLProxyEngine on\nSSLProxyVerify require\nSSLProxyVerifyDepth 3\n\
             SSLProxyCACertificateFile {}\nSSLProxyProtocol {}\n",
            self.roots.display(),
            self.protocols("-all ", "+TLSv1.2", "+TLSv1.3", " "),
        );
        if !self.client.sni {
            // It compares with the name that it asks for, and asks for none.
            text += "SSLProxyCheckPeerName off\n";
        }
        if let Some(list) = &self.revocations {
            writeln!(
                text,
                "SSLProxyCARevocationFile {}\nSSLProxyCARevocationCheck chain",
                list.display()
            )?;
        }
        if let Some(file) = &self.identity {
            writeln!(text, "SSLProxyMachineCertificateFile {}", file.display())?;
        }
        Ok(text)
    }

    /// Whether Apache sends the name that its client asked for.
    pub fn preserve_host(&self) -> bool {
        self.client.sni
    }

    fn protocols(&self, start: &str, tls12: &str, tls13: &str, between: &str) -> String {
        let list = match self.client.versions {
            Versions::Only12 => tls12.to_owned(),
            Versions::Only13 => tls13.to_owned(),
            Versions::Both | Versions::Only11 => format!("{tls12}{between}{tls13}"),
        };
        format!("{start}{list}")
    }
}
