//! Versions of the donors of each scope, by which a caller detects that what it found there may be out of date.

use std::collections::HashMap;

use tokens::Scope;

/// Versions by scope; scopes without donors have none.
#[derive(Default)]
pub(crate) struct ScopeVersions {
    by_scope: HashMap<Scope, ScopeVersion>,
    num_changes: u64,
}

/// State of one scope's donors.
#[derive(Clone, Copy, Debug, Default)]
struct ScopeVersion {
    /// Sequence number of the last change among those of all scopes.
    last_change: u64,
    num_donors: usize,
}

impl ScopeVersions {
    /// Records that a scope has `num_more` donors more, or that more of one is found.
    pub(crate) fn note_change(&mut self, scope: Scope, num_more: isize) {
        self.num_changes += 1;
        let version = self.by_scope.entry(scope).or_default();
        version.last_change = self.num_changes;
        version.num_donors = version.num_donors.strict_add_signed(num_more);
        if version.num_donors == 0 {
            self.by_scope.remove(&scope);
        }
    }

    /// Records that all donors are gone.
    pub(crate) fn clear(&mut self) {
        self.by_scope.clear();
    }

    /// Returns a number that changes with every change of `scopes`.
    pub(crate) fn version(&self, scopes: impl Iterator<Item = Scope>) -> u64 {
        let last_change = |scope| self.by_scope.get(&scope).map_or(0, |version| version.last_change);
        scopes.fold(0, |version: u64, scope| version.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(last_change(scope)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Scope = Scope(1);
    const B: Scope = Scope(2);

    #[test]
    fn a_version_changes_with_its_scopes_and_with_no_others() {
        let mut versions = ScopeVersions::default();
        let of = |versions: &ScopeVersions| [&[A][..], &[B], &[A, B]].map(|scopes| versions.version(scopes.iter().copied()));
        let mut seen = vec![of(&versions)];
        for (scope, num_more) in [(A, 1), (A, 0), (B, 1), (A, 1), (A, -1)] {
            let last = *seen.last().unwrap();
            versions.note_change(scope, num_more);
            let now = of(&versions);
            assert_eq!([now[0] != last[0], now[1] != last[1], now[2] != last[2]], [scope == A, scope == B, true]);
            assert!(seen.iter().all(|earlier| earlier[2] != now[2]));
            seen.push(now);
        }
        versions.clear();
        assert_eq!(of(&versions), seen[0], "scopes without donors have no version");
        versions.note_change(A, 1);
        assert!(seen.iter().all(|earlier| earlier[0] != of(&versions)[0]), "no version comes back");
    }
}
