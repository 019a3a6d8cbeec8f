//! Prints every definition as one YAML stream; the Makefile splits nothing: a file a kind is written
//! to the directory given as the first argument.

use std::{env, fs, io, path::Path, process::ExitCode};

use lockkeeper_crds::{all, manifest};

fn main() -> ExitCode {
    let Some(dir) = env::args().nth(1) else {
        eprintln!("usage: crds DIRECTORY   (writes one file a kind)");
        return ExitCode::from(2);
    };
    match write(Path::new(&dir)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{dir}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write(dir: &Path) -> io::Result<()> {
    for crd in all() {
        let (name, text) = manifest(&crd).map_err(io::Error::other)?;
        fs::write(dir.join(name), text)?;
    }
    Ok(())
}
