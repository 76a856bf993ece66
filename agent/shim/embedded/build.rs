//! Builds `flux-shim` with the C library inside. Whether a program is static is decided for a whole build, so this is one of its own.

use std::{env, path::PathBuf, process::Command};

#[allow(clippy::disallowed_methods)] // cargo says all there is to know in variables
fn main() {
    for watched in ["../src", "../Cargo.toml", "../../../Cargo.lock", "build.rs"] {
        println!("cargo:rerun-if-changed={watched}");
    }
    let var = |name: &str| env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    let (triple, out) = (var("TARGET"), PathBuf::from(var("OUT_DIR")));
    let target_dir = out.join("target");
    let manifest = PathBuf::from(var("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    let mut cargo = Command::new(var("CARGO"));
    cargo.args(["build", "--quiet", "--locked", "--offline", "--profile", "shim", "--bin", "flux-shim"]);
    cargo.arg("--manifest-path").arg(manifest).arg("--target").arg(&triple).arg("--target-dir").arg(&target_dir);
    // What the outer build was told is not meant for this one: clippy's driver, sanitizers, another linker's flags.
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_BUILD_") || name.starts_with("CARGO_PROFILE_") || name.contains("RUSTFLAGS") {
            cargo.env_remove(&*name);
        }
    }
    for name in ["RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "CARGO_TARGET_DIR", "RUSTC", "RUSTDOC", "CLIPPY_ARGS"] {
        cargo.env_remove(name);
    }
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static -C relocation-model=static");
    let status = cargo.status().unwrap_or_else(|error| panic!("cargo cannot be run: {error}"));
    assert!(
        status.success(),
        "flux-shim could not be built as a static program for {triple}; on Debian the package libc6-dev has the library that it needs"
    );
    let built = target_dir.join(&triple).join("shim").join("flux-shim");
    std::fs::copy(&built, out.join("flux-shim")).unwrap_or_else(|error| panic!("{}: {error}", built.display()));
}
