//! Certificates as they are shown: read, trusted or not, and what name they carry.

use std::time::Duration;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use flux_protocol::{Timestamp, identity::Identity};
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::{CertificateDer, UnixTime, pem::PemObject as _};
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter};
use x509_parser::extensions::GeneralName;

use crate::PkiError;

/// One that was read, and not yet trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    der: CertificateDer<'static>,
    identity: Identity,
    not_after: Timestamp,
    not_before: Timestamp,
}

impl Certificate {
    /// # Errors
    /// It is not a certificate, or carries no name of ours, or more than one.
    pub fn from_pem(pem: &str) -> Result<Self, PkiError> {
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| untrusted(error.to_string()))?;
        Self::from_der(der)
    }

    pub fn from_der(der: CertificateDer<'static>) -> Result<Self, PkiError> {
        let identity = identity_in(&der)?;
        let (not_before, not_after) = validity(&der)?;
        Ok(Self { identity, not_after, not_before, der })
    }

    /// Whom it is of, if it is trusted.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    pub fn not_before(&self) -> Timestamp {
        self.not_before
    }

    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// Whether it ends within `margin`.
    pub fn ends_within(&self, margin: Duration, now: Timestamp) -> bool {
        self.not_after <= now.plus(margin)
    }
}

/// The CA's certificate: what says whom to believe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trust {
    der: CertificateDer<'static>,
    pem: String,
}

impl Trust {
    /// # Errors
    /// It is not a certificate that others can be checked against.
    pub fn from_pem(pem: &str) -> Result<Self, PkiError> {
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| untrusted(error.to_string()))?;
        webpki::anchor_from_trusted_cert(&der).map_err(|error| untrusted(error.to_string()))?;
        Ok(Self { der, pem: pem.to_owned() })
    }

    pub fn pem(&self) -> &str {
        &self.pem
    }

    pub(crate) fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// SHA-256 of it, as hex: what a join token pins.
    pub fn fingerprint(&self) -> String {
        use sha2::{Digest as _, Sha256};
        Sha256::digest(&self.der).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Whose certificate this is: the CA signed it and it has not expired.
    ///
    /// Whether its name is still let in is not known here: that is the grants'.
    ///
    /// # Errors
    /// `Untrusted`.
    pub fn verify(&self, certificate: &CertificateDer<'_>, now: UnixTime) -> Result<Identity, PkiError> {
        let wrong = |error: webpki::Error| untrusted(error.to_string());
        let parsed = EndEntityCert::try_from(certificate).map_err(wrong)?;
        let anchor = webpki::anchor_from_trusted_cert(&self.der).map_err(wrong)?;
        parsed
            .verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &[anchor], &[], now, AnyUsage, None, None)
            .map_err(wrong)?;
        Ok(Certificate::from_der(certificate.clone().into_owned())?.identity)
    }

    /// Whose signature this is ([`Credential::sign`](crate::Credential::sign)).
    ///
    /// # Errors
    /// `Untrusted`: the certificate is not, or the signature is not by its key.
    pub fn verify_signed(&self, certificate_pem: &str, message: &[u8], signature: &[u8]) -> Result<Identity, PkiError> {
        let certificate = Certificate::from_pem(certificate_pem)?;
        let identity = self.verify(certificate.der(), UnixTime::now())?;
        let parsed = EndEntityCert::try_from(certificate.der()).map_err(|error| untrusted(error.to_string()))?;
        let spki = parsed.subject_public_key_info();
        // Of a P-256 key the point is what is left at the end: 65 bytes, uncompressed.
        let point = spki.as_ref().len().checked_sub(65).map(|at| &spki.as_ref()[at..]);
        let point = point.ok_or_else(|| untrusted("its key is not of the kind that Flux makes".to_owned()))?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point)
            .verify(message, signature)
            .map_err(|_| untrusted("the signature is not by its key".to_owned()))?;
        Ok(identity)
    }
}

/// Agents and gateways are servers and clients both; a name is a name.
struct AnyUsage;

impl ExtendedKeyUsageValidator for AnyUsage {
    fn validate(&self, _: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        Ok(())
    }
}

/// A new key and a request to have it signed, as PEM. The name is the signer's to give.
///
/// # Errors
/// There is no randomness.
pub fn request() -> Result<(String, String), PkiError> {
    let failed = |error| PkiError::crypto("making a key", error);
    let key = KeyPair::generate().map_err(failed)?;
    let csr = CertificateParams::default().serialize_request(&key).and_then(|csr| csr.pem()).map_err(failed)?;
    Ok((key.serialize_pem(), csr))
}

pub(crate) fn untrusted(why: String) -> PkiError {
    PkiError::Untrusted { why }
}

fn identity_in(der: &CertificateDer<'_>) -> Result<Identity, PkiError> {
    let parsed = EndEntityCert::try_from(der).map_err(|error| untrusted(error.to_string()))?;
    let mut names = parsed.valid_uri_names();
    match (names.next().and_then(Identity::from_uri), names.next()) {
        (Some(identity), None) => Ok(identity),
        _ => Err(untrusted("it does not carry one name of Flux's".to_owned())),
    }
}

fn validity(der: &CertificateDer<'_>) -> Result<(Timestamp, Timestamp), PkiError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(der).map_err(|error| untrusted(error.to_string()))?;
    let at = |time: x509_parser::time::ASN1Time| Timestamp::from_millis(time.timestamp() * 1000);
    Ok((at(parsed.validity().not_before), at(parsed.validity().not_after)))
}

/// Names and addresses of a server's certificate.
pub(crate) fn server_names(pem: &str) -> Vec<String> {
    let Ok(der) = CertificateDer::from_pem_slice(pem.as_bytes()) else { return Vec::new() };
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(&der) else { return Vec::new() };
    let Ok(Some(names)) = parsed.subject_alternative_name() else { return Vec::new() };
    names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => match **bytes {
                [a, b, c, d] => Some(std::net::Ipv4Addr::new(a, b, c, d).to_string()),
                _ => <[u8; 16]>::try_from(*bytes).ok().map(|octets| std::net::Ipv6Addr::from(octets).to_string()),
            },
            _ => None,
        })
        .collect()
}
