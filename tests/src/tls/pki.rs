//! Certificates, made when the lab starts: a root that the gateways trust, an intermediate below it, and
//! leaves that are good or wrong in exactly one way.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevocationReason,
    RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};

use crate::cleanup::Directory;
use crate::command::run;

/// The name that every gateway of the lab asks for and checks: its client's `Host` too, which is what
/// Apache takes.
pub const NAME: &str = "lab.test";

/// Serial number of the leaf that the list of revoked certificates holds.
const REVOKED: u64 = 666;

/// What an upstream shows of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Chain {
    /// A good leaf and its intermediate.
    Good,
    /// The leaf ran out.
    Expired,
    /// The leaf is good, its intermediate ran out.
    ExpiredIntermediate,
    /// The leaf is for later.
    NotYetValid,
    /// The leaf signed itself.
    SelfSigned,
    /// Below a root that the gateways do not know, without that root.
    UnknownIssuer,
    /// A good leaf without its intermediate.
    MissingIntermediate,
    /// A leaf for another name.
    WrongName,
    /// A leaf for clients only.
    WrongPurpose,
    /// An RSA key of 1024 bits.
    Weak,
    /// On the list of revoked certificates.
    Revoked,
}

impl Chain {
    const ALL: [Self; 11] = [
        Self::Good,
        Self::Expired,
        Self::ExpiredIntermediate,
        Self::NotYetValid,
        Self::SelfSigned,
        Self::UnknownIssuer,
        Self::MissingIntermediate,
        Self::WrongName,
        Self::WrongPurpose,
        Self::Weak,
        Self::Revoked,
    ];
}

/// What a gateway shows of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// A certificate below the root that the upstreams know.
    Known,
    /// One below that root that ran out.
    Expired,
    /// One below another root. Apache shows none then: it picks one whose issuer the upstream names.
    Unknown,
}

/// The certificates of one lab. Dropping it removes their files.
#[derive(Debug)]
pub struct Pki {
    files: Directory,
}

/// An authority that can sign.
type Authority = CertifiedIssuer<'static, KeyPair>;

impl Pki {
    /// Makes every certificate.
    pub fn new() -> Result<Self> {
        let this = Self {
            files: Directory::new()?,
        };
        let root = authority("lab root", None, None)?;
        let intermediate = authority("lab intermediate", Some(&root), None)?;
        let old = authority("lab old intermediate", Some(&root), Some((2020, 2021)))?;
        let strange_root = authority("strange root", None, None)?;
        let strange = authority("strange intermediate", Some(&strange_root), None)?;
        fs::write(this.roots(), root.pem())?;
        let lists = revoked(&intermediate)? + &revoked(&root)?;
        fs::write(this.revocations(), lists)?;

        for chain in Chain::ALL {
            if chain != Chain::Weak {
                let signer = match chain {
                    Chain::ExpiredIntermediate => Some(&old),
                    Chain::UnknownIssuer => Some(&strange),
                    Chain::SelfSigned => None,
                    _ => Some(&intermediate),
                };
                let (leaf, key) = sign(&leaf(chain)?, signer)?;
                fs::write(this.leaf(chain), leaf)?;
                fs::write(this.key(chain), key)?;
            }
            let above = match chain {
                Chain::SelfSigned | Chain::MissingIntermediate => String::new(),
                Chain::UnknownIssuer => strange.pem(),
                Chain::ExpiredIntermediate => old.pem(),
                _ => intermediate.pem(),
            };
            fs::write(this.above(chain), above)?;
        }
        this.make_weak(&intermediate)
            .context("could not make a weak certificate")?;
        for (identity, signer) in [
            (Identity::Known, &root),
            (Identity::Expired, &root),
            (Identity::Unknown, &strange_root),
        ] {
            let mut params = named("lab gateway")?;
            if identity == Identity::Expired {
                params.not_after = date_time_ymd(2025, 1, 1);
            }
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            let (certificate, key) = sign(&params, Some(signer))?;
            fs::write(this.identity(identity), certificate + &key)?;
        }
        Ok(this)
    }

    /// What the gateways trust, and the upstreams for clients.
    pub fn roots(&self) -> PathBuf {
        self.path().join("roots.pem")
    }

    /// The lists of revoked certificates.
    pub fn revocations(&self) -> PathBuf {
        self.path().join("revoked.pem")
    }

    /// The first certificate of `chain`.
    pub fn leaf(&self, chain: Chain) -> PathBuf {
        self.path().join(format!("{chain:?}.leaf.pem"))
    }

    /// The other certificates of `chain`; an empty file where there is none.
    pub fn above(&self, chain: Chain) -> PathBuf {
        self.path().join(format!("{chain:?}.above.pem"))
    }

    /// The key of `chain`.
    pub fn key(&self, chain: Chain) -> PathBuf {
        self.path().join(format!("{chain:?}.key.pem"))
    }

    /// Certificate and key of a gateway, in one file.
    pub fn identity(&self, identity: Identity) -> PathBuf {
        self.path().join(format!("{identity:?}.client.pem"))
    }

    fn path(&self) -> &Path {
        self.files.path()
    }

    /// Makes the one key that today's libraries refuse to make.
    fn make_weak(&self, issuer: &Authority) -> Result<()> {
        let path = |name: &str| self.path().join(name).to_string_lossy().into_owned();
        let (ca, ca_key, request) = (path("weak.ca"), path("weak.ca.key"), path("weak.request"));
        let extensions = path("weak.extensions");
        fs::write(&ca, issuer.pem())?;
        fs::write(&ca_key, issuer.key().serialize_pem())?;
        fs::write(
            &extensions,
            format!("subjectAltName=DNS:{NAME}\nextendedKeyUsage=serverAuth\n"),
        )?;
        let key = self.key(Chain::Weak).to_string_lossy().into_owned();
        let leaf = self.leaf(Chain::Weak).to_string_lossy().into_owned();
        run("openssl", &["genrsa", "-out", &key, "1024"])?;
        let subject = format!("/CN={NAME}");
        run(
            "openssl",
            &[
                "req", "-new", "-key", &key, "-subj", &subject, "-out", &request,
            ],
        )?;
        run(
            "openssl",
            &[
                "x509",
                "-req",
                "-in",
                &request,
                "-CA",
                &ca,
                "-CAkey",
                &ca_key,
                "-set_serial",
                "1024",
                "-days",
                "365",
                "-sha256",
                "-extfile",
                &extensions,
                "-out",
                &leaf,
            ],
        )?;
        Ok(())
    }
}

fn named(name: &str) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2024, 1, 1);
    params.not_after = date_time_ymd(2048, 1, 1);
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn authority(
    name: &str,
    issuer: Option<&Authority>,
    years: Option<(i32, i32)>,
) -> Result<Authority> {
    let mut params = named(name)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    if let Some((from, to)) = years {
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(to, 1, 1);
    }
    let key = KeyPair::generate()?;
    Ok(match issuer {
        Some(issuer) => CertifiedIssuer::signed_by(params, key, issuer)?,
        None => CertifiedIssuer::self_signed(params, key)?,
    })
}

fn leaf(chain: Chain) -> Result<CertificateParams> {
    let name = match chain {
        Chain::WrongName => "other.test",
        _ => NAME,
    };
    let mut params = named(name)?;
    params.subject_alt_names = vec![SanType::DnsName(name.try_into()?)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![match chain {
        Chain::WrongPurpose => ExtendedKeyUsagePurpose::ClientAuth,
        _ => ExtendedKeyUsagePurpose::ServerAuth,
    }];
    match chain {
        Chain::Expired => {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        }
        Chain::NotYetValid => params.not_before = date_time_ymd(2047, 1, 1),
        Chain::Revoked => params.serial_number = Some(SerialNumber::from(REVOKED)),
        _ => {}
    }
    Ok(params)
}

/// A certificate and its key, signed by `issuer` or by itself.
fn sign(params: &CertificateParams, issuer: Option<&Authority>) -> Result<(String, String)> {
    let key = KeyPair::generate()?;
    let certificate = match issuer {
        Some(issuer) => params.signed_by(&key, issuer)?,
        None => params.self_signed(&key)?,
    };
    Ok((certificate.pem(), key.serialize_pem()))
}

/// The list of what `issuer` has revoked.
fn revoked(issuer: &Authority) -> Result<String> {
    let list = CertificateRevocationListParams {
        this_update: date_time_ymd(2024, 1, 1),
        next_update: date_time_ymd(2048, 1, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: vec![RevokedCertParams {
            serial_number: SerialNumber::from(REVOKED),
            revocation_time: date_time_ymd(2025, 1, 1),
            reason_code: Some(RevocationReason::KeyCompromise),
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    Ok(list.signed_by(issuer)?.pem()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `openssl verify` says of a chain, as a server's and with the lists of revoked certificates.
    fn verified(pki: &Pki, chain: Chain) -> Result<String> {
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let (roots, lists, above, leaf) = (
            text(pki.roots()),
            text(pki.revocations()),
            text(pki.above(chain)),
            text(pki.leaf(chain)),
        );
        let mut arguments = vec![
            "verify",
            "-purpose",
            "sslserver",
            "-verify_hostname",
            NAME,
            "-auth_level",
            "2",
            "-CAfile",
            &roots,
        ];
        if chain == Chain::Revoked {
            arguments.extend(["-crl_check", "-CRLfile", &lists]);
        }
        if fs::metadata(&above)?.len() > 0 {
            arguments.extend(["-untrusted", &above]);
        }
        arguments.push(&leaf);
        run("openssl", &arguments)
    }

    #[test]
    fn each_chain_is_wrong_in_its_own_way() {
        let pki = Pki::new().unwrap();
        verified(&pki, Chain::Good).unwrap();
        for (chain, code) in [
            (Chain::Expired, 10),
            (Chain::ExpiredIntermediate, 10),
            (Chain::NotYetValid, 9),
            (Chain::SelfSigned, 18),
            (Chain::UnknownIssuer, 20),
            (Chain::MissingIntermediate, 20),
            (Chain::WrongName, 62),
            (Chain::WrongPurpose, 26),
            (Chain::Weak, 66),
            (Chain::Revoked, 23),
        ] {
            let said = format!("{:#}", verified(&pki, chain).unwrap_err());
            assert!(
                said.contains(&format!("error {code} at")),
                "{chain:?}: {said}"
            );
        }
    }
}
