//! What certificates say of themselves (RFC 5280).

use core::net::IpAddr;

use x509_parser::asn1_rs::{Oid, Tag};
use x509_parser::certificate::{BasicExtension, TbsCertificate, X509Certificate};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::{PublicKey, RSAPublicKey};
use x509_parser::x509::{
    AlgorithmIdentifier, AttributeTypeAndValue, SubjectPublicKeyInfo, X509Name,
};

use super::hello::Fields;
use super::text::printable;
use super::{Certificate, SubjectName};

/// Certificates kept of a chain; none that serves anyone is longer.
const MAX_CHAIN: usize = 8;
/// Names kept of the first certificate, and of those behind it, which should have none.
const MAX_NAMES: usize = 100;
const MAX_OTHER_NAMES: usize = 4;
/// Longest name of a host (RFC 1035 section 2.3.4).
const MAX_HOST: usize = 255;
/// Bytes kept of a subject or an issuer.
const MAX_TEXT: usize = 256;
/// Attributes shown of a subject or an issuer.
const MAX_ATTRIBUTES: usize = 16;
/// Letters kept of an object identifier.
const MAX_IDENTIFIER: usize = 64;

/// A chain as sent.
pub(super) struct Chain {
    pub(super) list: Vec<Certificate>,
    /// Whether there was more than that.
    pub(super) cut: bool,
}

/// The certificates of a Certificate message of TLS 1.2 and older (RFC 5246 section 7.4.2); `cut` where
/// it is only its beginning. It ends before one that cannot be read, so that each keeps its place.
pub(super) fn chain(body: &[u8], cut: bool) -> Chain {
    let mut chain = Chain {
        list: Vec::new(),
        cut,
    };
    let Some(mut list) = entries(body, cut) else {
        chain.cut = true;
        return chain;
    };
    while !list.is_empty() {
        let der = list.u24().and_then(|len| list.take(len));
        let names = if chain.list.is_empty() {
            MAX_NAMES
        } else {
            MAX_OTHER_NAMES
        };
        let room = chain.list.len() < MAX_CHAIN;
        let Some(certificate) = der.filter(|_| room).and_then(|der| read(der, names)) else {
            chain.cut = true;
            break;
        };
        chain.list.push(certificate);
    }
    chain
}

/// How many certificates a Certificate message has, where that is known, and the first of them.
pub(super) fn given(body: &[u8], cut: bool) -> (Option<usize>, Option<Certificate>) {
    let Some(mut list) = entries(body, cut) else {
        return (None, None);
    };
    let mut first = None;
    let mut count = 0;
    while !list.is_empty() {
        match list.u24().and_then(|len| list.take(len)) {
            Some(der) if count == 0 => first = read(der, MAX_NAMES),
            Some(_) => {}
            None => return ((count > 0).then_some(count), first),
        }
        count += 1;
    }
    let known = !cut || count > 0;
    (known.then_some(count), first)
}

/// The list of a Certificate message, or the part of it that is there.
fn entries(body: &[u8], cut: bool) -> Option<Fields<'_>> {
    let mut fields = Fields(body);
    let len = fields.u24()?;
    if cut {
        return Some(fields);
    }
    fields.take(len).map(Fields)
}

/// Reads one certificate in DER. Nothing where it is malformed.
pub fn read_certificate(der: &[u8]) -> Option<Certificate> {
    read(der, MAX_NAMES)
}

/// The same, keeping at most `names` of its names.
fn read(der: &[u8], names: usize) -> Option<Certificate> {
    let (_, parsed) = X509Certificate::from_der(der).ok()?;
    let tbs = &parsed.tbs_certificate;
    let (key, key_bits) = key(&tbs.subject_pki);
    let mut certificate = Certificate {
        subject: name(&tbs.subject),
        issuer: name(&tbs.issuer),
        common_name: common_name(&tbs.subject),
        not_before: tbs.validity.not_before.timestamp(),
        not_after: tbs.validity.not_after.timestamp(),
        self_issued: tbs.subject.as_raw() == tbs.issuer.as_raw() && !other_issuer(tbs),
        authority: matches!(basic(tbs.basic_constraints()), Some(basic) if basic.ca),
        key,
        key_bits,
        signature: signature(&parsed.signature_algorithm),
        ..Certificate::default()
    };
    certificate.not_for_servers = matches!(
        basic(tbs.extended_key_usage()),
        Some(usage) if !usage.server_auth && !usage.any
    );
    match tbs.subject_alternative_name() {
        Ok(None) => {}
        Ok(Some(alternative)) => {
            for general in &alternative.value.general_names {
                match subject_name(general) {
                    Some(_) if certificate.names.len() == names => certificate.names_cut = true,
                    Some(name) => certificate.names.push(name),
                    None => certificate.names_cut |= matches!(general, GeneralName::Invalid(..)),
                }
            }
        }
        Err(_) => certificate.names_cut = true,
    }
    Some(certificate)
}

fn basic<T, E>(extension: Result<Option<BasicExtension<T>>, E>) -> Option<T> {
    Some(extension.ok()??.value)
}

/// Whether the key identifiers say that another key signed it (RFC 5280 section 4.2.1.1).
fn other_issuer(tbs: &TbsCertificate<'_>) -> bool {
    let mut own = None;
    let mut signer = None;
    for extension in tbs.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => own = Some(id),
            ParsedExtension::AuthorityKeyIdentifier(id) => signer = id.key_identifier.as_ref(),
            _ => {}
        }
    }
    matches!((own, signer), (Some(own), Some(signer)) if own != signer)
}

fn subject_name(general: &GeneralName<'_>) -> Option<SubjectName> {
    match general {
        GeneralName::DNSName(name) => Some(SubjectName::Dns(printable(name.as_bytes(), MAX_HOST))),
        GeneralName::IPAddress(bytes) => {
            let address = <[u8; 4]>::try_from(*bytes)
                .map(IpAddr::from)
                .or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
            address.ok().map(SubjectName::Address)
        }
        _ => None,
    }
}

/// A distinguished name as text: `C=DE, O=Shop, CN=shop.example`.
fn name(name: &X509Name<'_>) -> String {
    let mut text = String::new();
    let parts = name.iter_rdn().flat_map(|part| {
        let separators = std::iter::once(", ").chain(std::iter::repeat(" + "));
        separators.zip(part.iter())
    });
    for (separator, attribute) in parts.take(MAX_ATTRIBUTES) {
        if !text.is_empty() {
            text.push_str(separator);
        }
        match attribute_name(attribute.attr_type()) {
            Some(kind) => text.push_str(kind),
            None => text.push_str(&identifier(attribute.attr_type())),
        }
        text.push('=');
        text.push_str(&printable(&value(attribute), MAX_TEXT));
    }
    printable(text.as_bytes(), MAX_TEXT)
}

fn common_name(name: &X509Name<'_>) -> Option<String> {
    let last = name.iter_common_name().last()?;
    Some(printable(&value(last), MAX_TEXT))
}

/// The value of an attribute as text: `BMPString` is UTF-16 (X.690), any other string is taken for UTF-8.
fn value(attribute: &AttributeTypeAndValue<'_>) -> Vec<u8> {
    let bytes = attribute.as_slice();
    let bytes = bytes.get(..2 * MAX_TEXT).unwrap_or(bytes);
    if attribute.attr_value().tag() != Tag::BmpString {
        return bytes.to_vec();
    }
    let units = bytes
        .as_chunks()
        .0
        .iter()
        .map(|unit| u16::from_be_bytes(*unit));
    char::decode_utf16(units)
        .map(|letter| letter.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect::<String>()
        .into_bytes()
}

/// Short names of attributes (RFC 4519 section 2, RFC 2985 section 5.2.1), by identifier in DER.
fn attribute_name(kind: &Oid<'_>) -> Option<&'static str> {
    Some(match kind.as_bytes() {
        [0x55, 0x04, 3] => "CN",
        [0x55, 0x04, 5] => "serialNumber",
        [0x55, 0x04, 6] => "C",
        [0x55, 0x04, 7] => "L",
        [0x55, 0x04, 8] => "ST",
        [0x55, 0x04, 10] => "O",
        [0x55, 0x04, 11] => "OU",
        [0x55, 0x04, 97] => "organizationIdentifier",
        [0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 0x01, 1] => "UID",
        [0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 0x01, 25] => "DC",
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 1] => "emailAddress",
        _ => return None,
    })
}

/// Kind and bits of a public key (RFC 3279 section 2.3, RFC 8410).
fn key(info: &SubjectPublicKeyInfo<'_>) -> (String, Option<u32>) {
    let algorithm = &info.algorithm.algorithm;
    let known = match algorithm.as_bytes() {
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 1] => "RSA",
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 10] => "RSA-PSS",
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01] => "EC",
        [0x2a, 0x86, 0x48, 0xce, 0x38, 0x04, 0x01] => "DSA",
        [0x2b, 0x65, 0x70] => "Ed25519",
        [0x2b, 0x65, 0x71] => "Ed448",
        [0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x03, 0x11] => "ML-DSA-44",
        [0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x03, 0x12] => "ML-DSA-65",
        [0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x03, 0x13] => "ML-DSA-87",
        _ => return (identifier(algorithm), None),
    };
    let bits = match known {
        "RSA" | "RSA-PSS" => RSAPublicKey::from_der(&info.subject_public_key.data)
            .ok()
            .map(|(_, key)| bits(key.modulus)),
        "EC" => match info.parsed() {
            // A coordinate of P-521 takes 66 bytes.
            Ok(PublicKey::EC(point)) => match point.key_size() {
                0 => None,
                528 => Some(521),
                bits => u32::try_from(bits).ok(),
            },
            _ => None,
        },
        _ => None,
    };
    (known.to_owned(), bits)
}

/// Bits of a number, from the first that is set.
fn bits(number: &[u8]) -> u32 {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    let rest = number.get(zeros..).unwrap_or_default();
    let first = rest.first().map_or(0, |byte| byte.leading_zeros());
    u32::try_from(rest.len() * 8)
        .unwrap_or(u32::MAX)
        .saturating_sub(first)
}

/// Name of a signature algorithm as RFC 3279, RFC 4055, RFC 5758 and RFC 8410 write it.
fn signature(algorithm: &AlgorithmIdentifier<'_>) -> String {
    let name = match algorithm.algorithm.as_bytes() {
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, number] => match number {
            2 => "md2WithRSAEncryption",
            4 => "md5WithRSAEncryption",
            5 => "sha1WithRSAEncryption",
            10 => "id-RSASSA-PSS",
            11 => "sha256WithRSAEncryption",
            12 => "sha384WithRSAEncryption",
            13 => "sha512WithRSAEncryption",
            14 => "sha224WithRSAEncryption",
            _ => return identifier(&algorithm.algorithm),
        },
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01] => "ecdsa-with-SHA1",
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 1] => "ecdsa-with-SHA224",
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 2] => "ecdsa-with-SHA256",
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 3] => "ecdsa-with-SHA384",
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 4] => "ecdsa-with-SHA512",
        [0x2a, 0x86, 0x48, 0xce, 0x38, 0x04, 0x03] => "dsa-with-sha1",
        [0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x03, 2] => "dsa-with-sha256",
        [0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x03, 0x11] => "ML-DSA-44",
        [0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x03, 0x12] => "ML-DSA-65",
        [0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x03, 0x13] => "ML-DSA-87",
        [0x2b, 0x65, 0x70] => "Ed25519",
        [0x2b, 0x65, 0x71] => "Ed448",
        _ => return identifier(&algorithm.algorithm),
    };
    name.to_owned()
}

/// An object identifier in dots, where it is of a sensible length.
fn identifier(oid: &Oid<'_>) -> String {
    let mut text = oid.to_id_string();
    text.truncate(MAX_IDENTIFIER);
    text
}
