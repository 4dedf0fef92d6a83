//! The committed seeds of the fuzz targets as ordinary tests.

use std::path::Path;

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
