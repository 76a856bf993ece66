//! A function on disk: a directory with a `flux.yaml`, or a zip that has one.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use flux_protocol::{FunctionName, FunctionSpec, function::parse_yaml, limits};

use crate::error::CliError;

pub(crate) const CONFIGURATION: &str = "flux.yaml";

/// What a deployment sends.
#[derive(Debug)]
pub(crate) struct Project {
    pub(crate) name: FunctionName,
    /// Body of `PUT /functions`; a zip without `flux.yaml` has none.
    pub(crate) configuration: Option<String>,
    pub(crate) archive: Bytes,
}

/// Reads and checks everything that can be checked before the gateway is asked.
/// `packages` are put beside a folder's own files.
pub(crate) fn read(path: &Path, name: Option<&FunctionName>, packages: Option<&Path>) -> Result<Project, CliError> {
    let meta = std::fs::metadata(path)
        .map_err(|source| CliError::local(format!("{} cannot be read", path.display()), source))?;
    if meta.is_dir() { read_dir(path, name, packages) } else { read_zip(path, name) }
}

/// What a folder's own configuration says.
pub(crate) fn specification(dir: &Path, name: Option<&FunctionName>) -> Result<FunctionSpec, CliError> {
    read_configuration(dir, name).map(|(spec, _)| spec)
}

/// A folder's own files.
pub(crate) fn pack(dir: &Path) -> Result<Bytes, CliError> {
    flux_artifacts::pack_dir(dir).map_err(|error| not_packed(dir, &error))
}

fn not_packed(dir: &Path, error: &flux_artifacts::ArchiveError) -> CliError {
    CliError::problem(format!("{} cannot be packed: {error}", dir.display()), PACK_REMEDY)
}

fn read_dir(dir: &Path, name: Option<&FunctionName>, packages: Option<&Path>) -> Result<Project, CliError> {
    let (spec, configuration) = read_configuration(dir, name)?;
    check_handler(dir, &spec)?;
    let archive = match packages {
        Some(packages) => flux_artifacts::pack_with(dir, packages).map_err(|error| not_packed(dir, &error))?,
        None => pack(dir)?,
    };
    Ok(Project { name: spec.name, configuration: Some(configuration), archive })
}

fn read_configuration(dir: &Path, name: Option<&FunctionName>) -> Result<(FunctionSpec, String), CliError> {
    let file = dir.join(CONFIGURATION);
    let text = match std::fs::read_to_string(&file) {
        Ok(text) => text,
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => {
            return Err(CliError::problem(
                format!("{} has no {CONFIGURATION}", dir.display()),
                "`flux init python|node|bash|rust NAME` writes a function that works; or write one: name and handler are enough",
            ));
        }
        Err(source) => return Err(CliError::local(format!("{} cannot be read", file.display()), source)),
    };
    configuration(&file, text, name)
}

pub(crate) const PACK_REMEDY: &str = "deploy a directory that holds what the function needs, and nothing else";

fn configuration(file: &Path, text: String, name: Option<&FunctionName>) -> Result<(FunctionSpec, String), CliError> {
    let wrong = |source| CliError::Configuration { path: file.to_owned(), source };
    let mut spec = parse_yaml(&text).map_err(wrong)?;
    match name {
        Some(name) if *name != spec.name => {
            spec.name = name.clone();
            let json = serde_json::to_string(&spec)
                .map_err(|error| CliError::local("the configuration cannot be written", error.into()))?;
            Ok((spec, json))
        }
        _ => Ok((spec, text)),
    }
}

/// The two mistakes that everyone makes once.
fn check_handler(dir: &Path, spec: &FunctionSpec) -> Result<(), CliError> {
    let files = spec.entry().files;
    let found = files.iter().map(|file| dir.join(file)).find(|file| file.is_file());
    let handler = found.unwrap_or_else(|| dir.join(&spec.handler));
    let built = ["build.sh", "Makefile"].into_iter().find(|script| dir.join(script).exists());
    let meta = match std::fs::metadata(&handler) {
        Ok(meta) if meta.is_file() => meta,
        _ => {
            let remedy = match built {
                Some("build.sh") => format!("build it first: (cd {} && ./build.sh)", dir.display()),
                Some(_) => format!("build it first: make -C {}", dir.display()),
                None => "write it, or correct `handler`".to_owned(),
            };
            let looked_for = match files.as_slice() {
                [file] if *file == spec.handler => String::new(),
                files => format!(": there is no {}", files.join(" or ")),
            };
            let configuration = dir.join(CONFIGURATION);
            return Err(CliError::problem(
                format!("the handler `{}` of {} is not there{looked_for}", spec.handler, configuration.display()),
                remedy,
            ));
        }
    };
    if spec.runtime.executes_file() && meta.permissions().mode() & 0o111 == 0 {
        return Err(CliError::problem(
            format!("the handler {} cannot be run", handler.display()),
            format!("chmod +x {}", handler.display()),
        ));
    }
    Ok(())
}

fn read_zip(path: &Path, name: Option<&FunctionName>) -> Result<Project, CliError> {
    let unreadable = |source| CliError::local(format!("{} cannot be read", path.display()), source);
    let size = std::fs::metadata(path).map_err(unreadable)?.len();
    if size > limits::ARCHIVE as u64 {
        let most = limits::ARCHIVE / limits::MIB;
        return Err(CliError::problem(format!("{} is larger than {most} MiB", path.display()), PACK_REMEDY));
    }
    let archive = Bytes::from(std::fs::read(path).map_err(unreadable)?);
    let inside = path.join(CONFIGURATION);
    let found =
        flux_artifacts::archive::read_entry(&archive, CONFIGURATION, limits::FUNCTION_YAML).map_err(|problem| {
            CliError::problem(
                format!("{} is not a zip: {problem}", path.display()),
                "give a directory, or a zip of one",
            )
        })?;
    match (found, name) {
        (Some(text), name) => {
            let text = String::from_utf8_lossy(&text).into_owned();
            let (spec, configuration) = configuration(&inside, text, name)?;
            check_packages(path, &archive, &spec)?;
            Ok(Project { name: spec.name, configuration: Some(configuration), archive })
        }
        (None, Some(name)) => Ok(Project { name: name.clone(), configuration: None, archive }),
        (None, None) => Err(CliError::problem(
            format!("{} has no {CONFIGURATION}", path.display()),
            "put one in, or say which registered function it is for: --name",
        )),
    }
}

/// Packages are installed beside a folder; a zip is taken as it is, and has them.
fn check_packages(path: &Path, archive: &Bytes, spec: &FunctionSpec) -> Result<(), CliError> {
    // What cannot be read is the gateway's to refuse.
    let (Some(list), Ok(summary)) = (spec.runtime.package_list(), flux_artifacts::archive::inspect(archive)) else {
        return Ok(());
    };
    let text =
        flux_artifacts::archive::read_entry(archive, list, limits::PACKAGE_LIST).ok().flatten().unwrap_or_default();
    let asks = spec.runtime.asks_for_packages(&String::from_utf8_lossy(&text));
    if !asks || summary.files().any(|file| spec.runtime.is_of_a_package(file)) {
        return Ok(());
    }
    Err(CliError::problem(
        format!("{list} in {} names packages, and the zip has none", path.display()),
        format!(
            "deploy the folder, whose packages are installed; or put them in before zipping: {}",
            spec.runtime.install_by_hand()
        ),
    ))
}

/// The directory to watch, for `--watch`.
pub(crate) fn watched(path: &Path) -> PathBuf {
    if path.is_dir() {
        path.to_owned()
    } else {
        path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new(".")).to_owned()
    }
}
