//! One connection to one machine.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};

use flux_provider::Fingerprint;
use flux_secrets::Patterns;
use russh::{
    ChannelMsg, Disconnect, Sig,
    client::{self, Handle},
    keys::{PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate},
};
use russh_sftp::{
    client::SftpSession,
    protocol::{FileAttributes, OpenFlags},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    time::{Instant, timeout},
};

use crate::{
    host_key::Expected,
    output::Output,
    script::{self, As},
    steps::Reason,
};

/// Until a connection that was made is let in.
const HANDSHAKE: Duration = Duration::from_secs(30);
/// What says nothing is asked, and given up when it does not answer: a cut connection is found out in three times this.
const KEEPALIVE: Duration = Duration::from_secs(5);
const KEEPALIVES: usize = 3;
/// `timeout` on the machine ends a script by itself; after this much more the connection is taken for dead.
const GRACE: Duration = Duration::from_secs(15);
/// What a program printed may come after its status; a daemon that it left behind may hold the pipe open for ever.
const LAST_OUTPUT: Duration = Duration::from_secs(1);
const PIECE: usize = 256 * 1024;

/// A step that failed, and what it printed.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) reason: Reason,
    pub(crate) output: String,
}

impl From<Reason> for Failed {
    fn from(reason: Reason) -> Self {
        Self { reason, output: String::new() }
    }
}

pub(crate) struct Session {
    handle: Handle<Checks>,
    who: As,
    /// Our folder on the machine.
    pub(crate) work: String,
    pub(crate) host_key: Fingerprint,
    hidden: Option<Patterns>,
}

/// What became of the host key, for [`Session::open`]: the library tells only that it was not taken.
#[derive(Clone)]
struct Checks {
    expected: Expected,
    verdict: Arc<OnceLock<Result<Fingerprint, Reason>>>,
}

impl client::Handler for Checks {
    type Error = russh::Error;

    async fn check_server_key(&mut self, key: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        let wire = match key {
            PublicKeyOrCertificate::PublicKey { key, .. } => key.to_bytes(),
            PublicKeyOrCertificate::Certificate(certificate) => {
                russh::keys::PublicKey::from(certificate.public_key().clone()).to_bytes()
            }
        };
        let Ok(wire) = wire else { return Ok(false) };
        let seen = Fingerprint::of_key(&wire);
        let checked = self.expected.check(&seen);
        let good = checked.is_ok();
        let _ = self.verdict.set(checked.map(|()| seen));
        Ok(good)
    }
}

/// How to get in.
pub(crate) struct Door<'a> {
    pub(crate) address: SocketAddr,
    pub(crate) user: &'a str,
    pub(crate) key: Arc<PrivateKey>,
    pub(crate) expected: Expected,
    pub(crate) hidden: Option<Patterns>,
}

impl Door<'_> {
    /// Connects, proves who we are, and finds out whether we can be root.
    pub(crate) async fn open(&self) -> Result<Session, Failed> {
        let connected = timeout(HANDSHAKE, self.connect()).await;
        let late = || Reason::Unreachable { why: format!("no answer within {} s", HANDSHAKE.as_secs()) };
        let (handle, host_key) = connected.map_err(|_| late())??;
        let mut session =
            Session { handle, who: As::Ourselves, work: String::new(), host_key, hidden: self.hidden.clone() };
        let told = session.run(script::WORK_DIR, HANDSHAKE).await?;
        let (uid, work) = told.lines().last().unwrap_or_default().split_once(' ').unwrap_or_default();
        if !work.starts_with('/') {
            let reason = Reason::Transfer { why: "the machine did not say where our folder is".to_owned() };
            return Err(Failed { reason, output: told });
        }
        work.clone_into(&mut session.work);
        session.who = As::RootAlone { sudo: uid != "0" };
        match session.run(script::CAN_BE_ROOT, HANDSHAKE).await {
            Err(Failed { reason: Reason::Exit { .. }, output }) => {
                Err(Failed { reason: Reason::NotRoot { user: self.user.to_owned() }, output })
            }
            other => other.map(|_| session),
        }
    }

    async fn connect(&self) -> Result<(Handle<Checks>, Fingerprint), Reason> {
        let config = client::Config {
            keepalive_interval: Some(KEEPALIVE),
            keepalive_max: KEEPALIVES,
            nodelay: true,
            ..client::Config::default()
        };
        let checks = Checks { expected: self.expected.clone(), verdict: Arc::default() };
        let verdict = checks.verdict.clone();
        let connected = client::connect(Arc::new(config), self.address, checks).await;
        let host_key = match verdict.get() {
            Some(Err(reason)) => return Err(reason.clone()),
            Some(Ok(seen)) => Some(seen.clone()),
            None => None,
        };
        let unreachable = |why: String| Reason::Unreachable { why };
        let mut handle = connected.map_err(|error| unreachable(error.to_string()))?;
        let host_key = host_key.ok_or_else(|| unreachable("it showed no host key".to_owned()))?;
        // Of an RSA key the hash that the server knows; others have one.
        let hash = handle.best_supported_rsa_hash().await.ok().flatten().flatten();
        let key = PrivateKeyWithHashAlg::new(self.key.clone(), hash);
        match handle.authenticate_publickey(self.user, key).await {
            Ok(result) if result.success() => Ok((handle, host_key)),
            Ok(_) => Err(Reason::Refused { user: self.user.to_owned() }),
            Err(error) => Err(unreachable(error.to_string())),
        }
    }
}

fn cut(error: &russh::Error) -> Reason {
    Reason::Cut { why: error.to_string() }
}

impl Session {
    /// Runs a script to its end, as root and alone: what it printed.
    pub(crate) async fn run(&self, script: &str, within: Duration) -> Result<String, Failed> {
        let mut output = Output::new(self.hidden.clone());
        // It may wait for the end of another before it begins.
        let ended = timeout(within * 2 + GRACE, self.follow(script, within, &mut output)).await;
        let ended = ended.unwrap_or(Err(Reason::TimedOut { after: within }));
        let output = output.finish();
        match ended {
            Ok(()) => Ok(output),
            Err(reason) => Err(Failed { reason, output }),
        }
    }

    async fn follow(&self, script: &str, within: Duration, output: &mut Output) -> Result<(), Reason> {
        let mut channel = self.handle.channel_open_session().await.map_err(|error| cut(&error))?;
        let sent = async {
            channel.exec(true, script::command(within, self.who)).await?;
            channel.data_bytes(script::sent(script)).await?;
            channel.eof().await
        };
        sent.await.map_err(|error| cut(&error))?;
        let (mut ended, began) = (None, Instant::now());
        loop {
            let message = match ended {
                None => channel.wait().await,
                Some(_) => timeout(LAST_OUTPUT, channel.wait()).await.unwrap_or_default(),
            };
            match message {
                Some(ChannelMsg::Data { data } | ChannelMsg::ExtendedData { data, .. }) => output.push(&data),
                Some(ChannelMsg::ExitStatus { exit_status: 0 }) => ended = Some(Ok(())),
                // `timeout` ended what it ran: by TERM, or by a KILL that takes itself along.
                Some(
                    ChannelMsg::ExitStatus { exit_status: 124 | 137 }
                    | ChannelMsg::ExitSignal { signal_name: Sig::KILL, .. },
                ) if began.elapsed() >= within => {
                    ended = Some(Err(Reason::TimedOut { after: within }));
                }
                Some(ChannelMsg::ExitStatus { exit_status: script::STILL_BUSY }) => {
                    ended = Some(Err(Reason::TimedOut { after: within }));
                }
                Some(ChannelMsg::ExitStatus { exit_status }) => ended = Some(Err(Reason::Exit { status: exit_status })),
                Some(ChannelMsg::ExitSignal { signal_name, .. }) => {
                    ended = Some(Err(Reason::Signal { signal: format!("{signal_name:?}") }));
                }
                Some(ChannelMsg::Failure) => {
                    return Err(Reason::Unreachable { why: "the machine runs no commands".to_owned() });
                }
                Some(ChannelMsg::Close) | None => break,
                Some(_) => {}
            }
        }
        ended.unwrap_or_else(|| Err(Reason::Cut { why: "the connection ended before the command did".to_owned() }))
    }

    /// Brings files into our folder, each under its name; nobody else can read them.
    pub(crate) async fn put(&self, files: &[(String, &[u8])], within: Duration) -> Result<(), Failed> {
        let put = async {
            let sftp = self.sftp().await?;
            for (name, bytes) in files {
                self.put_one(&sftp, name, &mut &**bytes).await?;
            }
            Ok(())
        };
        Ok(timeout(within, put).await.unwrap_or(Err(Reason::TimedOut { after: within }))?)
    }

    /// The same of a file of our disk.
    pub(crate) async fn put_file(&self, name: &str, file: &Path, within: Duration) -> Result<(), Failed> {
        let mut from = tokio::fs::File::open(file)
            .await
            .map_err(|error| Reason::Ours { why: format!("{}: {error}", file.display()) })?;
        let put = async { self.put_one(&self.sftp().await?, name, &mut from).await };
        Ok(timeout(within, put).await.unwrap_or(Err(Reason::TimedOut { after: within }))?)
    }

    async fn sftp(&self) -> Result<SftpSession, Reason> {
        let channel = self.handle.channel_open_session().await.map_err(|error| cut(&error))?;
        channel.request_subsystem(true, "sftp").await.map_err(|error| cut(&error))?;
        SftpSession::new(channel.into_stream()).await.map_err(|error| Reason::Transfer { why: error.to_string() })
    }

    async fn put_one(&self, sftp: &SftpSession, name: &str, from: &mut (impl AsyncRead + Unpin)) -> Result<(), Reason> {
        let failed = |error: String| Reason::Transfer { why: format!("{name}: {error}") };
        let part = format!("{}/{name}.part", self.work);
        let private = FileAttributes { permissions: Some(0o600), ..FileAttributes::empty() };
        let flags = OpenFlags::CREATE | OpenFlags::TRUNCATE | OpenFlags::WRITE;
        let opened = sftp.open_with_flags_and_attributes(part.as_str(), flags, private).await;
        let mut to = opened.map_err(|error| failed(error.to_string()))?;
        let mut piece = vec![0; PIECE];
        loop {
            let read = from.read(&mut piece).await.map_err(|error| failed(error.to_string()))?;
            if read == 0 {
                break;
            }
            to.write_all(&piece[..read]).await.map_err(|error| failed(error.to_string()))?;
        }
        to.sync_all().await.map_err(|error| failed(error.to_string()))?;
        to.close().await.map_err(|error| failed(error.to_string()))?;
        // SFTP's rename refuses to replace.
        let whole = format!("{}/{name}", self.work);
        let _ = sftp.remove_file(whole.as_str()).await;
        sftp.rename(part, whole).await.map_err(|error| failed(error.to_string()))
    }

    pub(crate) async fn close(self) {
        let _ = self.handle.disconnect(Disconnect::ByApplication, "done", "en").await;
    }
}
