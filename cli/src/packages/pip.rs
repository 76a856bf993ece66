//! Python's packages, with pip: wheels alone, for the agents' Python on Linux.

use std::path::Path;

use tokio::process::Command;

use super::{Wanted, tool};
use crate::{error::CliError, output::Output};

const PYTHON: &str = "python3";
/// What pip has to be told where it would take another system's wheels; the oldest libc first.
const LINUX: [&str; 5] = ["manylinux2014", "manylinux_2_17", "manylinux_2_28", "manylinux_2_34", "linux"];

pub(super) async fn version_here() -> Result<String, CliError> {
    tool::output_of(PYTHON, &["-c", "import sys; print('%d.%d' % sys.version_info[:2])"]).await
}

pub(super) async fn install(wanted: &Wanted<'_>, into: &Path, out: Output) -> Result<(), CliError> {
    let Wanted { folder, list, version, .. } = wanted;
    let mut command = Command::new(PYTHON);
    command.current_dir(folder).args(["-m", "pip", "install", "--disable-pip-version-check", "--no-input"]);
    command.args(["--progress-bar", "off", "--no-compile", "--only-binary", ":all:"]);
    command.args(["--implementation", "cp", "--python-version", version]);
    if std::env::consts::OS != "linux" {
        for platform in LINUX {
            command.arg("--platform").arg(format!("{platform}_{}", std::env::consts::ARCH));
        }
    }
    command.arg("--target").arg(into).args(["--requirement", list]);
    let remedy = format!(
        "nothing was deployed. Where a package has no wheel for Python {version}, build one (`pip wheel`), or install by hand: {}",
        wanted.runtime.install_by_hand()
    );
    tool::run(command, &format!("installing the packages of {list}"), remedy, out).await
}
