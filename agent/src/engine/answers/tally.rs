//! How many answers there were, and what became of them.

use crate::model::{GatewayAnswer, Proof};

/// Counts of answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::engine) struct Tally {
    /// By status: 500, 502, 503, 504, any other 5xx; made by the gateway itself.
    pub(in crate::engine) made: [u64; 5],
    pub(in crate::engine) passed_on: u64,
    pub(in crate::engine) explained: u64,
    pub(in crate::engine) ambiguous: u64,
    pub(in crate::engine) unexplained: u64,
    pub(in crate::engine) without_status: u64,
    pub(in crate::engine) hidden: u64,
    pub(in crate::engine) dropped: u64,
}

impl Tally {
    /// Counts an answer that is joined to an attempt.
    pub(super) fn count(&mut self, told: &GatewayAnswer, passed_on: bool) {
        let Some(status) = told.status else {
            self.without_status += 1;
            return;
        };
        if passed_on {
            self.passed_on += 1;
            return;
        }
        self.count_made(status);
        if told.is_ambiguous() {
            self.ambiguous += 1;
        } else {
            self.explained += 1;
        }
    }

    /// Counts an answer without an attempt, by how firmly it is explained, if at all.
    pub(in crate::engine) fn count_unattempted(
        &mut self,
        told: &GatewayAnswer,
        proof: Option<Proof>,
    ) {
        let Some(status) = told.status else {
            self.without_status += 1;
            return;
        };
        self.count_made(status);
        match proof {
            Some(_) if told.is_ambiguous() => self.ambiguous += 1,
            Some(Proof::Proven | Proof::Inferred) => self.explained += 1,
            Some(Proof::Underdetermined) => self.ambiguous += 1,
            None => self.unexplained += 1,
        }
    }

    fn count_made(&mut self, status: u16) {
        let place = match status {
            500 => 0,
            502 => 1,
            503 => 2,
            504 => 3,
            _ => 4,
        };
        if let Some(count) = self.made.get_mut(place) {
            *count += 1;
        }
    }
}
