//! The directory: what is in it, made where it is missing, renewed where it is due.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use flux_protocol::{
    AgentId, FunctionGlob, PoolName, Timestamp,
    identity::{Grant, Identity, ProducerName},
    time::now,
};
use rcgen::KeyPair;

use crate::{
    Authority, Certificate, Credential, Grants, PkiError, Trust, authority::check_pair, certificate::server_names,
    files, grants::Granted, ssh,
};

/// The directory of certificates. Nothing is kept in memory: several processes work on one.
#[derive(Debug, Clone)]
pub struct Certs {
    dir: PathBuf,
}

/// One identity, for `flux pki list`.
#[derive(Debug, Clone)]
pub struct Listed {
    pub identity: Identity,
    pub not_after: Option<Timestamp>,
    pub revoked: bool,
    /// Its key is here, so that it can be renewed from here.
    pub key_is_here: bool,
    pub pools: Vec<PoolName>,
    pub invoke: Vec<FunctionGlob>,
}

/// Whose certificate a pair of files is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Holder<'a> {
    Gateway,
    Queue,
    Autoscaler,
    Agent(&'a AgentId),
    Producer(&'a ProducerName),
}

impl Certs {
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(crate) fn pair(&self, holder: Holder<'_>) -> (PathBuf, PathBuf) {
        let (dir, name) = match holder {
            Holder::Gateway => (self.path("flux"), "flux"),
            Holder::Queue => (self.path("queue"), "queue"),
            Holder::Autoscaler => (self.path("autoscaler"), "autoscaler"),
            Holder::Agent(id) => (self.path("agents").join(id.as_str()), "agent"),
            Holder::Producer(name) => (self.path("producers").join(name.as_str()), "producer"),
        };
        (dir.join(format!("{name}.pem")), dir.join(format!("{name}-key.pem")))
    }

    fn grant_file(&self, holder: Holder<'_>) -> PathBuf {
        self.pair(holder).0.with_file_name("grant.json")
    }

    /// The files of the queue's server: certificate, key, CA.
    pub fn queue_files(&self) -> [PathBuf; 3] {
        let (certificate, key) = self.pair(Holder::Queue);
        [certificate, key, self.path("ca/ca.pem")]
    }

    /// What a gateway shows to who asks by HTTPS: certificate and key.
    pub fn gateway_files(&self) -> [PathBuf; 2] {
        self.pair(Holder::Gateway).into()
    }

    /// The files of an agent's machine: certificate, key, CA. The key is here if it was let in with [`Certs::mint_agent`].
    pub fn agent_files(&self, id: &AgentId) -> [PathBuf; 3] {
        let (certificate, key) = self.pair(Holder::Agent(id));
        [certificate, key, self.path("ca/ca.pem")]
    }

    /// What the autoscaler reaches its machines with: private, public.
    pub fn ssh_files(&self) -> [PathBuf; 2] {
        [self.path("ssh/flux-agent.pem"), self.path("ssh/flux-agent.pub")]
    }

    /// Makes what is missing: the CA, gateway, queue and SSH keys. `names` are those under which gateway and queue are
    /// reached besides this machine's own. What is there stays as it is.
    ///
    /// # Errors
    /// A file is damaged, or half of a pair is missing.
    pub fn init(&self, names: &[String]) -> Result<(), PkiError> {
        let _lock = files::lock(&self.dir)?;
        let (ca, ca_key) = (self.path("ca/ca.pem"), self.path("ca/ca-key.pem"));
        if files::read(&ca)?.is_none() && files::read(&ca_key)?.is_none() {
            if self.somebody_is_named()? {
                let remedy = "others have certificates of it; restore it from a backup";
                return Err(PkiError::Missing { path: ca, remedy });
            }
            let (certificate, key) = Authority::make()?;
            // The key first: a certificate without its key would be trusted and could sign nothing.
            files::write(&ca_key, &key, files::SECRET)?;
            files::write(&ca, &certificate, files::PUBLIC)?;
        }
        let authority = self.authority()?;
        let mut all: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
        all.extend(names.iter().filter(|name| !all.contains(name)).cloned().collect::<Vec<_>>());
        let own = [
            (Holder::Gateway, Identity::Gateway),
            (Holder::Queue, Identity::Queue),
            (Holder::Autoscaler, Identity::Autoscaler),
        ];
        for (holder, identity) in own {
            self.ensure(&authority, holder, &identity, &all)?;
        }
        let [private, public] = self.ssh_files();
        if files::read_secret(&private)?.is_none() {
            if files::read(&public)?.is_some() {
                return Err(PkiError::Half { path: private });
            }
            let (key, shown) = ssh::make()?;
            files::write(&private, &key, files::SECRET)?;
            files::write(&public, &shown, files::PUBLIC)?;
        }
        Ok(())
    }

    /// Whether somebody has a certificate of a CA that is not here.
    fn somebody_is_named(&self) -> Result<bool, PkiError> {
        let some = [Holder::Gateway, Holder::Queue].iter().any(|holder| self.pair(*holder).0.exists());
        Ok(some || !files::dirs(&self.path("agents"))?.is_empty())
    }

    /// Makes a pair that is missing; one that lacks a name gets it.
    fn ensure(
        &self,
        authority: &Authority,
        holder: Holder<'_>,
        identity: &Identity,
        names: &[String],
    ) -> Result<(), PkiError> {
        let (certificate, key) = self.pair(holder);
        match (files::read(&certificate)?, files::read_secret(&key)?) {
            (Some(certificate), Some(_)) => {
                let has = server_names(&certificate);
                self.load(holder)?;
                if names.iter().all(|name| has.contains(name)) {
                    return Ok(());
                }
                let mut all = has;
                all.extend(names.iter().filter(|name| !all.contains(name)).cloned().collect::<Vec<_>>());
                self.certify(authority, holder, identity, &all)
            }
            // Its certificate was not written yet.
            (None, _) => self.certify(authority, holder, identity, names),
            (Some(_), None) => Err(PkiError::Half { path: key }),
        }
    }

    /// Signs a certificate for the key that is there, or for a new one.
    fn certify(
        &self,
        authority: &Authority,
        holder: Holder<'_>,
        identity: &Identity,
        names: &[String],
    ) -> Result<(), PkiError> {
        let (certificate, key_file) = self.pair(holder);
        let key = match files::read_secret(&key_file)? {
            Some(text) => KeyPair::from_pem(&text)
                .map_err(|error| PkiError::Damaged { path: key_file, why: error.to_string() })?,
            None => {
                let key = KeyPair::generate().map_err(|error| PkiError::crypto("making a key", error))?;
                files::write(&key_file, &key.serialize_pem(), files::SECRET)?;
                key
            }
        };
        files::write(&certificate, &authority.sign(identity, names, &key)?, files::PUBLIC)
    }

    /// Reads a pair, checking that it belongs together.
    fn load(&self, holder: Holder<'_>) -> Result<Certificate, PkiError> {
        let (path, key_path) = self.pair(holder);
        let remedy = "`flux pki init` makes what a gateway needs, `flux agent join` lets an agent in";
        let Some(pem) = files::read(&path)? else { return Err(PkiError::Missing { path, remedy }) };
        let certificate = Certificate::from_pem(&pem)
            .map_err(|error| PkiError::Damaged { path: path.clone(), why: error.to_string() })?;
        if let Some(key) = files::read_secret(&key_path)? {
            KeyPair::from_pem(&key)
                .map_err(|error| error.to_string())
                .and_then(|key| check_pair(certificate.der(), &key))
                .map_err(|why| PkiError::Damaged { path: key_path, why })?;
        }
        Ok(certificate)
    }

    /// # Errors
    /// The CA's certificate is missing or damaged.
    pub fn trust(&self) -> Result<Trust, PkiError> {
        let path = self.path("ca/ca.pem");
        let remedy = "`flux pki init` makes one, `flux agent join` brings it";
        let Some(pem) = files::read(&path)? else { return Err(PkiError::Missing { path, remedy }) };
        Trust::from_pem(&pem).map_err(|error| PkiError::Damaged { path, why: error.to_string() })
    }

    /// Whether the CA's key is here, so that identities can be given from here.
    pub fn has_authority(&self) -> bool {
        self.path("ca/ca-key.pem").exists()
    }

    /// # Errors
    /// The CA, with its key, is missing or damaged.
    pub fn authority(&self) -> Result<Authority, PkiError> {
        let trust = self.trust()?;
        let path = self.path("ca/ca-key.pem");
        let remedy = "identities are given where the CA's key is";
        let Some(key) = files::read_secret(&path)? else { return Err(PkiError::Missing { path, remedy }) };
        Authority::from_pem(trust.pem(), &key).map_err(|why| PkiError::Damaged { path, why })
    }

    /// What a gateway shows.
    ///
    /// # Errors
    /// It is missing or damaged.
    pub fn gateway(&self) -> Result<Arc<Credential>, PkiError> {
        self.credential(Holder::Gateway)
    }

    /// What the autoscaler shows.
    ///
    /// # Errors
    /// It is missing or damaged.
    pub fn autoscaler(&self) -> Result<Arc<Credential>, PkiError> {
        self.credential(Holder::Autoscaler)
    }

    /// What an agent shows.
    ///
    /// # Errors
    /// It is missing or damaged.
    pub fn agent(&self, id: &AgentId) -> Result<Arc<Credential>, PkiError> {
        self.credential(Holder::Agent(id))
    }

    /// What a producer shows.
    ///
    /// # Errors
    /// It is missing or damaged.
    pub fn producer(&self, name: &ProducerName) -> Result<Arc<Credential>, PkiError> {
        self.credential(Holder::Producer(name))
    }

    fn credential(&self, holder: Holder<'_>) -> Result<Arc<Credential>, PkiError> {
        self.load(holder)?;
        let (certificate, key) = self.pair(holder);
        Credential::load(certificate, key, self.trust()?)
    }

    /// Lets an agent in with a key that is made here; for who is in already, only its pools change.
    ///
    /// # Errors
    /// There is no CA's key here, or the agent's own key is elsewhere.
    pub fn mint_agent(&self, id: &AgentId, pools: Vec<PoolName>) -> Result<(), PkiError> {
        self.mint(Holder::Agent(id), Granted { grant: 0, pools, invoke: Vec::new(), revoked: false })
    }

    /// The same of a producer.
    ///
    /// # Errors
    /// As [`Certs::mint_agent`].
    pub fn mint_producer(&self, name: &ProducerName, invoke: Vec<FunctionGlob>) -> Result<(), PkiError> {
        self.mint(Holder::Producer(name), Granted { grant: 0, pools: Vec::new(), invoke, revoked: false })
    }

    fn mint(&self, holder: Holder<'_>, wanted: Granted) -> Result<(), PkiError> {
        let _lock = files::lock(&self.dir)?;
        let authority = self.authority()?;
        let before = self.granted(holder)?;
        let is_in = before.as_ref().is_some_and(|before| !before.revoked);
        let key = self.pair(holder).1;
        if is_in && !key.exists() {
            return Err(PkiError::Taken { what: what(holder) });
        }
        let number = before.as_ref().map_or(0, |before| before.grant) + u32::from(!is_in);
        if !is_in {
            files::remove(&key)?;
            self.certify(&authority, holder, &identity(holder, number), &[])?;
        }
        let wanted = Granted { grant: number, ..wanted };
        if before.as_ref() == Some(&wanted) { Ok(()) } else { self.write_grant(holder, &wanted) }
    }

    /// A new certificate for an agent that is let in, and asked over a connection that is its own.
    ///
    /// For the key that it was let in with alone: the connection may be that of one that was shut out a moment ago, while
    /// somebody else was let in under the name.
    ///
    /// # Errors
    /// It is not let in, or the request cannot be used, or is for another key.
    pub fn renew_agent(&self, id: &AgentId, request: &str) -> Result<String, PkiError> {
        let _lock = files::lock(&self.dir)?;
        let holder = Holder::Agent(id);
        let granted = self.granted(holder)?.filter(|granted| !granted.revoked);
        let granted = granted.ok_or_else(|| PkiError::Unknown { what: what(holder) })?;
        let held = self.load(holder)?;
        let certificate = self.authority()?.sign_renewal(&identity(holder, granted.grant), request, &held)?;
        files::write(&self.pair(holder).0, &certificate, files::PUBLIC)?;
        Ok(certificate)
    }

    /// Renews what ends within `margin` and has its key here. Keys stay; whoever reads the files shows the new ones.
    ///
    /// # Errors
    /// A file cannot be read or written. What came before it was renewed.
    pub fn renew(&self, margin: Duration) -> Result<Vec<Identity>, PkiError> {
        let _lock = files::lock(&self.dir)?;
        let authority = self.authority()?;
        let mut renewed = Vec::new();
        for identity in self.identities()? {
            let holder = holder(&identity);
            let (path, key) = self.pair(holder);
            if !path.exists() || !key.exists() || !self.load(holder)?.ends_within(margin, now()) {
                continue;
            }
            let names = files::read(&path)?.map(|pem| server_names(&pem)).unwrap_or_default();
            self.certify(&authority, holder, &identity, &names)?;
            renewed.push(identity);
        }
        Ok(renewed)
    }

    /// Shuts an agent out. Its number stays, so that its certificate is never let in again.
    ///
    /// # Errors
    /// It was never let in.
    pub fn revoke_agent(&self, id: &AgentId) -> Result<(), PkiError> {
        self.revoke(Holder::Agent(id))
    }

    /// The same of a producer.
    ///
    /// # Errors
    /// It was never let in.
    pub fn revoke_producer(&self, name: &ProducerName) -> Result<(), PkiError> {
        self.revoke(Holder::Producer(name))
    }

    fn revoke(&self, holder: Holder<'_>) -> Result<(), PkiError> {
        let _lock = files::lock(&self.dir)?;
        let granted = self.granted(holder)?.ok_or_else(|| PkiError::Unknown { what: what(holder) })?;
        self.write_grant(holder, &Granted { revoked: true, ..granted })?;
        let (certificate, key) = self.pair(holder);
        files::remove(&certificate)?;
        files::remove(&key)
    }

    pub(crate) fn granted(&self, holder: Holder<'_>) -> Result<Option<Granted>, PkiError> {
        let path = self.grant_file(holder);
        let Some(text) = files::read(&path)? else { return Ok(None) };
        serde_json::from_str(&text).map(Some).map_err(|error| PkiError::Damaged { path, why: error.to_string() })
    }

    pub(crate) fn write_grant(&self, holder: Holder<'_>, granted: &Granted) -> Result<(), PkiError> {
        let text = serde_json::to_string(granted).map_err(|error| PkiError::crypto("writing a grant", error))?;
        files::write(&self.grant_file(holder), &format!("{text}\n"), files::PUBLIC)?;
        files::write(&self.path("changed"), &format!("{}\n", now()), files::PUBLIC)
    }

    /// Everyone who has a directory here, with the number that holds for them.
    fn identities(&self) -> Result<Vec<Identity>, PkiError> {
        let mut all = vec![Identity::Gateway, Identity::Queue];
        // A directory from before there were autoscalers has none.
        if self.pair(Holder::Autoscaler).0.exists() {
            all.push(Identity::Autoscaler);
        }
        for name in files::dirs(&self.path("agents"))? {
            let Ok(id) = AgentId::parse(&name) else { continue };
            let granted = self.granted(Holder::Agent(&id))?;
            all.extend(granted.map(|granted| Identity::Agent { id: id.clone(), grant: granted.grant }));
        }
        for name in files::dirs(&self.path("producers"))? {
            let Ok(name) = ProducerName::parse(&name) else { continue };
            let granted = self.granted(Holder::Producer(&name))?;
            all.extend(granted.map(|granted| Identity::Producer { name: name.clone(), grant: granted.grant }));
        }
        Ok(all)
    }

    /// Who is let in now.
    ///
    /// # Errors
    /// A grant cannot be read: nobody is told to be shut out because of that.
    pub fn grants(&self) -> Result<Grants, PkiError> {
        let mut grants = Grants::default();
        for identity in self.identities()? {
            let Some(granted) = self.granted(holder(&identity))?.filter(|granted| !granted.revoked) else { continue };
            match identity {
                Identity::Agent { id, grant } => grants.insert(Grant::Agent { id, grant, pools: granted.pools }),
                Identity::Producer { name, grant } => {
                    grants.insert(Grant::Producer { name, grant, invoke: granted.invoke });
                }
                Identity::Gateway | Identity::Queue | Identity::Autoscaler => {}
            }
        }
        Ok(grants)
    }

    /// # Errors
    /// Something cannot be read.
    pub fn list(&self) -> Result<Vec<Listed>, PkiError> {
        let mut all = Vec::new();
        for identity in self.identities()? {
            let holder = holder(&identity);
            let (certificate, key) = self.pair(holder);
            let not_after = if certificate.exists() { Some(self.load(holder)?.not_after()) } else { None };
            let granted = self.granted(holder)?;
            let (pools, invoke, revoked) =
                granted.map_or_else(Default::default, |granted| (granted.pools, granted.invoke, granted.revoked));
            all.push(Listed { key_is_here: key.exists(), identity, not_after, revoked, pools, invoke });
        }
        Ok(all)
    }

    /// Changes whenever a grant was given or taken.
    pub fn changed(&self) -> Option<std::time::SystemTime> {
        fs::metadata(self.path("changed")).and_then(|meta| meta.modified()).ok()
    }
}

fn holder(identity: &Identity) -> Holder<'_> {
    match identity {
        Identity::Gateway => Holder::Gateway,
        Identity::Queue => Holder::Queue,
        Identity::Autoscaler => Holder::Autoscaler,
        Identity::Agent { id, .. } => Holder::Agent(id),
        Identity::Producer { name, .. } => Holder::Producer(name),
    }
}

pub(crate) fn identity(holder: Holder<'_>, grant: u32) -> Identity {
    match holder {
        Holder::Gateway => Identity::Gateway,
        Holder::Queue => Identity::Queue,
        Holder::Autoscaler => Identity::Autoscaler,
        Holder::Agent(id) => Identity::Agent { id: id.clone(), grant },
        Holder::Producer(name) => Identity::Producer { name: name.clone(), grant },
    }
}

pub(crate) fn what(holder: Holder<'_>) -> String {
    identity(holder, 0).to_string()
}
