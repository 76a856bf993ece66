//! `flux pki`: identities, in the directory that they are in. No gateway is asked: whoever may write there may give them.

use std::path::{Path, PathBuf};

use flux_pki::{Certs, Listed, PkiError};
use flux_protocol::{AgentId, FunctionGlob, FunctionName, PoolName, identity::Identity};
use flux_runtime::{Settings, config::env};
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
use serde_json::json;

use super::shown::NOTHING;
use crate::{error::CliError, output::Output, table::Table};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The directory [default: that of `flux up` of this user, else /etc/flux/certs]
    #[arg(long, global = true, value_name = "DIR")]
    certs_dir: Option<PathBuf>,
    /// The directory is below this data directory of `flux up`
    #[arg(long, global = true, value_name = "DIR", conflicts_with = "certs_dir")]
    data_dir: Option<PathBuf>,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Make a CA and what a gateway, a queue and the autoscaler need; what is there stays
    Init {
        /// A name or address under which the queue and the gateway are reached
        #[arg(long = "name", value_name = "NAME")]
        names: Vec<String>,
    },
    /// Give an identity, with its key, to be taken to where it is used
    Mint {
        #[command(subcommand)]
        whom: Whom,
    },
    /// Who was let in
    List,
    /// Renew certificates, each with the key that it has
    Renew {
        /// Only those that end within this many days
        #[arg(long, default_value_t = 36_500)]
        within_days: u64,
    },
    /// Shut somebody out, within seconds where a gateway runs here
    Revoke {
        #[command(subcommand)]
        whom: Named,
    },
    /// Print users and permissions for RabbitMQ, as it reads them: `rabbitmqctl import_definitions`
    ExportRabbitmqDefinitions {
        /// Where Flux is
        #[arg(long, default_value = "/")]
        vhost: String,
    },
    /// Print what the queue's servers of an external cluster have to be told
    ExportNatsConf {
        /// Pools besides `default`
        #[arg(long = "pool", value_name = "POOL")]
        pools: Vec<String>,
        /// A function that there is, for producers of some by their beginning: NAME, or POOL/NAME
        #[arg(long = "function", value_name = "NAME")]
        functions: Vec<String>,
    },
}

#[derive(Debug, clap::Subcommand)]
enum Whom {
    /// One that runs functions
    Agent {
        id: String,
        /// The pools whose functions it runs
        #[arg(long = "pool", value_name = "POOL", default_value = "default")]
        pools: Vec<String>,
    },
    /// One that publishes invocations straight to the queue
    Producer {
        name: String,
        /// Functions that it may invoke, such as `resize*`
        #[arg(long, value_name = "GLOB", required = true)]
        invoke: Vec<String>,
    },
}

#[derive(Debug, clap::Subcommand)]
enum Named {
    Agent { id: String },
    Producer { name: String },
}

pub(crate) fn run(args: Args, out: Output) -> Result<(), CliError> {
    let dir = directory(args.certs_dir, args.data_dir);
    as_owner(&dir)?;
    let certs = Certs::at(dir);
    match args.what {
        What::Init { names } => {
            certs.init(&names).map_err(cannot)?;
            said(out, &json!({ "status": "ready", "certs_dir": certs.dir() }), || {
                format!("identities are in {}", certs.dir().display())
            });
        }
        What::Mint { whom: Whom::Agent { id, pools } } => {
            let id = named(&id)?;
            let pools = pools.iter().map(|pool| parse(PoolName::parse(pool))).collect::<Result<_, _>>()?;
            certs.mint_agent(&id, pools).map_err(cannot)?;
            minted(out, &certs, certs.agent(&id).map_err(cannot)?.files());
        }
        What::Mint { whom: Whom::Producer { name, invoke } } => {
            let name = named(&name)?;
            let globs = invoke.iter().map(|glob| parse(FunctionGlob::parse(glob))).collect::<Result<_, _>>()?;
            certs.mint_producer(&name, globs).map_err(cannot)?;
            minted(out, &certs, certs.producer(&name).map_err(cannot)?.files());
        }
        What::List => list(out, &certs.list().map_err(cannot)?),
        What::Renew { within_days } => {
            let margin = std::time::Duration::from_secs(within_days.saturating_mul(24 * 3600));
            let renewed = certs.renew(margin).map_err(cannot)?;
            let names: Vec<String> = renewed.iter().map(ToString::to_string).collect();
            said(out, &json!({ "renewed": names }), || match names.len() {
                0 => "nothing is due".to_owned(),
                _ => format!("renewed: {}", names.join(", ")),
            });
        }
        What::Revoke { whom } => {
            let (what, revoked) = match whom {
                Named::Agent { id } => (format!("agent {id}"), certs.revoke_agent(&named(&id)?)),
                Named::Producer { name } => (format!("producer {name}"), certs.revoke_producer(&named(&name)?)),
            };
            revoked.map_err(cannot)?;
            said(out, &json!({ "revoked": what }), || format!("{what} is shut out"));
        }
        What::ExportRabbitmqDefinitions { vhost } => {
            let grants: Vec<_> = certs.grants().map_err(cannot)?.iter().cloned().collect();
            out.line(flux_broker::rabbit::definitions(&grants, &vhost, flux_broker::rabbit::NAMESPACE).trim_end());
        }
        What::ExportNatsConf { pools, functions } => {
            // A server looks for what is not absolute in the directory that it was started in.
            let certs = Certs::at(std::path::absolute(certs.dir()).unwrap_or_else(|_| certs.dir().to_owned()));
            let pools: Vec<_> = pools.iter().map(|pool| parse(PoolName::parse(pool))).collect::<Result<_, _>>()?;
            let functions: Vec<_> = functions.iter().map(|text| function(text)).collect::<Result<_, _>>()?;
            let accounts = flux_gateway::accounts(&certs, &pools, &functions).map_err(cannot)?;
            out.line(format!("{}{accounts}", flux_broker::nats::server_tls(&certs.queue_files())).trim_end());
        }
    }
    Ok(())
}

/// What is given, what the environment says, what `flux up` of this user made, what a service has.
pub(crate) fn directory(given: Option<PathBuf>, data_dir: Option<PathBuf>) -> PathBuf {
    let of_up = || {
        let home = || env("HOME").map(|home| Path::new(&home).join(".local/share"));
        let data = env("XDG_DATA_HOME").map(PathBuf::from).or_else(home)?.join("flux/certs");
        let of_root = PathBuf::from("/var/lib/flux/certs");
        [data, of_root].into_iter().find(|dir| dir.join("ca").is_dir())
    };
    given
        .or_else(|| data_dir.map(|dir| dir.join("certs")))
        .or_else(|| env("FLUX_CERTS_DIR").map(PathBuf::from))
        .or_else(of_up)
        .unwrap_or_else(|| Settings::default().certs_dir())
}

/// Root works as whom the directory belongs to: what it wrote there, that user could not read.
pub(crate) fn as_owner(dir: &Path) -> Result<(), CliError> {
    use std::os::unix::fs::MetadataExt as _;

    let Ok(meta) = std::fs::metadata(dir) else { return Ok(()) };
    if !Uid::effective().is_root() || meta.uid() == 0 {
        return Ok(());
    }
    setgroups(&[])
        .and_then(|()| setgid(Gid::from_raw(meta.gid())))
        .and_then(|()| setuid(Uid::from_raw(meta.uid())))
        .map_err(|error| CliError::local(format!("the owner of {} cannot be become", dir.display()), error.into()))
}

fn cannot(error: PkiError) -> CliError {
    let cause = std::error::Error::source(&error).map_or_else(String::new, |source| format!(": {source}"));
    CliError::Problem { what: format!("{error}{cause}"), remedy: None }
}

fn parse<T>(parsed: Result<T, flux_protocol::id::InvalidId>) -> Result<T, CliError> {
    parsed.map_err(|error| CliError::usage(error.to_string()))
}

fn named(text: &str) -> Result<AgentId, CliError> {
    parse(AgentId::parse(text))
}

fn function(text: &str) -> Result<(FunctionName, PoolName), CliError> {
    let (pool, name) = text.split_once('/').unwrap_or(("default", text));
    Ok((parse(FunctionName::parse(name))?, parse(PoolName::parse(pool))?))
}

fn said(out: Output, json: &serde_json::Value, text: impl FnOnce() -> String) {
    if out.json { out.json(json) } else { out.line(text()) }
}

fn minted(out: Output, certs: &Certs, [certificate, key]: [&Path; 2]) {
    let ca = certs.dir().join("ca/ca.pem");
    said(out, &json!({ "certificate": certificate, "key": key, "ca": ca }), || {
        format!("certificate  {}\nkey          {}\nCA           {}", certificate.display(), key.display(), ca.display())
    });
}

fn list(out: Output, all: &[Listed]) {
    if out.json {
        let rows: Vec<_> = all
            .iter()
            .map(|one| {
                json!({
                    "name": one.identity.to_string(), "identity": one.identity.uri(), "expires": one.not_after,
                    "revoked": one.revoked, "key_is_here": one.key_is_here, "pools": one.pools, "invoke": one.invoke,
                })
            })
            .collect();
        out.json(&json!({ "identities": rows }));
        return;
    }
    let mut table = Table::new(&["NAME", "STATE", "EXPIRES", "KEY", "MAY"]);
    for one in all {
        let state = if one.revoked { "revoked" } else { "let in" };
        let expires = one.not_after.map_or_else(|| NOTHING.to_owned(), |at| at.to_string());
        let may = match &one.identity {
            Identity::Agent { .. } => {
                format!("run {}", one.pools.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
            }
            Identity::Producer { .. } => {
                format!("invoke {}", one.invoke.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
            }
            Identity::Gateway => "everything".to_owned(),
            Identity::Queue => "serve".to_owned(),
            Identity::Autoscaler => "scale".to_owned(),
        };
        let key = if one.key_is_here { "here" } else { NOTHING };
        table.row([one.identity.to_string(), state.to_owned(), expires, key.to_owned(), may]);
    }
    table.print(out);
}
