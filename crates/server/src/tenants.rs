//! API keys, their tenants, and the corpora that each may read.
//!
//! Only the SHA-256 of a key is stored. The tenant is determined by the key and by nothing else in a request.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use tokens::TenantId;

/// An accepted key with its permissions.
#[derive(Clone, PartialEq)]
pub struct ApiKey {
    /// SHA-256 of the key.
    pub sha256: [u8; 32],
    /// Tenant of the key. Several keys may belong to one tenant.
    pub tenant: String,
    /// True if it may list and erase the KV of other tenants, and register public corpora.
    pub is_admin: bool,
    /// Share of the KV pool that the tenant may hold, above 0 and at most 1.
    pub quota: Option<f64>,
    /// Public corpora that the tenant may read.
    pub public: Vec<String>,
}

/// Reason why a list of keys is refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TenantsError {
    /// A name is not usable in lists and paths.
    #[error("`{0}` is no name: 1 to 64 letters, digits, `-`, `_` or `.`")]
    Name(String),
    /// A quota is out of range.
    #[error("the quota of tenant `{tenant}` must be above 0 and at most 1, is {quota}")]
    Quota {
        /// Name of the tenant.
        tenant: String,
        /// Quota as given.
        quota: f64,
    },
    /// Two keys of one tenant have different quotas.
    #[error("the keys of tenant `{tenant}` give different quotas")]
    Quotas {
        /// Name of the tenant.
        tenant: String,
    },
    /// Two entries have the same key, so its permissions would be ambiguous.
    #[error("a key of tenant `{tenant}` is listed twice")]
    Twice {
        /// Tenant of the second entry.
        tenant: String,
    },
    /// A list without keys would refuse every request.
    #[error("there are no keys")]
    Empty,
}

/// All tenants. Without keys there is one, to which every request belongs.
pub struct Tenants {
    keys: Vec<ApiKey>,
    /// Names by id.
    names: Vec<String>,
    /// Quotas by id.
    quotas: Vec<Option<f64>>,
    /// Quotas by id that the engine was started with.
    engine_quotas: Vec<Option<f64>>,
}

/// Sender of a request, with the permissions of its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) tenant: TenantId,
    pub(crate) name: String,
    pub(crate) is_admin: bool,
    pub(crate) reads: PublicReads,
}

/// Public corpora that a caller may read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PublicReads {
    /// All corpora, because there is only one tenant.
    All,
    /// These corpora.
    Named(BTreeSet<String>),
}

/// Reason why a key is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyError {
    Missing,
    Unknown,
}

impl KeyError {
    pub(crate) const LABELS: [&'static str; 2] = ["missing_key", "unknown_key"];
}

/// Tenant of every request while there are no keys.
const DEFAULT_TENANT: &str = "default";
/// Owner of public corpora: no key belongs to it.
pub(crate) const PUBLIC: TenantId = TenantId(u32::MAX);
/// Maximum bytes of a name. Chosen.
const MAX_NAME_BYTES: usize = 64;

/// True if `name` can name a tenant or a corpus, so that it fits in a path and in a table.
pub(crate) fn is_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(is_plain) && !name.bytes().all(|byte| byte == b'.')
}

impl ApiKey {
    /// Generates a key with 244 bits of the operating system's randomness.
    #[must_use]
    pub fn generate() -> String {
        format!("kvs-{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple())
    }

    /// Returns the stored digest of `key`.
    #[must_use]
    pub fn digest(key: &str) -> [u8; 32] {
        Sha256::digest(key).into()
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tenant, is_admin, quota, public, .. } = self;
        write!(f, "ApiKey {{ tenant: {tenant:?}, is_admin: {is_admin}, quota: {quota:?}, public: {public:?} }}")
    }
}

impl Tenants {
    /// Creates tenants without keys: every request belongs to one tenant with all permissions.
    #[must_use]
    pub fn open() -> Self {
        Self { keys: Vec::new(), names: vec![DEFAULT_TENANT.to_owned()], quotas: vec![None], engine_quotas: vec![None] }
    }

    /// Builds the tenants of `keys`, numbered in order of occurrence.
    ///
    /// # Errors
    /// If there are no keys, a name or quota is invalid, or two entries contradict each other.
    pub fn try_new(keys: Vec<ApiKey>) -> Result<Self, TenantsError> {
        let (mut names, mut quotas): (Vec<String>, Vec<Option<f64>>) = Default::default();
        for (index, key) in keys.iter().enumerate() {
            let tenant = key.tenant.clone();
            check_key(key)?;
            if keys[..index].iter().any(|earlier| earlier.sha256 == key.sha256) {
                return Err(TenantsError::Twice { tenant });
            }
            match names.iter().position(|name| *name == tenant) {
                None => {
                    names.push(tenant);
                    quotas.push(key.quota);
                }
                Some(known) if quotas[known].is_some() && key.quota.is_some() && quotas[known] != key.quota => {
                    return Err(TenantsError::Quotas { tenant });
                }
                Some(known) => quotas[known] = quotas[known].or(key.quota),
            }
        }
        if keys.is_empty() { Err(TenantsError::Empty) } else { Ok(Self { keys, names, engine_quotas: quotas.clone(), quotas }) }
    }

    /// Combines the keys of `next` with the tenant ids of `self`: KV is stored by id. A tenant without keys keeps its id.
    pub(crate) fn with_keys_of(&self, next: Self) -> Self {
        let mut names = self.names.clone();
        names.extend(next.names.iter().filter(|name| !self.names.contains(name)).cloned());
        let quota_of = |name: &String| next.names.iter().position(|known| known == name).and_then(|index| next.quotas[index]);
        let quotas = names.iter().map(quota_of).collect();
        Self { keys: next.keys, names, quotas, engine_quotas: self.engine_quotas.clone() }
    }

    pub(crate) fn num_keys(&self) -> usize {
        self.keys.len()
    }

    /// Returns the names of tenants whose quota differs from the engine's.
    pub(crate) fn other_quotas(&self) -> Vec<String> {
        let differs = |index: usize| self.quotas[index] != self.engine_quotas.get(index).copied().flatten();
        (0..self.names.len()).filter(|&index| differs(index)).map(|index| self.names[index].clone()).collect()
    }

    /// True if requests need no key.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.keys.is_empty()
    }

    /// Returns the blocks that each tenant with a quota may hold, of a pool of `num_blocks`; at least one.
    #[must_use]
    pub fn quota_blocks(&self, num_blocks: usize) -> BTreeMap<TenantId, usize> {
        let blocks = |quota: f64| ((quota * num_blocks as f64) as usize).max(1);
        (0..).map(TenantId).zip(&self.quotas).filter_map(|(id, quota)| Some((id, blocks((*quota)?)))).collect()
    }

    /// Returns the name of a tenant; `None` for the owner of public corpora.
    pub(crate) fn name(&self, id: TenantId) -> Option<&str> {
        self.names.get(id.0 as usize).map(String::as_str)
    }

    /// Returns the name of the only tenant, if there is only one.
    pub(crate) fn only(&self) -> Option<&str> {
        match &self.names[..] {
            [only] => Some(only),
            _ => None,
        }
    }

    /// Returns the tenant of this name.
    pub(crate) fn find(&self, name: &str) -> Option<TenantId> {
        (0..).map(TenantId).zip(&self.names).find(|(_, known)| *known == name).map(|(id, _)| id)
    }

    /// Returns the caller of `key`. Every key is compared, each in constant time, so that the duration reveals nothing about any.
    pub(crate) fn authenticate(&self, key: Option<&str>) -> Result<Caller, KeyError> {
        if self.is_open() {
            let name = DEFAULT_TENANT.to_owned();
            return Ok(Caller { tenant: TenantId::default(), name, is_admin: true, reads: PublicReads::All });
        }
        let digest = ApiKey::digest(key.ok_or(KeyError::Missing)?);
        let (mut found, mut index) = (Choice::from(0), 0u32);
        for (candidate, known) in (0u32..).zip(&self.keys) {
            let is_equal = known.sha256.ct_eq(&digest);
            index.conditional_assign(&candidate, is_equal);
            found |= is_equal;
        }
        if bool::from(found) { Ok(self.caller(&self.keys[index as usize])) } else { Err(KeyError::Unknown) }
    }

    fn caller(&self, key: &ApiKey) -> Caller {
        Caller {
            tenant: self.find(&key.tenant).expect("every key's tenant has a name"),
            name: key.tenant.clone(),
            is_admin: key.is_admin,
            reads: PublicReads::Named(key.public.iter().cloned().collect()),
        }
    }
}

fn check_key(key: &ApiKey) -> Result<(), TenantsError> {
    if let Some(name) = std::iter::once(&key.tenant).chain(&key.public).find(|name| !is_name(name)) {
        return Err(TenantsError::Name(name.clone()));
    }
    match key.quota {
        Some(quota) if !(quota > 0.0 && quota <= 1.0) => Err(TenantsError::Quota { tenant: key.tenant.clone(), quota }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(secret: &str, tenant: &str) -> ApiKey {
        ApiKey { sha256: ApiKey::digest(secret), tenant: tenant.to_owned(), is_admin: false, quota: None, public: vec![] }
    }

    fn two() -> Tenants {
        Tenants::try_new(vec![key("k1", "a"), ApiKey { is_admin: true, ..key("k2", "b") }, key("k3", "a")]).unwrap()
    }

    #[track_caller]
    fn check(secret: Option<&str>, expected: Result<(u32, &str, bool), KeyError>) {
        let found = two().authenticate(secret);
        assert_eq!(
            found.as_ref().map(|caller| (caller.tenant.0, caller.name.as_str(), caller.is_admin)),
            expected.as_ref().map(|e| *e)
        );
    }

    #[test]
    fn a_key_names_its_tenant() {
        check(Some("k1"), Ok((0, "a", false)));
        check(Some("k2"), Ok((1, "b", true)));
        check(Some("k3"), Ok((0, "a", false)));
    }

    #[test]
    fn other_keys_and_none_are_told_apart() {
        check(Some("k"), Err(KeyError::Unknown));
        check(Some(""), Err(KeyError::Unknown));
        check(None, Err(KeyError::Missing));
    }

    #[test]
    fn without_keys_everybody_is_one_tenant() {
        let caller = Tenants::open().authenticate(Some("anything")).unwrap();
        assert_eq!((caller.tenant, caller.is_admin, caller.reads), (TenantId(0), true, PublicReads::All));
    }

    #[test]
    fn keys_that_contradict_each_other_are_refused() {
        let check = |keys: Vec<ApiKey>, expected: &str| {
            assert_eq!(Tenants::try_new(keys).err().map(|error| error.to_string()).as_deref(), Some(expected));
        };
        let quota = |secret, quota| ApiKey { quota: Some(quota), ..key(secret, "a") };
        check(vec![], "there are no keys");
        check(vec![key("k", "a/b")], "`a/b` is no name: 1 to 64 letters, digits, `-`, `_` or `.`");
        check(vec![key("k", "..")], "`..` is no name: 1 to 64 letters, digits, `-`, `_` or `.`");
        check(vec![key("k", "a"), key("k", "b")], "a key of tenant `b` is listed twice");
        check(vec![quota("k", 0.0)], "the quota of tenant `a` must be above 0 and at most 1, is 0");
        check(vec![quota("k", f64::NAN)], "the quota of tenant `a` must be above 0 and at most 1, is NaN");
        check(vec![quota("k", 0.5), quota("l", 0.25)], "the keys of tenant `a` give different quotas");
    }

    #[test]
    fn tenants_keep_their_numbers_when_keys_are_read_again() {
        let quota = |secret, tenant, quota| ApiKey { quota, ..key(secret, tenant) };
        let next = Tenants::try_new(vec![quota("k9", "c", Some(0.5)), key("k2", "b")]).unwrap();
        let next = two().with_keys_of(next);
        let id = |secret| next.authenticate(Some(secret)).map(|caller| (caller.tenant.0, caller.name));
        assert_eq!(id("k9"), Ok((2, "c".to_owned())));
        assert_eq!(id("k2"), Ok((1, "b".to_owned())));
        assert_eq!(id("k1"), Err(KeyError::Unknown));
        assert_eq!((next.name(TenantId(0)), next.num_keys(), next.other_quotas()), (Some("a"), 2, vec!["c".to_owned()]));
        let again = next.with_keys_of(two());
        assert_eq!(again.authenticate(Some("k1")).unwrap().tenant, TenantId(0));
        assert!(again.other_quotas().is_empty());
    }

    #[test]
    fn a_quota_is_a_share_of_the_pool() {
        let tenants = Tenants::try_new(vec![key("k", "a"), ApiKey { quota: Some(0.25), ..key("l", "b") }]).unwrap();
        assert_eq!(tenants.quota_blocks(100), BTreeMap::from([(TenantId(1), 25)]));
        assert_eq!(tenants.quota_blocks(1), BTreeMap::from([(TenantId(1), 1)]));
    }

    #[test]
    fn digests_are_not_printed() {
        let shown = format!("{:?}", ApiKey { sha256: [0xab; 32], ..key("k", "a") });
        assert!(shown.contains("\"a\"") && !shown.contains("171") && !shown.contains("ab"), "{shown}");
    }
}
