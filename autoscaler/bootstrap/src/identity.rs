//! What an agent's machine is given.

use std::{fmt, fs, path::Path};

use flux_pki::Certs;
use flux_protocol::{AgentId, PoolName};

use crate::{Recipe, steps::Reason};

/// An agent's certificate and key, the CA's certificate, and its configuration.
#[derive(Clone)]
pub struct AgentFiles {
    pub agent: AgentId,
    pub(crate) ca: Vec<u8>,
    pub(crate) certificate: Vec<u8>,
    pub(crate) key: Vec<u8>,
    pub(crate) config: Vec<u8>,
}

impl fmt::Debug for AgentFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentFiles").field("agent", &self.agent).finish_non_exhaustive()
    }
}

impl AgentFiles {
    /// Lets the agent in, with a key that is made here unless it was let in from here before, and reads what it was given.
    ///
    /// # Errors
    /// The CA's key is not here, or as [`AgentFiles::read`].
    pub fn mint(
        certs: &Certs,
        agent: AgentId,
        pool: &PoolName,
        recipe: &Recipe,
        config: serde_json::Value,
    ) -> Result<Self, Reason> {
        let minted = certs.mint_agent(&agent, vec![pool.clone()]);
        minted.map_err(|error| Reason::Ours { why: error.to_string() })?;
        Self::read(certs, agent, pool, recipe, config)
    }

    /// Of an agent that is let in, and whose key is here.
    ///
    /// `config` is YAML for the machine's `flux.yaml`: what it needs beside its id, pool and certificates (`queue: { url: … }`
    /// at the least). It may have no `certs_dir` and no `agent.id` or `agent.pool`: those are written here.
    ///
    /// # Errors
    /// A file cannot be read, or the configuration cannot be extended so.
    pub fn read(
        certs: &Certs,
        agent: AgentId,
        pool: &PoolName,
        recipe: &Recipe,
        mut config: serde_json::Value,
    ) -> Result<Self, Reason> {
        let ours = |why: String| Reason::Ours { why };
        let [certificate, key, ca] = certs.agent_files(&agent);
        let read = |path: &Path| fs::read(path).map_err(|error| ours(format!("{}: {error}", path.display())));
        let fields = config.as_object_mut().ok_or_else(|| ours("the agent's configuration is no map".to_owned()))?;
        fields.insert("certs_dir".to_owned(), format!("{}/certs", recipe.config_dir).into());
        let of_agent = fields.entry("agent").or_insert_with(|| serde_json::json!({}));
        let of_agent = of_agent.as_object_mut().ok_or_else(|| ours("`agent` is no map".to_owned()))?;
        of_agent.insert("id".to_owned(), agent.as_str().into());
        of_agent.insert("pool".to_owned(), pool.as_str().into());
        // JSON is YAML.
        let config = format!("# Written by flux-autoscaler.\n{config:#}\n").into_bytes();
        Ok(Self { ca: read(&ca)?, certificate: read(&certificate)?, key: read(&key)?, config, agent })
    }

    /// Where each goes below the configuration directory, and its mode.
    pub(crate) fn placed(&self) -> [(String, u32, &[u8]); 4] {
        let own = format!("certs/agents/{}", self.agent);
        [
            ("certs/ca/ca.pem".to_owned(), 0o644, &self.ca),
            (format!("{own}/agent.pem"), 0o644, &self.certificate),
            (format!("{own}/agent-key.pem"), 0o600, &self.key),
            // Last: it names the others.
            ("flux.yaml".to_owned(), 0o600, &self.config),
        ]
    }
}
