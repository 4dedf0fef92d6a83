//! What a chain of certificates shows by itself, and which names a certificate is for. No trust store is
//! asked and no signature is checked.

use core::net::IpAddr;

use super::{Certificate, SubjectName};

/// The shape of a chain, the leaf first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainShape {
    /// The leaf names itself as its issuer.
    SelfSigned,
    /// The leaf was sent alone. Whoever does not have its issuer cannot trust it: either that is a root,
    /// which need not be sent, or an intermediate is missing.
    LeafOnly,
    /// Each is followed by its issuer. The last one's issuer is not among them.
    Ordered,
    /// Each is followed by its issuer, and the last is its own.
    OrderedWithRoot,
    /// The way from the leaf upwards is there, but not in order, or with others in between. TLS 1.3
    /// and many verifiers allow that (RFC 8446 section 4.4.2), TLS 1.2 does not (RFC 5246 section 7.4.2).
    OutOfOrder,
    /// Certificates follow the leaf and none is its issuer: an intermediate is missing.
    Unrelated,
}

/// Tells the shape of a chain; nothing where there is none.
pub fn chain_shape(chain: &[Certificate]) -> Option<ChainShape> {
    let (leaf, rest) = chain.split_first()?;
    if leaf.self_issued {
        return Some(ChainShape::SelfSigned);
    }
    if rest.is_empty() {
        return Some(ChainShape::LeafOnly);
    }
    let mut pairs = chain.iter().zip(rest);
    if pairs.all(|(one, next)| issued(one, next)) {
        return Some(match chain.last() {
            Some(last) if last.self_issued => ChainShape::OrderedWithRoot,
            _ => ChainShape::Ordered,
        });
    }
    Some(if rest.iter().any(|other| issued(leaf, other)) {
        ChainShape::OutOfOrder
    } else {
        ChainShape::Unrelated
    })
}

/// Whether the second is by its name the issuer of the first.
fn issued(one: &Certificate, by: &Certificate) -> bool {
    one.issuer == by.subject && !one.self_issued
}

/// The issuer that a verifier has to have already: that of the last certificate on the way from the leaf
/// upwards, or the root where it was sent.
pub fn anchor(chain: &[Certificate]) -> Option<&str> {
    let mut at = chain.first()?;
    for _ in chain {
        match chain.iter().find(|other| issued(at, other)) {
            Some(next) => at = next,
            None => break,
        }
    }
    Some(&at.issuer)
}

/// Whether a certificate is for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameMatch {
    /// One of its names is the name asked for (RFC 9525 section 6).
    Yes,
    /// It has no DNS name and its common name fits. OpenSSL takes that, others do not (RFC 9525 section
    /// 2 forbids it).
    CommonName,
    /// One of its names fits with a wildcard that is not a whole label, such as `shop*.example`. OpenSSL
    /// takes that, others do not (RFC 9525 section 6.3 forbids it).
    PartialWildcard,
    /// No name fits.
    No,
    /// None of the names that were kept fits, and there were others.
    Unknown,
}

/// Tells whether a certificate is for a host name or an address in text.
pub fn name_match(certificate: &Certificate, asked: &str) -> NameMatch {
    let asked = asked.strip_suffix('.').unwrap_or(asked);
    let no = if certificate.names_cut {
        NameMatch::Unknown
    } else {
        NameMatch::No
    };
    let bare = asked
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(asked);
    if let Ok(address) = bare.parse::<IpAddr>() {
        let fits = certificate
            .names
            .contains(&SubjectName::Address(address.to_canonical()))
            || certificate.names.contains(&SubjectName::Address(address));
        return if fits { NameMatch::Yes } else { no };
    }
    let mut partial = false;
    let mut any = false;
    for name in &certificate.names {
        let SubjectName::Dns(name) = name else {
            continue;
        };
        any = true;
        match fits(name, asked) {
            Fit::Whole => return NameMatch::Yes,
            Fit::Partial => partial = true,
            Fit::No => {}
        }
    }
    if partial {
        return NameMatch::PartialWildcard;
    }
    match &certificate.common_name {
        Some(name) if !any && !certificate.names_cut && fits(name, asked) != Fit::No => {
            NameMatch::CommonName
        }
        _ => no,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fit {
    Whole,
    Partial,
    No,
}

/// Whether a DNS name of a certificate, perhaps with a wildcard in its first label, is for a host
/// (RFC 9525 section 6.3): a wildcard stands for one label.
fn fits(pattern: &str, host: &str) -> Fit {
    let pattern = pattern.strip_suffix('.').unwrap_or(pattern);
    if host.is_empty() {
        return Fit::No;
    }
    if pattern.eq_ignore_ascii_case(host) {
        return Fit::Whole;
    }
    let (Some((first, parent)), Some((label, domain))) =
        (pattern.split_once('.'), host.split_once('.'))
    else {
        return Fit::No;
    };
    if label.is_empty() || !parent.eq_ignore_ascii_case(domain) {
        return Fit::No;
    }
    if first == "*" {
        return Fit::Whole;
    }
    let Some((before, after)) = first.split_once('*') else {
        return Fit::No;
    };
    let (label, before, after) = (label.as_bytes(), before.as_bytes(), after.as_bytes());
    let whole = label.len() > before.len() + after.len();
    let begins = label
        .get(..before.len())
        .is_some_and(|part| part.eq_ignore_ascii_case(before));
    let ends = label
        .len()
        .checked_sub(after.len())
        .and_then(|at| label.get(at..))
        .is_some_and(|part| part.eq_ignore_ascii_case(after));
    if whole && begins && ends && !after.contains(&b'*') {
        Fit::Partial
    } else {
        Fit::No
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(subject: &str, issuer: &str) -> Certificate {
        Certificate {
            subject: subject.to_owned(),
            issuer: issuer.to_owned(),
            self_issued: subject == issuer,
            ..Certificate::default()
        }
    }

    fn named(names: &[&str]) -> Certificate {
        Certificate {
            common_name: Some("common.example".to_owned()),
            names: names
                .iter()
                .map(|name| match name.parse() {
                    Ok(address) => SubjectName::Address(address),
                    Err(_) => SubjectName::Dns((*name).to_owned()),
                })
                .collect(),
            ..Certificate::default()
        }
    }

    #[test]
    fn shapes() {
        let leaf = certificate("shop", "middle");
        let middle = certificate("middle", "root");
        let root = certificate("root", "root");
        let other = certificate("other", "root");
        let shape =
            |list: &[&Certificate]| chain_shape(&list.iter().copied().cloned().collect::<Vec<_>>());
        assert_eq!(shape(&[]), None);
        assert_eq!(shape(&[&root]), Some(ChainShape::SelfSigned));
        assert_eq!(shape(&[&leaf]), Some(ChainShape::LeafOnly));
        assert_eq!(shape(&[&leaf, &middle]), Some(ChainShape::Ordered));
        assert_eq!(
            shape(&[&leaf, &middle, &root]),
            Some(ChainShape::OrderedWithRoot)
        );
        assert_eq!(
            shape(&[&leaf, &root, &middle]),
            Some(ChainShape::OutOfOrder)
        );
        assert_eq!(shape(&[&leaf, &other]), Some(ChainShape::Unrelated));
        let chain = [leaf.clone(), root, middle];
        assert_eq!(anchor(&chain), Some("root"));
        assert_eq!(anchor(&[leaf]), Some("middle"));
    }

    #[test]
    fn a_loop_of_issuers_ends() {
        let chain = [certificate("a", "b"), certificate("b", "a")];
        assert!(anchor(&chain).is_some());
        assert_eq!(chain_shape(&chain), Some(ChainShape::Ordered));
    }

    #[test]
    fn wildcards_stand_for_one_label() {
        let shop = named(&["shop.example", "*.shop.example"]);
        for (name, expected) in [
            ("shop.example", NameMatch::Yes),
            ("SHOP.example.", NameMatch::Yes),
            ("api.shop.example", NameMatch::Yes),
            ("a.b.shop.example", NameMatch::No),
            (".shop.example", NameMatch::No),
            ("other.example", NameMatch::No),
            ("", NameMatch::No),
        ] {
            assert_eq!(name_match(&shop, name), expected, "{name}");
        }
        assert_eq!(name_match(&named(&["*"]), "host"), NameMatch::No);
        let partial = named(&["w*1.example"]);
        assert_eq!(
            name_match(&partial, "web1.example"),
            NameMatch::PartialWildcard
        );
        assert_eq!(name_match(&partial, "w1.example"), NameMatch::No);
    }

    #[test]
    fn addresses_are_names_of_their_own() {
        let local = named(&["127.0.0.1", "::1", "shop.example"]);
        assert_eq!(name_match(&local, "127.0.0.1"), NameMatch::Yes);
        assert_eq!(name_match(&local, "[::1]"), NameMatch::Yes);
        assert_eq!(name_match(&local, "127.0.0.2"), NameMatch::No);
    }

    #[test]
    fn a_common_name_counts_where_there_is_no_other() {
        let common = "common.example";
        assert_eq!(name_match(&named(&[]), common), NameMatch::CommonName);
        assert_eq!(name_match(&named(&["shop.example"]), common), NameMatch::No);
        let cut = Certificate {
            names_cut: true,
            ..named(&["shop.example"])
        };
        assert_eq!(name_match(&cut, common), NameMatch::Unknown);
    }
}
