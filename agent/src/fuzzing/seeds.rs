//! The committed seeds of the fuzz targets as ordinary tests.

use std::path::Path;

use proptest::prelude::*;

use super::TARGETS;

#[test]
fn every_seed_keeps_the_rules() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    for (name, target) in TARGETS {
        let mut count = 0;
        for entry in std::fs::read_dir(seeds.join(name)).unwrap() {
            let path = entry.unwrap().path();
            // Says which seed it was, if it panics.
            println!("{}", path.display());
            target(&std::fs::read(&path).unwrap());
            count += 1;
        }
        assert!(count > 0, "{name} has no seeds");
    }
}

proptest! {
    /// Pieces of the seeds in another order, with anything between them.
    #[test]
    fn mixtures_of_seeds_keep_the_rules(
        picks in proptest::collection::vec((any::<usize>(), any::<u16>(), 1_usize..80), 1..12),
        between in proptest::collection::vec(any::<u8>(), 0..4),
    ) {
        for (name, target) in TARGETS {
            if !["engine", "reassembly", "tls", "dns"].contains(name) {
                continue;
            }
            let seeds = all(name);
            let mut mixture = Vec::new();
            for (pick, at, length) in &picks {
                let seed = &seeds[pick % seeds.len()];
                let at = usize::from(*at) % seed.len().max(1);
                mixture.extend(seed.iter().skip(at).take(*length));
                mixture.extend(&between);
            }
            target(&mixture);
        }
    }
}

/// The seeds of a target.
fn all(name: &str) -> Vec<Vec<u8>> {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    let mut paths: Vec<_> = std::fs::read_dir(seeds.join(name))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort_unstable();
    let read = |path| std::fs::read(path).unwrap();
    paths.into_iter().map(read).collect()
}
