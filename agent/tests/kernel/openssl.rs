//! Builds of OpenSSL that lie where only their process sees them: in a mount namespace of its own, as in a
//! container.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::library::Bed;
use crate::plaintext::{start, two_requests};

/// Names directories with other builds, separated by colons: those of 3.3 and newer have `SSL_write_ex2`, and
/// some are linked with musl.
const OTHERS: &str = "HOPSCOPE_OPENSSL";

/// Mounts something on its first argument, puts there what the others up to `--` name, and becomes what
/// follows.
const CONTAINER: &str = r#"mount -t tmpfs none "$0" && export LD_LIBRARY_PATH="$0" &&
while [ "$1" != -- ]; do cp "$1" "$0" || exit 1; shift; done; shift; exec "$@""#;

/// The two libraries.
struct Build {
    ssl: PathBuf,
    crypto: PathBuf,
}

impl Build {
    /// Those of a directory.
    fn of(directory: &Path) -> Self {
        let find = |start: &str| {
            let begins = |path: &PathBuf| {
                let name = path.file_name().and_then(OsStr::to_str);
                name.is_some_and(|name| name.starts_with(start) && name.contains(".so."))
            };
            let files = fs::read_dir(directory).unwrap();
            let mut files = files.map(|file| file.unwrap().path()).filter(begins);
            files
                .next()
                .unwrap_or_else(|| panic!("no {start} in {}", directory.display()))
        };
        Self {
            ssl: find("libssl"),
            crypto: find("libcrypto"),
        }
    }

    /// Those that the host's compiler links with.
    fn of_host() -> Self {
        let asked = Command::new("cc")
            .arg("-print-file-name=libssl.so")
            .output()
            .unwrap();
        let path = String::from_utf8(asked.stdout).unwrap();
        let ssl = fs::canonicalize(path.trim()).unwrap();
        Self::of(ssl.parent().unwrap())
    }

    /// Whether the file of `libssl` holds these words: the name of a function, or of the C library that it
    /// was linked with.
    fn holds(&self, words: &str) -> bool {
        let bytes = fs::read(&self.ssl).unwrap();
        memchr::memmem::find(&bytes, words.as_bytes()).is_some()
    }

    /// Compiles the client against it, and has that make its requests with these functions.
    fn play(&self, functions: &str) {
        let mut bed = Bed::new();
        for _ in 0..2 {
            bed.serve("good", "TLSv1.3", &[]);
        }
        let ports = [bed.upstreams[0].port, bed.upstreams[1].port];
        let name = format!("mn{}{functions}", ports[0]);
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kernel/client.c");
        let musl = self.holds("libc.musl");
        let mut compiler = Command::new(if musl { "musl-gcc" } else { "cc" });
        compiler.args(["-w", "-o"]).arg(bed.path(&name)).arg(source);
        if musl {
            // OpenSSL's headers are the same for every C library.
            for headers in ["/usr/include", "/usr/include/x86_64-linux-gnu"] {
                compiler.args(["-idirafter", headers]);
            }
        }
        compiler.args([&self.ssl, &self.crypto]);
        compiler.arg("-Wl,--allow-shlib-undefined");
        assert!(compiler.status().unwrap().success(), "{compiler:?}");

        let own = bed.path("own");
        fs::create_dir(&own).unwrap();
        let mut container = Command::new("unshare");
        container
            .args(["--mount", "--propagation", "private", "sh", "-c", CONTAINER])
            .arg(&own)
            .args([&self.ssl, &self.crypto])
            .arg("--")
            .arg(bed.path(&name));
        let program = start(container, functions, ports);
        let libraries = ["own/libssl", "own/libcrypto"];
        let sends_files = self.holds("SSL_sendfile");
        two_requests(&name, program, ports, &libraries, sends_files);
        let outside: Vec<_> = fs::read_dir(&own).unwrap().collect();
        assert!(outside.is_empty(), "{outside:?}");
    }
}

#[test]
fn a_library_in_another_mount_namespace_is_heard() {
    let build = Build::of_host();
    for functions in ["plain", "ex"] {
        build.play(functions);
    }
}

#[test]
fn other_builds_of_openssl_are_heard() {
    let Some(others) = std::env::var_os(OTHERS) else {
        eprintln!("{OTHERS} names no other build of OpenSSL: not tested");
        return;
    };
    for directory in std::env::split_paths(&others) {
        let build = Build::of(&directory);
        for functions in ["plain", "ex", "ex2"] {
            if functions != "ex2" || build.holds("SSL_write_ex2") {
                build.play(functions);
            }
        }
    }
}
