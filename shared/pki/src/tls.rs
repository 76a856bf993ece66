//! Certificates in use: what is shown, and what is believed.

use std::{fmt, path::PathBuf, sync::Arc};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair},
};
use flux_protocol::identity::Identity;
use parking_lot::RwLock;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
    client::{
        ResolvesClientCert,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs::default_provider, verify_tls12_signature, verify_tls13_signature},
    server::{
        ClientHello, ResolvesServerCert,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _};

use crate::{Certificate, PkiError, Trust, files};

/// Whom to accept at the other end.
pub type Peer = Arc<dyn Fn(&Identity) -> bool + Send + Sync>;

/// A certificate, its key and the CA, kept ready. Connections that are made after [`Credential::reload`] show what is in
/// the files by then.
pub struct Credential {
    certificate: PathBuf,
    key: PathBuf,
    trust: Trust,
    provider: Arc<CryptoProvider>,
    current: RwLock<Loaded>,
}

#[derive(Clone)]
struct Loaded {
    certificate: Certificate,
    pem: String,
    key_pem: String,
    shown: Arc<CertifiedKey>,
}

impl Credential {
    pub(crate) fn load(certificate: PathBuf, key: PathBuf, trust: Trust) -> Result<Arc<Self>, PkiError> {
        let provider = Arc::new(default_provider());
        let current = RwLock::new(Loaded::read(&certificate, &key, &provider)?);
        Ok(Arc::new(Self { certificate, key, trust, provider, current }))
    }

    /// Reads the files again; whether the certificate is another one.
    ///
    /// # Errors
    /// They cannot be used; what was read before stays in use.
    pub fn reload(&self) -> Result<bool, PkiError> {
        let loaded = Loaded::read(&self.certificate, &self.key, &self.provider)?;
        let mut current = self.current.write();
        let changed = loaded.certificate != current.certificate;
        *current = loaded;
        Ok(changed)
    }

    /// The certificate as it is now.
    pub fn certificate(&self) -> Certificate {
        self.current.read().certificate.clone()
    }

    pub fn identity(&self) -> Identity {
        self.current.read().certificate.identity().clone()
    }

    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Where the certificate and its key are.
    pub fn files(&self) -> [&std::path::Path; 2] {
        [&self.certificate, &self.key]
    }

    /// Signs as who the certificate names ([`Trust::verify_signed`]): the certificate as PEM, and the signature.
    ///
    /// # Errors
    /// The key cannot be used.
    pub fn sign(&self, message: &[u8]) -> Result<(String, Vec<u8>), PkiError> {
        let attempted = "signing";
        let Loaded { pem: certificate, key_pem: pem, .. } = self.current.read().clone();
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| PkiError::crypto(attempted, error))?;
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, key.secret_der())
            .map_err(|error| PkiError::crypto(attempted, error.to_string()))?;
        let signature = key.sign(&SystemRandom::new(), message).map_err(|error| PkiError::crypto(attempted, error))?;
        Ok((certificate, signature.as_ref().to_vec()))
    }

    /// A request to have its key signed again.
    ///
    /// # Errors
    /// The key cannot be used.
    pub fn renewal_request(&self) -> Result<String, PkiError> {
        let failed = |error| PkiError::crypto("asking for a renewal", error);
        let key = rcgen::KeyPair::from_pem(&self.current.read().key_pem).map_err(failed)?;
        let request = rcgen::CertificateParams::default().serialize_request(&key).map_err(failed)?;
        request.pem().map_err(failed)
    }

    /// For connections to the queue: the server is the one that the CA says it is, whatever its address.
    ///
    /// # Errors
    /// The TLS library refuses.
    pub fn queue_client(self: &Arc<Self>) -> Result<ClientConfig, PkiError> {
        self.client(Arc::new(|identity| *identity == Identity::Queue))
    }

    /// For connections to `peer`.
    ///
    /// # Errors
    /// The TLS library refuses.
    pub fn client(self: &Arc<Self>, peer: Peer) -> Result<ClientConfig, PkiError> {
        let builder = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| PkiError::crypto("setting up TLS", error))?;
        let verifier = Verifier { trust: self.trust.clone(), peer, provider: Arc::clone(&self.provider) };
        Ok(builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesClientCert>))
    }

    /// For connections from `peer`, who must show a certificate.
    ///
    /// # Errors
    /// The TLS library refuses.
    pub fn server(self: &Arc<Self>, peer: Peer) -> Result<ServerConfig, PkiError> {
        let verifier = Verifier { trust: self.trust.clone(), peer, provider: Arc::clone(&self.provider) };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| PkiError::crypto("setting up TLS", error))?;
        Ok(builder
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>))
    }
}

/// Whose certificate the other end of a connection showed, after the handshake.
pub fn peer_of(certificates: Option<&[CertificateDer<'_>]>) -> Option<Identity> {
    let first = certificates?.first()?.clone().into_owned();
    Certificate::from_der(first).ok().map(|certificate| certificate.identity().clone())
}

impl Loaded {
    fn read(certificate: &std::path::Path, key: &std::path::Path, provider: &CryptoProvider) -> Result<Self, PkiError> {
        let remedy = "without it nobody here can say who they are";
        let missing = |path: &std::path::Path| PkiError::Missing { path: path.to_owned(), remedy };
        let damaged = |path: &std::path::Path, why: String| PkiError::Damaged { path: path.to_owned(), why };
        let pem = files::read(certificate)?.ok_or_else(|| missing(certificate))?;
        let key_pem = files::read_secret(key)?.ok_or_else(|| missing(key))?;
        let parsed = Certificate::from_pem(&pem).map_err(|error| damaged(certificate, error.to_string()))?;
        let der = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|error| damaged(key, error.to_string()))?;
        let shown = CertifiedKey::from_der(vec![parsed.der().clone()], der, provider)
            .map_err(|error| damaged(key, error.to_string()))?;
        Ok(Self { certificate: parsed, pem, key_pem, shown: Arc::new(shown) })
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

impl ResolvesClientCert for Credential {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read().shown))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for Credential {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read().shown))
    }
}

/// Believes who the CA signed, and whom `peer` accepts. An address is not who somebody is, so it is not looked at.
struct Verifier {
    trust: Trust,
    peer: Peer,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn check(&self, certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
        let refused = || Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure);
        let identity = self.trust.verify(certificate, now).map_err(|error| {
            tracing::warn!(error = &error as &dyn std::error::Error, "a certificate was refused");
            refused()
        })?;
        if (self.peer)(&identity) {
            return Ok(());
        }
        tracing::warn!(%identity, "the other end is not who was expected, or is shut out");
        Err(refused())
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier")
    }
}

macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.provider.signature_verification_algorithms.supported_schemes()
        }
    };
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity, now).map(|()| ServerCertVerified::assertion())
    }

    signatures!();
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity, now).map(|()| ClientCertVerified::assertion())
    }

    signatures!();
}
