//! Limit of open files in this process: each connection is one.

use anyhow::bail;

/// Open files besides connections: the model, the log, the runtime's own, and connections for health checks. Chosen.
const BESIDE: u64 = 128;
/// Minimum connections for a useful daemon.
const MIN_CONNECTIONS: u64 = 16;

/// Returns as many of `wanted` connections as the limit of open files allows.
///
/// # Errors
/// If it allows hardly any: then not even the runtime could start.
pub(crate) fn connections_of(wanted: usize) -> anyhow::Result<usize> {
    // A system that reports no limit has its own way of reporting that it was reached.
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    connections_within(parse_limit(&limits), wanted)
}

/// Parses the soft limit of open files in `/proc/self/limits`; `None` if unlimited or not reported.
fn parse_limit(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn connections_within(limit: Option<u64>, wanted: usize) -> anyhow::Result<usize> {
    let Some(limit) = limit else { return Ok(wanted) };
    let needed = BESIDE + MIN_CONNECTIONS;
    if limit < needed {
        bail!("only {limit} files may be open at once, at least {needed} are needed: raise the limit (`ulimit -n`)");
    }
    let connections = wanted.min(usize::try_from(limit - BESIDE).unwrap_or(usize::MAX));
    if connections < wanted {
        tracing::warn!(
            connections,
            wanted,
            limit,
            "fewer connections than configured: few files may be open at once (`ulimit -n`)"
        );
    }
    Ok(connections)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_is_read() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units\n\
                      Max cpu time              unlimited            unlimited            seconds\n\
                      Max open files            1024                 524288               files\n";
        assert_eq!(parse_limit(limits), Some(1024));
        assert_eq!(parse_limit("Max open files            unlimited            unlimited            files"), None);
        assert_eq!(parse_limit(""), None);
    }

    #[test]
    fn connections_leave_room_for_other_files() {
        let connections = |limit, wanted| connections_within(limit, wanted).ok();
        assert_eq!(connections(Some(1024), 4096), Some(896));
        assert_eq!(connections(Some(1 << 20), 4096), Some(4096));
        assert_eq!(connections(None, 4096), Some(4096));
        assert_eq!(connections(Some(8), 4096), None);
    }
}
