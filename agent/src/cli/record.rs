//! The flags of `hopscope run` that say what is recorded, and where.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tracing::{info, warn};

use super::clock;
use super::error::CliError;
use super::size::ByteSize;
use crate::record::{
    RecordLimits, Recorder, RedactConfig, Redactor, Sampler, SamplerConfig, Store, StoreError,
    StoreLimits,
};

/// Where captures are kept unless told otherwise.
const DIR: &str = "/var/lib/hopscope/captures";

/// The smallest store that is any use: a few captures in each of its files.
const MIN_BYTES: u32 = 1 << 20;

/// What of healthy exchanges is kept, and of failed ones.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct RecordFlags {
    /// Keep no captures.
    #[arg(long)]
    pub(super) no_captures: bool,

    /// Directory for captures [default: /var/lib/hopscope/captures].
    #[arg(long, value_name = "DIR", conflicts_with = "no_captures")]
    pub(super) capture_dir: Option<PathBuf>,

    /// Bytes that all captures take at most [default: 256M].
    #[arg(long, value_name = "BYTES")]
    pub(super) capture_bytes: Option<ByteSize>,

    /// How long a capture is kept at most, such as 12h [default: 24h].
    #[arg(long, value_name = "AGE")]
    pub(super) capture_age: Option<Age>,

    /// Keep one in so many healthy exchanges of each upstream to compare with, 0 for none
    /// [default: 1000].
    #[arg(long, value_name = "N")]
    pub(super) sample: Option<u32>,

    /// Name of a further header whose values are masked in captures and events; repeat for more.
    #[arg(long = "redact-header", value_name = "NAME")]
    pub(super) redact_headers: Vec<String>,

    /// Keep query strings in captures.
    #[arg(long)]
    pub(super) keep_query: bool,
}

/// A duration as people write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Age(Duration);

impl FromStr for Age {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match humantime::parse_duration(text) {
            Ok(age) if age >= Duration::from_mins(1) => Ok(Self(age)),
            Ok(_) => Err(format!("bad age `{text}`: give at least one minute")),
            Err(_) => Err(format!("bad age `{text}`: give one such as 12h or 7days")),
        }
    }
}

impl<'de> Deserialize<'de> for Age {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl RecordFlags {
    /// What the command line says, and the file where that says nothing.
    pub(super) fn or(self, file: Self) -> Self {
        let off = self.no_captures || (file.no_captures && self.capture_dir.is_none());
        Self {
            no_captures: off,
            capture_dir: self.capture_dir.or(file.capture_dir),
            capture_bytes: self.capture_bytes.or(file.capture_bytes),
            capture_age: self.capture_age.or(file.capture_age),
            sample: self.sample.or(file.sample),
            redact_headers: [self.redact_headers, file.redact_headers].concat(),
            keep_query: self.keep_query || file.keep_query,
        }
    }

    /// Checks what can be checked before anything is opened.
    pub(super) fn checked(self) -> Result<Self, CliError> {
        if let Some(ByteSize(bytes)) = self.capture_bytes
            && bytes < MIN_BYTES
        {
            return Err(CliError::usage(format!(
                "capture_bytes {bytes} is too small: at least {MIN_BYTES} bytes"
            )));
        }
        for name in &self.redact_headers {
            let token =
                |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
            if name.is_empty() || name.len() > 64 || !name.bytes().all(token) {
                return Err(CliError::usage(format!(
                    "bad header name `{name}`: give a field name of at most 64 bytes, such as X-Api-Key"
                )));
            }
        }
        Ok(self)
    }

    /// Opens the store. Where nobody asked for the default place and it cannot be had, the agent does
    /// without.
    pub(super) fn open(self, node: &Arc<str>) -> Result<Recording, CliError> {
        let headers: BTreeSet<_> = self.redact_headers.into_iter().collect();
        let redactor = Redactor::new(RedactConfig {
            headers,
            keep_query: self.keep_query,
            ..RedactConfig::default()
        });
        let defaults = StoreLimits::default();
        let limits = StoreLimits {
            bytes: self
                .capture_bytes
                .map_or(defaults.bytes, |ByteSize(bytes)| u64::from(bytes)),
            age: self.capture_age.map_or(defaults.age, |Age(age)| age),
            ..defaults
        };
        let store = match (&self.capture_dir, self.no_captures) {
            (_, true) => None,
            (Some(dir), _) => {
                Some(Store::open(dir, limits, clock::now()).map_err(CliError::failed)?)
            }
            (None, _) => Store::open(DIR.as_ref(), limits, clock::now())
                .map_err(|error: StoreError| warn!("no captures are kept: {error}"))
                .ok(),
        };
        let Some(store) = store.map(Arc::new) else {
            return Ok(Recording {
                recorder: Recorder::without_store(redactor),
                captures: None,
            });
        };
        info!(dir = %store.dir().display(), "keeping captures");
        if let Some(mode) = store.open_to_others() {
            let dir = store.dir().display();
            warn!(
                "{dir} is open to other users (mode {mode:04o}), who see when captures are made, or may \
                 delete them; the files themselves are private: `chmod 700 {dir}` closes it"
            );
        }
        let mut sampling = SamplerConfig::default();
        sampling.one_in = self.sample.unwrap_or(sampling.one_in);
        let sampler = Arc::new(Sampler::new(sampling));
        let recorder = Recorder::new(
            redactor,
            RecordLimits::default(),
            Arc::clone(&store),
            Arc::clone(&sampler),
            Arc::clone(node),
        );
        Ok(Recording {
            recorder,
            captures: Some((store, sampler)),
        })
    }
}

/// The recorder for the watching thread, and what of it the services share.
#[derive(Debug)]
pub(super) struct Recording {
    pub(super) recorder: Recorder,
    pub(super) captures: Option<(Arc<Store>, Arc<Sampler>)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_read() {
        assert_eq!("24h".parse(), Ok(Age(Duration::from_hours(24))));
        for bad in ["", "soon", "59s"] {
            let error = bad.parse::<Age>().unwrap_err();
            assert!(error.starts_with(&format!("bad age `{bad}`")), "{error}");
        }
    }

    #[test]
    fn a_directory_on_the_command_line_wins_over_none_in_the_file() {
        let file = RecordFlags {
            no_captures: true,
            redact_headers: vec!["X-One".to_owned()],
            ..RecordFlags::default()
        };
        let flags = RecordFlags {
            capture_dir: Some(PathBuf::from("here")),
            redact_headers: vec!["X-Two".to_owned()],
            ..RecordFlags::default()
        };
        let merged = flags.or(file.clone());
        assert!(!merged.no_captures);
        assert_eq!(merged.redact_headers, ["X-Two", "X-One"]);
        assert!(RecordFlags::default().or(file).no_captures);
    }

    #[test]
    fn senseless_values_are_refused() {
        let small = RecordFlags {
            capture_bytes: Some(ByteSize(4096)),
            ..RecordFlags::default()
        };
        assert!(small.checked().is_err());
        let name = RecordFlags {
            redact_headers: vec!["X Api".to_owned()],
            ..RecordFlags::default()
        };
        assert!(name.checked().is_err());
    }
}
