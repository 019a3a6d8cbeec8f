//! `lab`: see `lab --help`.

use clap::Parser;

fn main() -> std::process::ExitCode {
    match lab::cli::run(lab::cli::Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lab: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
