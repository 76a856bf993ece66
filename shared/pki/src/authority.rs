//! The CA: what it signs, and for how long.

use std::net::IpAddr;

use flux_protocol::{Timestamp, identity::Identity, limits, time::now};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKey, PublicKeyData,
    SanType,
};

use crate::{Certificate, PkiError, certificate::Trust};

/// Clocks of two machines differ: what was signed now is valid on one that is behind.
const BEFORE: time::Duration = time::Duration::hours(1);

/// The CA's key, for as long as something has to be signed.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    trust: Trust,
}

impl Authority {
    /// A new one: it, its certificate and its key as PEM.
    ///
    /// # Errors
    /// There is no randomness.
    pub(crate) fn make() -> Result<(String, String), PkiError> {
        let failed = |error| PkiError::crypto("making a CA", error);
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::default();
        validity(&mut params, limits::CA_LIFE);
        // Told apart from the CA of another Flux by who reads certificates.
        let name = format!("Flux CA {}", &hex(key.public_key_raw())[2..10]);
        params.distinguished_name = named(&name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(failed)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    /// # Errors
    /// One of them is not what it should be, or they do not belong together.
    pub(crate) fn from_pem(certificate: &str, key: &str) -> Result<Self, String> {
        let trust = Trust::from_pem(certificate).map_err(|error| error.to_string())?;
        let key = KeyPair::from_pem(key).map_err(|error| error.to_string())?;
        check_pair(trust.der(), &key)?;
        let issuer = Issuer::from_ca_cert_pem(certificate, key).map_err(|error| error.to_string())?;
        Ok(Self { issuer, trust })
    }

    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// A certificate for a key of ours.
    pub(crate) fn sign(&self, identity: &Identity, names: &[String], key: &KeyPair) -> Result<String, PkiError> {
        self.certify(identity, names, key)
    }

    /// A certificate for who holds the key of a request. Nothing of the request but its key is taken.
    ///
    /// # Errors
    /// The request is not one, or its key is not of the kind that [`request`](crate::request) makes.
    pub(crate) fn sign_request(&self, identity: &Identity, request: &str) -> Result<String, PkiError> {
        self.certify(identity, &[], &key_of(request)?)
    }

    /// The same, for the key that `held` is of: no other gets its name.
    ///
    /// # Errors
    /// As [`Authority::sign_request`], or the request is for another key.
    pub(crate) fn sign_renewal(
        &self,
        identity: &Identity,
        request: &str,
        held: &Certificate,
    ) -> Result<String, PkiError> {
        let key = key_of(request)?;
        check_pair(held.der(), &key).map_err(|_| PkiError::Untrusted {
            why: "the signing request is for another key than that of the certificate it is to follow".to_owned(),
        })?;
        self.certify(identity, &[], &key)
    }

    fn certify(&self, identity: &Identity, names: &[String], key: &impl PublicKeyData) -> Result<String, PkiError> {
        let attempted = "signing a certificate";
        let mut params = CertificateParams::default();
        validity(&mut params, limits::CERTIFICATE_LIFE);
        params.distinguished_name = named(&identity.to_string());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // An agent is the server of its probe port.
        params.extended_key_usages = match identity {
            Identity::Producer { .. } => vec![ExtendedKeyUsagePurpose::ClientAuth],
            _ => vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth],
        };
        params.use_authority_key_identifier_extension = true;
        let uri = identity.uri().try_into().map_err(|error| PkiError::crypto(attempted, error))?;
        params.subject_alt_names.push(SanType::URI(uri));
        for name in names {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(
                    name.as_str().try_into().map_err(|error| PkiError::crypto("naming a server", error))?,
                ),
            });
        }
        let certificate = params.signed_by(key, &self.issuer).map_err(|error| PkiError::crypto(attempted, error))?;
        Ok(certificate.pem())
    }
}

/// The key of a signing request, by which it is signed.
fn key_of(request: &str) -> Result<PublicKey, PkiError> {
    if request.len() > limits::PKI_FILE {
        return Err(PkiError::Untrusted { why: "the signing request is too large".to_owned() });
    }
    let request = CertificateSigningRequestParams::from_pem(request)
        .map_err(|error| PkiError::Untrusted { why: format!("the signing request cannot be used: {error}") })?;
    if request.public_key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
        return Err(PkiError::Untrusted { why: "the signing request's key must be of ECDSA P-256".to_owned() });
    }
    Ok(request.public_key)
}

/// Whether a certificate is of this key.
pub(crate) fn check_pair(certificate: &[u8], key: &impl PublicKeyData) -> Result<(), String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|error| error.to_string())?;
    if parsed.public_key().raw == key.subject_public_key_info() {
        return Ok(());
    }
    Err("it is not the key of the certificate beside it".to_owned())
}

fn validity(params: &mut CertificateParams, life: std::time::Duration) {
    let at = |timestamp: Timestamp| {
        time::OffsetDateTime::from_unix_timestamp(timestamp.as_millis() / 1000)
            .unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
    };
    params.not_before = at(now()) - BEFORE;
    params.not_after = at(now().plus(life));
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::OrganizationName, "Flux");
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
