//! The scope within which a request may share KV, and the ids by which KV can be erased.

use tokens::{Scope, SessionId};

/// Key that makes scopes unpredictable for clients.
#[derive(Clone)]
pub struct ScopeSecret([u8; 32]);

/// Inputs of a scope. Two requests share KV if and only if all of them are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ScopeInputs<'a> {
    /// Owner of the KV.
    pub(crate) owner: Owner<'a>,
    /// Model of the KV, and the version of the daemon that computes it.
    pub(crate) epoch: &'a str,
    /// `cache_salt` of the client.
    pub(crate) cache_salt: Option<&'a str>,
}

/// Owner of the KV in a scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner<'a> {
    /// A tenant, by its name.
    Tenant(&'a str),
    /// A public corpus, by its name.
    Corpus(&'a str),
}

/// Minimum bytes of a secret: those of the hash's key.
const MIN_SECRET_BYTES: usize = 32;

/// Error of a secret short enough to be guessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a secret has at least {MIN_SECRET_BYTES} bytes, this one has {len}")]
pub struct ShortSecret {
    /// Bytes given.
    pub len: usize,
}

impl ScopeSecret {
    /// Creates a secret from the operating system's randomness: never the same in two processes.
    #[must_use]
    pub fn random() -> Self {
        let mut secret = [0; 32];
        secret[..16].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
        secret[16..].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
        Self(secret)
    }

    /// Creates a secret from bytes that several processes share.
    ///
    /// # Errors
    /// If there are too few bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ShortSecret> {
        match bytes.len() < MIN_SECRET_BYTES {
            true => Err(ShortSecret { len: bytes.len() }),
            false => Ok(Self(blake3::derive_key("kvshare 2026 scopes of shared KV", bytes))),
        }
    }
}

/// Returns the scope of a request: a keyed hash of its inputs.
pub(crate) fn scope_of(secret: &ScopeSecret, inputs: ScopeInputs<'_>) -> Scope {
    let (kind, name) = match inputs.owner {
        Owner::Tenant(name) => ("tenant", name),
        Owner::Corpus(name) => ("corpus", name),
    };
    Scope(keyed_hash(secret, &[Some(kind), Some(name), Some(inputs.epoch), inputs.cache_salt]))
}

/// Returns the id of a tenant's session. Sessions of the same name of two tenants differ.
pub(crate) fn session_of(secret: &ScopeSecret, tenant: &str, session: &str) -> SessionId {
    SessionId(keyed_hash(secret, &[Some("session"), Some(tenant), Some(session)]))
}

/// Returns the id of a corpus as a session of the owner of all corpora.
pub(crate) fn corpus_session(secret: &ScopeSecret, corpus: &str) -> SessionId {
    SessionId(keyed_hash(secret, &[Some("corpus session"), Some(corpus)]))
}

/// Hashes each part preceded by its length, so that no two lists collide by concatenation.
fn keyed_hash(secret: &ScopeSecret, parts: &[Option<&str>]) -> u64 {
    let mut hasher = blake3::Hasher::new_keyed(&secret.0);
    for part in parts {
        // An absent part differs from an empty one.
        hasher.update(&part.map_or(u64::MAX, |part| part.len() as u64).to_le_bytes());
        hasher.update(part.unwrap_or_default().as_bytes());
    }
    let bytes = hasher.finalize();
    u64::from_le_bytes(bytes.as_bytes()[..8].try_into().expect("a hash has 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret() -> ScopeSecret {
        ScopeSecret([7; 32])
    }

    fn inputs<'a>(tenant: &'a str, epoch: &'a str, cache_salt: Option<&'a str>) -> ScopeInputs<'a> {
        ScopeInputs { owner: Owner::Tenant(tenant), epoch, cache_salt }
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
            ScopeInputs { owner: Owner::Corpus("t"), ..inputs("t", "m", None) },
        ];
        for (i, a) in all.iter().enumerate() {
            for b in &all[..i] {
                assert_ne!(scope_of(&secret(), *a), scope_of(&secret(), *b), "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn another_process_has_other_scopes_unless_it_knows_the_secret() {
        let scope = |secret: &ScopeSecret| scope_of(secret, inputs("t", "m", None));
        assert_ne!(scope(&ScopeSecret::random()), scope(&ScopeSecret::random()));
        let known = || ScopeSecret::from_bytes(&[3; 40]).unwrap();
        assert_eq!(scope(&known()), scope(&known()));
        assert_ne!(scope(&known()), scope(&ScopeSecret::from_bytes(&[3; 41]).unwrap()));
    }

    #[test]
    fn a_short_secret_is_refused() {
        assert_eq!(ScopeSecret::from_bytes(&[3; 31]).err(), Some(ShortSecret { len: 31 }));
    }

    #[test]
    fn a_session_is_its_tenants() {
        let session = |tenant: &str, name: &str| session_of(&secret(), tenant, name);
        assert_eq!(session("a", "s"), session("a", "s"));
        assert_ne!(session("a", "s"), session("b", "s"));
        assert_ne!(session("a", "s"), session("a", "t"));
    }
}
