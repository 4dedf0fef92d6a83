//! Who may call what.
//!
//! Decides two things. Where a server may listen: loopback as it is, anything else with TLS and
//! client certificates, or openly if that is asked for in so many words. And who may see captures
//! and change what is sampled: the role `captures`.
//!
//! - Over TLS, a caller has the role whose certificate names it: an organizational unit (OU) of its
//!   subject that is exactly [`CAPTURES_UNIT`]. The unit rather than an alternative name, because
//!   every CA tool can set it, and because a certificate under SPIFFE may have one URI only. The
//!   CA decides who gets it: one that signs whatever subject a request asks for gives the role away.
//! - On loopback without TLS every caller has it: whoever is on the host is held back by the host.
//!   With TLS on loopback, certificates decide there too.
//! - On any other address without TLS nobody has it, because nobody there proves who they are.

use core::net::SocketAddr;

use thiserror::Error;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tonic::Status;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

/// The organizational unit that gives the role `captures`.
pub const CAPTURES_UNIT: &str = "hopscope-captures";

/// The longest part of a subject that is shown.
const SHOWN_SUBJECT: usize = 128;

/// Why a server may not listen where it was told to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AccessError {
    /// Neither loopback nor protected.
    #[error(
        "refusing to listen on {0} in plain text, where others than this host can connect: give \
         --tls-cert, --tls-key and --tls-client-ca, or --insecure to let anybody in"
    )]
    Open(SocketAddr),
    /// Two answers to one question.
    #[error("--insecure and the --tls flags exclude each other: leave --insecure out")]
    Both,
}

/// Whether a server may listen on `address` with or without TLS, openly if `insecure`.
pub fn check_listen(address: SocketAddr, tls: bool, insecure: bool) -> Result<(), AccessError> {
    match (tls, insecure) {
        (true, true) => Err(AccessError::Both),
        (false, false) if !is_loopback(address) => Err(AccessError::Open(address)),
        _ => Ok(()),
    }
}

pub(super) fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    /// Somebody on this host.
    Local,
    /// Anybody.
    Anonymous,
    /// The holder of a certificate that was checked.
    Holder {
        /// As the certificate has it.
        subject: String,
        /// Whether it has the role.
        captures: bool,
    },
}

impl Caller {
    /// The holder of `certificate`, which was checked against the CA before.
    pub(super) fn of(certificate: Option<&CertificateDer<'_>>) -> Self {
        // rustls has let no connection through whose certificate is absent or cannot be read.
        let Some(Ok((_, certificate))) = certificate.map(|der| X509Certificate::from_der(der))
        else {
            return Self::Anonymous;
        };
        let subject = certificate.subject();
        let mut units = subject.iter_organizational_unit();
        Self::Holder {
            captures: units.any(|unit| unit.as_str() == Ok(CAPTURES_UNIT)),
            subject: subject.to_string().chars().take(SHOWN_SUBJECT).collect(),
        }
    }

    /// Refuses callers without the role `captures`.
    pub(super) fn may_capture(&self) -> Result<(), Status> {
        match self {
            Self::Local | Self::Holder { captures: true, .. } => Ok(()),
            Self::Anonymous => Err(Status::permission_denied(
                "this needs the role `captures`, which nobody has where the agent listens in plain text \
                 to other hosts: let it listen on loopback, or with --tls-cert, --tls-key and \
                 --tls-client-ca",
            )),
            Self::Holder { subject, .. } => Err(Status::permission_denied(format!(
                "this needs the role `captures`, which the certificate of `{subject}` does not give: \
                 use one with OU={CAPTURES_UNIT} in its subject"
            ))),
        }
    }
}

/// Refuses a request whose caller lacks the role `captures`, and one that came past the listener.
pub(super) fn may_capture<T>(request: &tonic::Request<T>) -> Result<(), Status> {
    let caller = request.extensions().get::<Caller>();
    caller.unwrap_or(&Caller::Anonymous).may_capture()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_open_by_itself() {
        for address in [
            "127.0.0.1:1",
            "127.9.9.9:1",
            "[::1]:1",
            "[::ffff:127.0.0.1]:1",
        ] {
            let address = address.parse().unwrap();
            assert_eq!(check_listen(address, false, false), Ok(()));
            assert_eq!(check_listen(address, true, false), Ok(()));
            assert_eq!(check_listen(address, false, true), Ok(()));
        }
        for address in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "[::ffff:10.0.0.1]:1"] {
            let address = address.parse().unwrap();
            assert_eq!(
                check_listen(address, false, false),
                Err(AccessError::Open(address))
            );
            assert_eq!(check_listen(address, true, false), Ok(()));
            assert_eq!(check_listen(address, false, true), Ok(()));
            assert_eq!(check_listen(address, true, true), Err(AccessError::Both));
        }
    }

    #[test]
    fn who_did_not_come_through_a_listener_has_no_role() {
        let refused = may_capture(&tonic::Request::new(())).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::PermissionDenied);
        assert_eq!(Caller::of(None), Caller::Anonymous);
        assert_eq!(
            Caller::of(Some(&CertificateDer::from_slice(b"\x30\x03no"))),
            Caller::Anonymous
        );
    }
}
