//! In the place of `firecracker`, where there is none: see `flux_testkit::firecracker`.

fn main() -> std::process::ExitCode {
    match flux_testkit::firecracker::run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            use std::io::Write as _;
            let _ = writeln!(std::io::stderr(), "{error}");
            std::process::ExitCode::FAILURE
        }
    }
}
