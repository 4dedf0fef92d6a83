//! When a resolution has failed, and with which others it is one.

use super::facts::{Lookup, Resolution, State};
use super::{AT_ONCE, LONGEST, Lookups};
use crate::model::Timestamp;

/// A program gives a query up after this long at the least; a file that ends sooner leaves it open.
const LEAST_PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

/// Queries kept of the names that search domains make of one.
const MAX_EXPANSIONS: usize = 64;

/// What another resolution of the same asker is to one that failed.
enum Relation {
    /// The name without a search domain that this one has.
    Bare,
    /// The name with a search domain that this one lacks.
    Expansion,
    /// Another search domain behind the same begin, perhaps.
    Sibling,
    /// The same name once more.
    Same,
}

impl Lookups {
    /// Decides on a resolution whose time has come. `None` where it gave addresses, belongs to another, or
    /// has to wait for one.
    pub(super) fn judge(&mut self, number: u64, now: Timestamp, ends: bool) -> Option<Resolution> {
        let lookup = self.open.get(&number)?;
        let state = lookup.state();
        let too_short = ends
            && state == State::Waiting
            && lookup.given_up.is_none()
            && now.since(lookup.began) < LEAST_PATIENCE;
        if state == State::Resolved || lookup.used || too_short {
            self.remove(number);
            return None;
        }
        let began = lookup.began;
        let mut bare = None;
        // How far the names that were tried one behind the other reach.
        let mut reach = lookup.ended;
        let mut expansions = Vec::new();
        for (other, relation) in self.related(number, lookup) {
            let Some(related) = self.open.get(&other) else {
                continue;
            };
            let follows = related.began >= lookup.ended && related.began.since(reach) <= AT_ONCE;
            let chained = match relation {
                Relation::Bare | Relation::Expansion => true,
                Relation::Sibling => follows,
                Relation::Same => {
                    follows
                        && related
                            .asked
                            .iter()
                            .all(|asked| !lookup.asked_from(asked.local))
                }
            };
            if !chained {
                continue;
            }
            if follows {
                reach = reach.max(related.ended);
            }
            let state = related.state();
            if state == State::Resolved || related.used {
                self.remove(number);
                return None;
            }
            // Behind one that failed, the next search domain may follow. The bare name says itself what
            // became of it.
            let failed = state == State::Failed && !matches!(relation, Relation::Bare);
            let open = (failed || state == State::Waiting) && related.due > now;
            if open && !ends && now.since(began) < 2 * LONGEST {
                let until = related.due;
                self.postpone(number, other, until);
                return None;
            }
            match relation {
                Relation::Bare => bare = Some(other),
                Relation::Expansion => expansions.push(other),
                Relation::Sibling | Relation::Same => {}
            }
        }
        let mut lookup = self.remove(number)?;
        if let Some(bare) = bare.and_then(|bare| self.open.get_mut(&bare)) {
            bare.expansions.append(&mut lookup.asked);
            bare.expansions.append(&mut lookup.expansions);
            bare.expansions.truncate(MAX_EXPANSIONS);
            return None;
        }
        for expansion in expansions {
            if let Some(mut expansion) = self.remove(expansion) {
                lookup.ended = lookup.ended.max(expansion.ended);
                lookup.expansions.append(&mut expansion.asked);
                lookup.expansions.append(&mut expansion.expansions);
                lookup.expansions.truncate(MAX_EXPANSIONS);
            }
        }
        Some(lookup.into_resolution(now))
    }

    /// The other resolutions that the one of this number may be one with.
    fn related(&self, number: u64, lookup: &Lookup) -> Vec<(u64, Relation)> {
        let key = (lookup.asker, lookup.name.first_label().into());
        let others = self.alike.get(&key).into_iter().flatten();
        others
            .filter(|other| **other != number)
            .filter_map(|other| {
                let name = &self.open.get(other)?.name;
                let relation = if lookup.name.extends(name) {
                    Relation::Bare
                } else if name.extends(&lookup.name) {
                    Relation::Expansion
                } else if *name == lookup.name {
                    Relation::Same
                } else {
                    Relation::Sibling
                };
                Some((*other, relation))
            })
            .collect()
    }

    /// Has a resolution looked at again when another is decided, `until` as things stand.
    fn postpone(&mut self, number: u64, other: u64, until: Timestamp) {
        if let Some(lookup) = self.open.get_mut(&number) {
            lookup.waits_for = Some(other);
        }
        self.arm_one(number, Some(until));
    }
}

impl Lookup {
    fn into_resolution(self, decided: Timestamp) -> Resolution {
        let local = self.asked.first().map_or_else(
            || core::net::SocketAddr::from(([0, 0, 0, 0], 0)),
            |asked| asked.local,
        );
        Resolution {
            name: self.name,
            process: self.process,
            on_behalf: self.on_behalf,
            local,
            lost_before: self.lost_before,
            began: self.began,
            ended: self.ended,
            decided,
            asked: self.asked,
            expansions: self.expansions,
        }
    }
}
