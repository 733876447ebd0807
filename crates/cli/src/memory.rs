//! Memory that this process may still take: the machine's, or less if its control group sets a limit.

use crate::config::ByteSize;

/// Divisor of the available memory for the default KV pool. Chosen: weights, activations and other processes need the rest.
const DEFAULT_SHARE: u64 = 4;

/// Maximum of the default KV pool. Chosen: some hundred thousand tokens of the default model.
const DEFAULT_MAX: ByteSize = ByteSize::gib(4);

/// Default pool if the available memory is unknown. Chosen: fits small machines.
const DEFAULT_UNKNOWN: ByteSize = ByteSize::gib(1);

/// Returns the bytes this process can still take without swapping; `None` if the system does not report them.
pub(crate) fn available() -> Option<ByteSize> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let machine = parse_meminfo(&read("/proc/meminfo")?)?;
    let limit = read("/sys/fs/cgroup/memory.max").and_then(|text| text.trim().parse::<u64>().ok());
    let used = read("/sys/fs/cgroup/memory.current").and_then(|text| text.trim().parse::<u64>().ok());
    Some(ByteSize(below_limit(machine, limit, used)))
}

/// Returns the default size of the KV pool.
pub(crate) fn default_pool(available: Option<ByteSize>) -> ByteSize {
    // Whole MiB read better in the log.
    let share = |ByteSize(bytes): ByteSize| ByteSize((bytes / DEFAULT_SHARE) >> 20 << 20);
    available.map_or(DEFAULT_UNKNOWN, |available| share(available).min(DEFAULT_MAX))
}

/// Parses `MemAvailable` of `/proc/meminfo`, in bytes.
fn parse_meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Applies the control group's limit; the text `max` means none.
fn below_limit(machine: u64, limit: Option<u64>, used: Option<u64>) -> u64 {
    limit.map_or(machine, |limit| machine.min(limit.saturating_sub(used.unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_from_meminfo() {
        let text = "MemTotal:       24590000 kB\nMemFree:         100 kB\nMemAvailable:   2048 kB\n";
        assert_eq!(parse_meminfo(text), Some(2 << 20));
        assert_eq!(parse_meminfo("MemTotal: 1 kB"), None);
    }

    #[test]
    fn a_control_group_lowers_what_is_available() {
        assert_eq!(below_limit(100, None, Some(7)), 100);
        assert_eq!(below_limit(100, Some(60), Some(20)), 40);
        assert_eq!(below_limit(100, Some(60), Some(90)), 0);
        assert_eq!(below_limit(30, Some(60), Some(20)), 30);
    }

    #[test]
    fn the_default_pool_is_a_capped_quarter() {
        assert_eq!(default_pool(Some(ByteSize::gib(2))), ByteSize::mib(512));
        assert_eq!(default_pool(Some(ByteSize::gib(512))), DEFAULT_MAX);
        assert_eq!(default_pool(None), DEFAULT_UNKNOWN);
        assert_eq!(default_pool(Some(ByteSize((1 << 30) + 12345))), ByteSize::mib(256));
    }
}
