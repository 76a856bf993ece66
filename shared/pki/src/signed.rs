//! What an agent says where its connection does not vouch for it.

use flux_protocol::{AgentId, identity::Identity};

use crate::{
    Certs, PkiError,
    certificate::untrusted,
    directory::{Holder, what},
};

impl Certs {
    /// Whether an agent signed this ([`Credential::sign`](crate::Credential::sign)). Where identities are given it must be
    /// let in now; elsewhere that is known to the queue's server alone.
    ///
    /// # Errors
    /// `Untrusted`: the certificate is no agent's of this name, or is not trusted, or the signature is not by its key.
    /// `Unknown`: the agent is not let in, or was let in anew since.
    pub fn verify_agent_signed(
        &self,
        agent: &AgentId,
        certificate_pem: &str,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), PkiError> {
        let by = self.trust()?.verify_signed(certificate_pem, message, signature)?;
        let Identity::Agent { id, grant } = &by else { return Err(untrusted(format!("it is signed by the {by}"))) };
        if id != agent {
            return Err(untrusted(format!("it is signed by the {by}")));
        }
        let holder = Holder::Agent(agent);
        let let_in = |granted: crate::grants::Granted| !granted.revoked && granted.grant == *grant;
        if self.has_authority() && !self.granted(holder)?.is_some_and(let_in) {
            return Err(PkiError::Unknown { what: what(holder) });
        }
        Ok(())
    }
}
