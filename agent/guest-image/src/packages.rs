//! Packages, fetched by `apt-get` into a folder: the machine's own list of what is installed plays no part.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{ImageError, ToolError, file, tool::run};

const PACKAGE: &str = "apt";

/// These packages and all that they depend on, as if nothing were installed.
pub(crate) fn fetch_all(names: &[String], folder: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let (archives, status) = (folder.join("archives"), folder.join("status"));
    let partial = archives.join("partial");
    fs::create_dir_all(&partial).map_err(file("a folder cannot be made", &partial))?;
    fs::write(&status, "").map_err(file("a file cannot be written", &status))?;
    let option = |name: &str, value: &Path| format!("{name}={}", value.display());
    let mut command = apt_get();
    command.args(["-o", &option("Dir::State::status", &status), "-o", &option("Dir::Cache::archives", &archives)]);
    command.args(["-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User="]);
    command.args(["--yes", "--download-only", "--no-install-recommends", "install"]).args(names);
    run(&mut command, PACKAGE)?;
    debs(&archives)
}

/// One package, or the one that it stands for, and nothing that it depends on.
pub(crate) fn fetch_one(name: &str, folder: &Path) -> Result<PathBuf, ImageError> {
    fs::create_dir_all(folder).map_err(file("a folder cannot be made", folder))?;
    let output = run(Command::new("apt-cache").args(["depends", "--no-suggests", "--no-recommends", name]), PACKAGE)?;
    let said = String::from_utf8_lossy(&output.stdout);
    let real = said.lines().find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
    let real = real.map_or_else(|| name.to_owned(), |rest| format!("linux-image-{rest}"));
    let mut command = apt_get();
    command.args(["-o", "APT::Sandbox::User=", "download", &real]).current_dir(folder);
    run(&mut command, PACKAGE)?;
    let missing = || ToolError::Failed { command: "apt-get download".to_owned(), said: format!("no {real}") };
    Ok(debs(folder)?.pop().ok_or_else(missing)?)
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.args(["--quiet=2"]).env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
    command
}

fn debs(folder: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let entries = fs::read_dir(folder).map_err(file("a folder cannot be read", folder))?;
    let paths = entries.flatten().map(|entry| entry.path());
    Ok(paths.filter(|path| path.extension().is_some_and(|extension| extension == "deb")).collect())
}
