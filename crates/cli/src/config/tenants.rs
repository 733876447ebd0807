//! Accepted API keys, and the secret that keeps tenants' KV apart.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use server::{Access, ApiKey, ScopeSecret, Tenants};

use super::Auto;
use super::file::{parse_toml, read_bytes, read_text};
use super::flag::set;

/// `[tenants]` of the configuration file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct TenantsConfig {
    /// File of accepted keys; by default none is needed, and all clients are one tenant.
    pub(crate) api_keys: Auto<PathBuf>,
    /// File of at least 32 random bytes, from which scopes are derived; by default they are generated at each start.
    pub(crate) secret_file: Auto<PathBuf>,
}

/// Flags of `[tenants]`.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Tenants")]
pub(crate) struct TenantsArgs {
    /// TOML file of accepted API keys, by their SHA-256 [default: no key is needed]
    #[arg(long, env = "KVSHARE_API_KEYS", value_name = "FILE")]
    api_keys: Option<PathBuf>,
    /// File of at least 32 random bytes that keep tenants' KV apart [default: made up at each start]
    #[arg(long, env = "KVSHARE_SECRET_FILE", value_name = "FILE")]
    secret_file: Option<PathBuf>,
}

/// File of keys.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    #[serde(default)]
    key: Vec<KeyEntry>,
}

/// One key in it. The file never contains the key itself.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyEntry {
    tenant: String,
    /// SHA-256 of the key, in hexadecimal. Either this or `env`.
    sha256: Option<String>,
    /// Environment variable that holds the key.
    env: Option<String>,
    #[serde(default)]
    admin: bool,
    quota: Option<f64>,
    #[serde(default)]
    public: Vec<String>,
}

impl Default for TenantsConfig {
    fn default() -> Self {
        Self { api_keys: Auto::Auto, secret_file: Auto::Auto }
    }
}

impl TenantsConfig {
    /// Reads both files.
    ///
    /// # Errors
    /// If a file cannot be read or is invalid, or a variable named in it is not set.
    pub(crate) fn access(&self) -> anyhow::Result<Access> {
        let tenants = self.tenants()?;
        let secret = match self.secret_file.as_ref().value() {
            Some(path) => read_secret(path)?,
            None => ScopeSecret::random(),
        };
        Ok(Access::new(tenants, secret))
    }

    /// Reads the file of keys.
    ///
    /// # Errors
    /// As [`TenantsConfig::access`].
    pub(crate) fn tenants(&self) -> anyhow::Result<Tenants> {
        match self.api_keys.as_ref().value() {
            Some(path) => read_keys(path, |name| std::env::var(name).ok()),
            None => Ok(Tenants::open()),
        }
    }
}

impl TenantsArgs {
    pub(super) fn apply(self, config: &mut TenantsConfig) {
        set(&mut config.api_keys, self.api_keys.map(Auto::Set));
        set(&mut config.secret_file, self.secret_file.map(Auto::Set));
    }
}

impl TenantsConfig {
    /// Repeats [`Self::tenants`] while the daemon runs. A pipe is not read again: waiting for its other end would block later reloads.
    ///
    /// # Errors
    /// As there, and if the file of keys is no plain file.
    pub(crate) fn tenants_again(&self) -> anyhow::Result<Tenants> {
        if let Some(path) = self.api_keys.as_ref().value()
            && path.metadata().is_ok_and(|file| !file.is_file())
        {
            bail!("{} is no plain file", path.display());
        }
        self.tenants()
    }
}

fn read_keys(path: &Path, variable: impl Fn(&str) -> Option<String>) -> anyhow::Result<Tenants> {
    let file: KeyFile = parse_toml(&read_text(path)?, path)?;
    let keys = file.key.into_iter().map(|entry| entry.into_key(&variable)).collect::<anyhow::Result<Vec<_>>>();
    let tenants = keys.and_then(|keys| Ok(Tenants::try_new(keys)?));
    tenants.with_context(|| format!("API keys in {}", path.display()))
}

fn read_secret(path: &Path) -> anyhow::Result<ScopeSecret> {
    ScopeSecret::from_bytes(&read_bytes(path)?).with_context(|| format!("the secret in {}", path.display()))
}

impl KeyEntry {
    fn into_key(self, variable: impl Fn(&str) -> Option<String>) -> anyhow::Result<ApiKey> {
        let Self { tenant, sha256, env, admin, quota, public } = self;
        let sha256 = match (sha256, env) {
            (Some(digest), None) => parse_digest(&digest).with_context(|| format!("the sha256 of a key of tenant `{tenant}`"))?,
            (None, Some(name)) => match variable(&name).filter(|key| !key.is_empty()) {
                Some(key) => ApiKey::digest(&key),
                None => bail!("the variable {name}, which holds a key of tenant `{tenant}`, is not set"),
            },
            _ => bail!("a key of tenant `{tenant}` needs either `sha256` or `env`"),
        };
        Ok(ApiKey { sha256, tenant, is_admin: admin, quota, public })
    }
}

fn parse_digest(hex: &str) -> anyhow::Result<[u8; 32]> {
    let is_hex = hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_hex {
        bail!("64 hexadecimal digits are needed (`kvshare keys new` prints them)");
    }
    let mut digest = [0; 32];
    for (byte, pair) in digest.iter_mut().zip(hex.as_bytes().chunks(2)) {
        let pair = std::str::from_utf8(pair).expect("hexadecimal digits are ASCII");
        *byte = u8::from_str_radix(pair, 16).expect("hexadecimal digits were checked");
    }
    Ok(digest)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn read(text: &str) -> Result<Tenants, String> {
        let mut on_disk = tempfile::NamedTempFile::new().unwrap();
        on_disk.write_all(text.as_bytes()).unwrap();
        let variable = |name: &str| (name == "KEY").then(|| "from the environment".to_owned());
        read_keys(on_disk.path(), variable)
            .map_err(|error| format!("{error:#}").replace(on_disk.path().to_str().unwrap(), "FILE"))
    }

    #[track_caller]
    fn check_refused(text: &str, expected: &str) {
        let message = read(text).err().expect("must be refused");
        assert!(message.contains("FILE") && message.contains(expected), "{message}");
    }

    #[test]
    fn what_is_no_plain_file_is_not_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let config = TenantsConfig { api_keys: Auto::Set(folder.path().to_owned()), ..TenantsConfig::default() };
        assert!(config.tenants_again().err().expect("must be refused").to_string().ends_with("is no plain file"));
    }

    #[test]
    fn keys_are_read_with_what_they_allow() {
        let digest = "0f".repeat(32);
        let text = format!(
            "[[key]]\ntenant = \"a\"\nsha256 = \"{digest}\"\nquota = 0.25\npublic = [\"manuals\"]\n\
             [[key]]\ntenant = \"ops\"\nenv = \"KEY\"\nadmin = true"
        );
        let tenants = read(&text).unwrap();
        assert!(!tenants.is_open());
        assert_eq!(tenants.quota_blocks(8).into_values().collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn entries_that_make_no_sense_are_refused() {
        check_refused("[[key]]\ntenant = \"a\"", "needs either `sha256` or `env`");
        check_refused("[[key]]\ntenant = \"a\"\nsha256 = \"xy\"", "64 hexadecimal digits");
        check_refused(&format!("[[key]]\ntenant = \"a\"\nsha256 = \"{}\"", "é".repeat(32)), "64 hexadecimal digits");
        check_refused("[[key]]\ntenant = \"a\"\nenv = \"OTHER\"", "OTHER");
        check_refused("[[key]]\ntenant = \"a\"\nkey = \"secret\"", "FILE:3: unknown field `key`");
        check_refused("", "there are no keys");
    }

    #[test]
    fn a_secret_has_enough_bytes() {
        let with = |len: usize| {
            let mut on_disk = tempfile::NamedTempFile::new().unwrap();
            on_disk.write_all(&vec![1; len]).unwrap();
            read_secret(on_disk.path()).map(drop)
        };
        with(32).unwrap();
        assert!(format!("{:#}", with(31).unwrap_err()).contains("at least 32 bytes"));
    }
}
