//! Flags that override settings.

/// Overrides `slot` if the flag was given.
pub(super) fn set<T>(slot: &mut T, flag: Option<T>) {
    if let Some(value) = flag {
        *slot = value;
    }
}
