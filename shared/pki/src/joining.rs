//! How an agent gets in whose key is on its own machine: both ends.

use std::time::Duration;

use flux_protocol::{AgentId, PoolName};

use crate::{
    Certificate, Certs, JoinToken, OpenTokens, PkiError, Trust,
    directory::{Holder, identity, what},
    files,
    grants::Granted,
};

impl Certs {
    /// A token with which one machine joins these pools.
    ///
    /// # Errors
    /// There is no CA here.
    pub fn create_token(&self, url: &str, pools: Vec<PoolName>, life: Duration) -> Result<JoinToken, PkiError> {
        let _lock = files::lock(self.dir())?;
        let fingerprint = self.authority()?.trust().fingerprint();
        self.tokens().create(url, &fingerprint, pools, life)
    }

    /// Lets in who has a token: its certificate.
    ///
    /// # Errors
    /// The token or the request is refused, or the id is another's already. The token is used up only by success, or by an
    /// id that was taken.
    pub fn join(&self, token: &str, agent: &AgentId, request: &str, proof: &str) -> Result<String, PkiError> {
        let _lock = files::lock(self.dir())?;
        let pools = self.tokens().redeem(token, agent, request, proof)?;
        self.admit(agent, pools, request)
    }

    fn tokens(&self) -> OpenTokens {
        OpenTokens::at(self.path("tokens.json"))
    }

    /// Keeps what [`Certs::join`] answered, on the machine that joined.
    ///
    /// # Errors
    /// The CA is not the one of the fingerprint, the certificate is not its, or another CA is here already.
    pub fn keep_joined(
        &self,
        id: &AgentId,
        fingerprint: &str,
        ca: &str,
        certificate: &str,
        key: &str,
    ) -> Result<(), PkiError> {
        let _lock = files::lock(self.dir())?;
        let trust = Trust::from_pem(ca)?;
        if trust.fingerprint() != fingerprint {
            return Err(PkiError::Untrusted { why: "the CA that answered is not the token's".to_owned() });
        }
        let path = self.path("ca/ca.pem");
        if files::read(&path)?.is_some() && self.trust()?.fingerprint() != fingerprint {
            return Err(PkiError::Damaged { path, why: "it is the CA of another Flux".to_owned() });
        }
        self.keep_renewed_of(&trust, id, certificate)?;
        files::write(&path, trust.pem(), files::PUBLIC)?;
        files::write(&self.pair(Holder::Agent(id)).1, key, files::SECRET)
    }

    /// Keeps a renewed certificate, on the agent's machine.
    ///
    /// # Errors
    /// It is not this agent's, or not of this CA.
    pub fn keep_renewed(&self, id: &AgentId, certificate: &str) -> Result<(), PkiError> {
        let _lock = files::lock(self.dir())?;
        self.keep_renewed_of(&self.trust()?, id, certificate)
    }

    fn keep_renewed_of(&self, trust: &Trust, id: &AgentId, pem: &str) -> Result<(), PkiError> {
        let certificate = Certificate::from_pem(pem)?;
        let of = trust.verify(certificate.der(), rustls_pki_types::UnixTime::now())?;
        if of.agent() != Some(id) {
            return Err(PkiError::Untrusted { why: format!("it is that of the {of}") });
        }
        files::write(&self.pair(Holder::Agent(id)).0, pem, files::PUBLIC)
    }

    /// Lets an agent in whose key is elsewhere: the certificate for its signing request.
    fn admit(&self, id: &AgentId, pools: Vec<PoolName>, request: &str) -> Result<String, PkiError> {
        let holder = Holder::Agent(id);
        let before = self.granted(holder)?;
        if before.as_ref().is_some_and(|before| !before.revoked) {
            return Err(PkiError::Taken { what: what(holder) });
        }
        let grant = before.map_or(0, |before| before.grant) + 1;
        let certificate = self.authority()?.sign_request(&identity(holder, grant), request)?;
        files::write(&self.pair(holder).0, &certificate, files::PUBLIC)?;
        self.write_grant(holder, &Granted { grant, pools, invoke: Vec::new(), revoked: false })?;
        Ok(certificate)
    }
}
