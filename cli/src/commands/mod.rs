//! One file for each command.

use crate::{args::Command, client::Client, error::CliError, output::Output};

pub(crate) mod agent;
pub(crate) mod agents;
pub(crate) mod audit;
pub(crate) mod autoscaler;
pub(crate) mod cancel;
pub(crate) mod delete;
pub(crate) mod deploy;
pub(crate) mod dlq;
pub(crate) mod follow;
pub(crate) mod functions;
pub(crate) mod gc;
pub(crate) mod init;
pub(crate) mod invoke;
pub(crate) mod keys;
pub(crate) mod logs;
pub(crate) mod pki;
pub(crate) mod ps;
pub(crate) mod rollback;
pub(crate) mod secrets;
pub(crate) mod shown;
pub(crate) mod top;
pub(crate) mod version;

/// What every command of the API gets.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) out: Output,
}

pub(crate) async fn run(command: Command, cx: &Context) -> Result<(), CliError> {
    match command {
        Command::Deploy(args) => deploy::run(args, cx).await,
        Command::Invoke(args) => invoke::run(args, cx).await,
        Command::Logs(args) => logs::run(args, cx).await,
        Command::Ps(args) => ps::run(args, cx).await,
        Command::Cancel(args) => cancel::run(args, cx).await,
        Command::Functions(args) => functions::run(args, cx).await,
        Command::Rollback(args) => rollback::run(args, cx).await,
        Command::Delete(args) => delete::run(args, cx).await,
        Command::Agent(args) => agent::run(args, cx).await,
        Command::Agents(args) => agents::run(args, cx).await,
        Command::Top(args) => top::run(args, cx).await,
        Command::Dlq(args) => dlq::run(args, cx).await,
        Command::Keys(args) => keys::run(args, cx).await,
        Command::Secrets(args) => secrets::run(args, cx).await,
        Command::Audit(args) => audit::run(args, cx).await,
        Command::Gc(args) => gc::run(&args, cx).await,
        Command::Autoscaler(args) => autoscaler::run(args, cx).await,
        Command::Bench(args) => crate::bench::run(args, cx).await,
        // These need no gateway: `main` has taken them.
        Command::Up(_)
        | Command::Serve(_)
        | Command::Identities(_)
        | Command::Pki(_)
        | Command::Init(_)
        | Command::Microvm(_)
        | Command::Backup(_)
        | Command::Restore(_)
        | Command::Version => Ok(()),
    }
}

/// A function's name on the command line.
pub(crate) fn function_name(text: &str) -> Result<flux_protocol::FunctionName, String> {
    flux_protocol::FunctionName::parse(text).map_err(|error| error.rule.to_owned())
}

/// A duration on the command line.
pub(crate) fn duration(text: &str) -> Result<std::time::Duration, String> {
    flux_protocol::function::parse_duration(text)
}
