//! Check that refuses environment variables that look like settings and are none: most are misspelt.

use std::collections::BTreeSet;

use anyhow::bail;
use clap::Command;

const PREFIX: &str = "KVSHARE_";

/// Variables read when the binary is built.
const OF_THE_BUILD: [&str; 1] = ["KVSHARE_CUDA_TARGETS"];

/// Prefixes of variables that Kubernetes and Docker set for a service called `kvshare`.
const OF_A_SERVICE: [&str; 2] = ["KVSHARE_SERVICE_", "KVSHARE_PORT_"];

/// Minimum Jaro-Winkler similarity of a suggestion to the name typed. Chosen: two letters of ten may differ.
const LEAST_SIMILARITY: f64 = 0.85;

/// Refuses each of `names` that begins as our variables do, unless a flag of `command` or of one of its subcommands reads it.
///
/// # Errors
/// If there are any; names them, each with the variable that was probably meant.
pub(crate) fn refuse_unknown(command: &Command, names: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let known = known_to(command);
    let is_of_a_service = |name: &str| OF_A_SERVICE.iter().any(|prefix| name.starts_with(prefix));
    // In lower case too: no other program's variables begin so.
    let is_ours = |name: &str| name.get(..PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(PREFIX));
    let ours = names.filter(|name| is_ours(name) && !is_of_a_service(name));
    let unknown: BTreeSet<String> = ours.filter(|name| !known.contains(name.as_str())).collect();
    if unknown.is_empty() {
        return Ok(());
    }
    let described: Vec<String> = unknown.iter().map(|name| describe(name, &known)).collect();
    bail!("{}", described.join("; "))
}

fn describe(name: &str, known: &BTreeSet<String>) -> String {
    let typed = name[PREFIX.len()..].to_ascii_uppercase();
    let similarity = |other: &String| strsim::jaro_winkler(&typed, &other[PREFIX.len()..]);
    let nearest = known.iter().max_by(|a, b| similarity(a).total_cmp(&similarity(b)));
    let hint = nearest.filter(|nearest| similarity(nearest) >= LEAST_SIMILARITY);
    let hint = hint.map_or(String::new(), |nearest| format!(", did you mean {nearest}?"));
    format!("there is no setting for the environment variable {name}{hint}")
}

/// Returns the variables that flags of `command` and of its subcommands read, and others of ours.
fn known_to(command: &Command) -> BTreeSet<String> {
    let of_flags = command.get_arguments().filter_map(|arg| arg.get_env()?.to_str()).map(str::to_owned);
    let mut known: BTreeSet<String> = of_flags.filter(|name| name.starts_with(PREFIX)).collect();
    known.extend(command.get_subcommands().flat_map(known_to));
    known.extend(OF_THE_BUILD.map(str::to_owned));
    known
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::args::Args;

    fn refusal(names: &[&str]) -> Option<String> {
        let names = names.iter().map(|&name| name.to_owned());
        refuse_unknown(&Args::command(), names).err().map(|error| error.to_string())
    }

    #[test]
    fn every_variable_of_a_flag_is_known() {
        let known = known_to(&Args::command());
        assert!(known.len() > 30, "{known:?}");
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        assert_eq!(refusal(&known), None);
    }

    #[test]
    fn misspelt_variables_are_refused_with_what_was_meant() {
        for (typed, meant) in [
            ("KVSHARE_PROT", "KVSHARE_PORT"),
            ("kvshare_port", "KVSHARE_PORT"),
            ("KVSHARE_KV_CACHE_MEM", "KVSHARE_KV_CACHE_MEMORY"),
            ("KVSHARE_APIKEYS", "KVSHARE_API_KEYS"),
            ("KVSHARE_MAX_NUM_SEQ", "KVSHARE_MAX_NUM_SEQS"),
        ] {
            let refusal = refusal(&[typed, "KVSHARE_HOST"]).unwrap();
            assert_eq!(refusal, format!("there is no setting for the environment variable {typed}, did you mean {meant}?"));
        }
        let both = refusal(&["KVSHARE_PROT", "KVSHARE_QQQ"]).unwrap();
        assert!(both.contains("KVSHARE_PROT, did you mean") && both.ends_with("variable KVSHARE_QQQ"), "{both}");
    }

    #[test]
    fn variables_of_others_are_left_alone() {
        assert_eq!(refusal(&["PATH", "HF_TOKEN", "MY_KVSHARE_PROT", "KVSHARE_CUDA_TARGETS"]), None);
        assert_eq!(refusal(&["KVSHARE_SERVICE_HOST", "KVSHARE_SERVICE_PORT_HTTP", "KVSHARE_PORT_8000_TCP_ADDR"]), None);
    }
}
