//! Where pulled bytes go: standard output, or a file that appears when it is complete.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, IsTerminal as _, Stdout, Write};
use std::path::{Path, PathBuf};

use super::super::CliError;

/// A place for bytes. Dropped before [`Target::finish`], it leaves nothing behind.
#[derive(Debug)]
pub(super) enum Target {
    Stdout(BufWriter<Stdout>),
    /// A device or pipe, which cannot be replaced.
    Direct(BufWriter<File>, PathBuf),
    File(Partial),
}

/// A file under a name of its own beside the one that it shall have.
#[derive(Debug)]
pub(super) struct Partial {
    writer: BufWriter<File>,
    temporary: PathBuf,
    path: PathBuf,
}

impl Target {
    /// Opens `path`, or standard output for none.
    pub(super) fn open(path: Option<&Path>) -> Result<Self, CliError> {
        let Some(path) = path else {
            let stdout = io::stdout();
            if stdout.is_terminal() {
                return Err(CliError::usage(
                    "refusing to write pcapng to a terminal: give -o FILE, or pipe it into a program",
                ));
            }
            return Ok(Self::Stdout(BufWriter::new(stdout)));
        };
        let failed = |error| cannot_write(path, &error);
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => {
                let path = path.display();
                return Err(CliError::usage(format!(
                    "cannot write to {path}: it is a directory; name a file in it"
                )));
            }
            Ok(metadata) if !metadata.is_file() => {
                let file = OpenOptions::new().write(true).open(path).map_err(failed)?;
                return Ok(Self::Direct(BufWriter::new(file), path.to_owned()));
            }
            Ok(_) | Err(_) => {}
        }
        // A link stays a link; what it points to is replaced.
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".partial-{}", std::process::id()));
        let temporary = path.with_file_name(name);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&temporary)
            .map_err(|error| cannot_write(&temporary, &error))?;
        Ok(Self::File(Partial {
            writer: BufWriter::new(file),
            temporary,
            path,
        }))
    }

    /// Writes `bytes`.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), CliError> {
        match self {
            Self::Stdout(writer) => Ok(writer.write_all(bytes)?),
            Self::Direct(writer, path) => writer
                .write_all(bytes)
                .map_err(|error| cannot_write(path, &error)),
            Self::File(file) => file
                .writer
                .write_all(bytes)
                .map_err(|error| cannot_write(&file.temporary, &error)),
        }
    }

    /// Makes what was written final.
    pub(super) fn finish(&mut self) -> Result<(), CliError> {
        match self {
            Self::Stdout(writer) => Ok(writer.flush()?),
            Self::Direct(writer, path) => {
                writer.flush().map_err(|error| cannot_write(path, &error))
            }
            Self::File(file) => file
                .finish()
                .map_err(|error| cannot_write(&file.path, &error)),
        }
    }
}

impl Partial {
    fn finish(&mut self) -> io::Result<()> {
        self.writer.flush()?;
        self.writer.get_ref().sync_all()?;
        fs::rename(&self.temporary, &self.path)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // After a rename there is nothing to remove any more.
        let _ = fs::remove_file(&self.temporary);
    }
}

fn cannot_write(path: &Path, error: &io::Error) -> CliError {
    CliError::failed(format!("cannot write {}: {error}", path.display()))
}
