//! What certificates say, of several makers and kinds.

use core::net::{Ipv4Addr, Ipv6Addr};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, SanType,
};

use crate::tls::{
    Certificate, ChainShape, NameMatch, SubjectName, chain_shape, name_match, read_certificate,
};

/// A certificate that OpenSSL made, as it is a seed of the fuzz target.
fn made_by_openssl(name: &str) -> Certificate {
    let path = format!(
        "{}/fuzz/seeds/certificate/{name}",
        env!("CARGO_MANIFEST_DIR")
    );
    read_certificate(&std::fs::read(path).unwrap()).unwrap()
}

fn self_signed(params: &CertificateParams) -> Certificate {
    let key = KeyPair::generate().unwrap();
    let made = params.self_signed(&key).unwrap();
    read_certificate(made.der()).unwrap()
}

#[test]
fn a_certificate_with_everything() {
    let certificate = made_by_openssl("rsa1024");
    assert_eq!(
        certificate.subject,
        "C=DE, O=Shop, CN=b + OU=a, emailAddress=a@b, DC=x"
    );
    assert_eq!(certificate.issuer, certificate.subject);
    assert_eq!(
        certificate.names,
        [
            SubjectName::Dns("a.example".to_owned()),
            SubjectName::Address(Ipv4Addr::new(10, 0, 0, 1).into()),
            SubjectName::Address(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1).into()),
        ],
        "mail addresses and the like are no names of servers"
    );
    assert!(!certificate.names_cut && certificate.self_issued);
    assert_eq!(
        (&*certificate.key, certificate.key_bits),
        ("RSA", Some(1024))
    );
    assert_eq!(certificate.signature, "sha256WithRSAEncryption");
    assert_eq!(certificate.not_after - certificate.not_before, 30 * 86_400);
}

#[test]
fn kinds_of_keys() {
    for (name, key, bits, signature) in [
        ("ed25519", "Ed25519", None, "Ed25519"),
        ("p521", "EC", Some(521), "ecdsa-with-SHA256"),
        ("utf8", "EC", Some(256), "ecdsa-with-SHA256"),
        ("pss", "RSA-PSS", Some(1024), "id-RSASSA-PSS"),
    ] {
        let certificate = made_by_openssl(name);
        assert_eq!(
            (
                &*certificate.key,
                certificate.key_bits,
                &*certificate.signature
            ),
            (key, bits, signature),
            "{name}"
        );
    }
}

#[test]
fn names_in_other_alphabets() {
    let name = made_by_openssl("utf8").common_name;
    assert_eq!(name.as_deref(), Some("Zürich"));
    let name = made_by_openssl("bmp").common_name;
    assert_eq!(name.as_deref(), Some("bmp"), "in UTF-16");
}

#[test]
fn purposes() {
    assert!(made_by_openssl("ed25519").not_for_servers, "clients alone");
    for (purposes, expected) in [
        (vec![], false),
        (vec![ExtendedKeyUsagePurpose::ClientAuth], true),
        (vec![ExtendedKeyUsagePurpose::CodeSigning], true),
        (vec![ExtendedKeyUsagePurpose::Any], false),
        (
            vec![
                ExtendedKeyUsagePurpose::ClientAuth,
                ExtendedKeyUsagePurpose::ServerAuth,
            ],
            false,
        ),
    ] {
        let mut params = CertificateParams::new(["shop.example".to_owned()]).unwrap();
        params.extended_key_usages = purposes.clone();
        assert_eq!(
            self_signed(&params).not_for_servers,
            expected,
            "{purposes:?}"
        );
    }
}

#[test]
fn more_names_than_are_kept() {
    let names: Vec<_> = (0..1000).map(|at| format!("host{at}.example")).collect();
    let certificate = self_signed(&CertificateParams::new(names).unwrap());
    assert_eq!(certificate.names.len(), 100);
    assert!(certificate.names_cut);
    assert_eq!(name_match(&certificate, "host7.example"), NameMatch::Yes);
    assert_eq!(
        name_match(&certificate, "host999.example"),
        NameMatch::Unknown
    );
}

#[test]
fn long_and_odd_texts() {
    let mut params = CertificateParams::default();
    let name = &mut params.distinguished_name;
    name.push(DnType::OrganizationName, "o".repeat(5000));
    name.push(DnType::CommonName, "shop\u{1b}[31m\u{202e}");
    params.subject_alt_names = vec![SanType::DnsName("a\nb".try_into().unwrap())];
    let certificate = self_signed(&params);
    assert_eq!(certificate.subject.len(), 256);
    let common = certificate.common_name.unwrap();
    assert_eq!(common, "shop\u{fffd}[31m\u{fffd}");
    assert_eq!(
        certificate.names,
        [SubjectName::Dns("a\u{fffd}b".to_owned())]
    );
}

#[test]
fn an_authority_and_what_it_signed() {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(DnType::CommonName, "authority");
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().unwrap();
    let root = CertifiedIssuer::self_signed(params.clone(), key).unwrap();
    let mut leaf = CertificateParams::new(["shop.example".to_owned()]).unwrap();
    leaf.use_authority_key_identifier_extension = true;
    let leaf_key = KeyPair::generate().unwrap();
    let issuer: &Issuer<'_, _> = &root;
    let leaf = leaf.signed_by(&leaf_key, issuer).unwrap();
    let root_read = read_certificate(root.der()).unwrap();
    assert!(root_read.authority && root_read.self_issued);
    let leaf = read_certificate(leaf.der()).unwrap();
    assert!(!leaf.authority && !leaf.self_issued);
    let chain = [leaf, root_read];
    assert_eq!(chain_shape(&chain), Some(ChainShape::OrderedWithRoot));

    // Another key of the same name: signed by the old one, it is not its own issuer.
    let new_key = KeyPair::generate().unwrap();
    let rolled = params.signed_by(&new_key, issuer).unwrap();
    let rolled = read_certificate(rolled.der()).unwrap();
    assert_eq!(rolled.subject, rolled.issuer);
    assert!(!rolled.self_issued);
}

#[test]
fn what_is_no_certificate() {
    assert_eq!(read_certificate(&[]), None);
    assert_eq!(read_certificate(b"-----BEGIN CERTIFICATE-----"), None);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/certificate/p521");
    let der = std::fs::read(path).unwrap();
    for end in 0..der.len() {
        assert_eq!(read_certificate(&der[..end]), None);
    }
}
