//! The scope inside which a request may share KV.

use tokens::CacheSalt;

/// What a scope depends on. Two requests share KV if and only if all of it is equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ScopeInputs<'a> {
    /// Who asks. One tenant as long as the daemon knows no keys.
    pub(crate) tenant: &'a str,
    /// Model whose KV it is.
    pub(crate) model: &'a str,
    /// What the client put into `cache_salt`.
    pub(crate) cache_salt: Option<&'a str>,
}

/// Tenant of every request as long as the daemon knows no keys.
pub(crate) const DEFAULT_TENANT: &str = "default";

/// Key that makes scopes unpredictable for clients: random, and never the same in two processes.
#[derive(Clone)]
pub(crate) struct ScopeSecret([u8; 32]);

impl ScopeSecret {
    /// From the operating system's randomness.
    pub(crate) fn random() -> Self {
        let mut secret = [0; 32];
        secret[..16].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
        secret[16..].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
        Self(secret)
    }
}

/// Scope of a request: a keyed hash of its inputs, each with its length before it so that no two inputs run together.
pub(crate) fn scope_of(secret: &ScopeSecret, inputs: ScopeInputs<'_>) -> CacheSalt {
    let mut hasher = blake3::Hasher::new_keyed(&secret.0);
    for part in [Some(inputs.tenant), Some(inputs.model), inputs.cache_salt] {
        // An absent salt is not the empty one.
        hasher.update(&part.map_or(u64::MAX, |part| part.len() as u64).to_le_bytes());
        hasher.update(part.unwrap_or_default().as_bytes());
    }
    let bytes = hasher.finalize();
    CacheSalt(u64::from_le_bytes(bytes.as_bytes()[..8].try_into().expect("a hash has 32 bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret() -> ScopeSecret {
        ScopeSecret([7; 32])
    }

    fn inputs<'a>(tenant: &'a str, model: &'a str, cache_salt: Option<&'a str>) -> ScopeInputs<'a> {
        ScopeInputs { tenant, model, cache_salt }
    }

    #[test]
    fn equal_inputs_share_a_scope() {
        assert_eq!(scope_of(&secret(), inputs("t", "m", Some("s"))), scope_of(&secret(), inputs("t", "m", Some("s"))));
    }

    #[test]
    fn any_other_input_is_another_scope() {
        let all = [
            inputs("t", "m", None),
            inputs("t", "m", Some("")),
            inputs("t", "m", Some("s")),
            inputs("tm", "", Some("s")),
            inputs("", "tm", Some("s")),
            inputs("t", "ms", None),
            inputs("u", "m", None),
        ];
        for (i, a) in all.iter().enumerate() {
            for b in &all[..i] {
                assert_ne!(scope_of(&secret(), *a), scope_of(&secret(), *b), "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn another_process_has_other_scopes() {
        let (a, b) = (ScopeSecret::random(), ScopeSecret::random());
        assert_ne!(scope_of(&a, inputs("t", "m", None)), scope_of(&b, inputs("t", "m", None)));
    }
}
