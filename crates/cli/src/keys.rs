//! API keys: generated here and kept by their users; the daemon knows their SHA-256 only.

use std::fmt::Write;

use clap::Subcommand;
use server::ApiKey;

use crate::stdout;

/// Subcommands of `kvshare keys`.
#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// Make up a key, and the lines that have it accepted
    New {
        /// Tenant the key belongs to
        #[arg(long, default_value = "default")]
        tenant: String,
        /// Grant administration: listing and erasing all tenants' KV, and registering public corpora
        #[arg(long)]
        admin: bool,
    },
}

/// Prints a new key.
///
/// # Errors
/// If standard output is closed.
pub(crate) fn run(command: KeysCommand) -> anyhow::Result<()> {
    let KeysCommand::New { tenant, admin } = command;
    let key = ApiKey::generate();
    stdout::write(entry(&key, &tenant, admin))
}

/// Formats a file of `--api-keys` with this one key, which is shown in a comment.
fn entry(key: &str, tenant: &str, is_admin: bool) -> String {
    let digest = ApiKey::digest(key).iter().fold(String::new(), |mut hex, byte| {
        let _infallible = write!(hex, "{byte:02x}");
        hex
    });
    let tenant = toml::Value::String(tenant.to_owned());
    format!("# The key, shown only now: {key}\n[[key]]\ntenant = {tenant}\nsha256 = \"{digest}\"\nadmin = {is_admin}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_printed_lines_have_the_key_accepted() {
        let text = entry("abc", "a\"b", true);
        let file: toml::Table = text.parse().unwrap();
        let key = &file["key"][0];
        assert_eq!(key["tenant"].as_str(), Some("a\"b"));
        // SHA-256 of `abc`: FIPS 180-2, appendix B.1.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!((key["sha256"].as_str(), key["admin"].as_bool()), (Some(expected), Some(true)));
        let outside: String = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert!(!outside.contains("abc"), "the key itself stands in a comment only");
    }

    #[test]
    fn no_two_keys_are_equal() {
        let (a, b) = (ApiKey::generate(), ApiKey::generate());
        assert!(a != b && a.len() >= 64 && a.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'), "{a}");
    }
}
