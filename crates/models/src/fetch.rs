//! Fetching of a catalogue model: from the cache, else from the hub, else from Python wheels. Its hash is always checked.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};

use crate::cache::{ModelCache, WriteLock};
use crate::hub::{Hub, RepoAt};
use crate::{CatalogueModel, ModelSource, Reporter, wheel};

/// Returns the verified file of `model`, and fetches it if it is missing.
///
/// # Errors
/// If neither the hub nor the wheels give the file of the catalogue. Names both reasons.
pub(crate) fn fetch(model: &'static CatalogueModel, source: ModelSource<'_>, reporter: &dyn Reporter) -> anyhow::Result<PathBuf> {
    let dir = source.cache_dir().context("this system has no cache folder: give one with --cache-dir")?;
    let cache = ModelCache::new(dir);
    if let Some(path) = cache.get(model) {
        return Ok(path);
    }
    let lock =
        cache.lock(model, || reporter.announce(format_args!("{}: another process is fetching it, waiting", model.name)))?;
    // The process holding the lock may have stored it.
    if let Some(path) = cache.get(model) {
        return Ok(path);
    }
    reporter.announce(format_args!("fetching {} ({})", model.name, model.description));
    let path = match from_hub(model, &Hub::new(source, reporter), &lock) {
        Ok(path) => path,
        Err(hub_error) => {
            reporter.announce(format_args!("{}: {hub_error:#}", model.name));
            from_wheels(model, &lock, reporter).map_err(|wheel_error| {
                anyhow!(
                    "{} cannot be fetched, neither from the hub ({hub_error:#}) nor from Python wheels ({wheel_error:#})",
                    model.name
                )
            })?
        }
    };
    reporter.announce(format_args!("{}: verified and stored as {}", model.name, path.display()));
    Ok(path)
}

fn from_hub(model: &CatalogueModel, hub: &Hub<'_>, lock: &WriteLock<'_>) -> anyhow::Result<PathBuf> {
    let place = model.hub.as_ref().context("the hub does not have this file")?;
    let at = RepoAt { repo: place.repo, revision: place.revision };
    let downloaded = hub.file(at, model.file)?;
    adopt(&downloaded, lock)
}

/// Copies a file of the hub's cache into ours: the hub's tools may clear theirs at any time.
fn adopt(downloaded: &Path, lock: &WriteLock<'_>) -> anyhow::Result<PathBuf> {
    let mut file = File::open(downloaded).with_context(|| format!("reading {}", downloaded.display()))?;
    let mut incoming = lock.incoming()?;
    io::copy(&mut file, &mut incoming).with_context(|| format!("copying {}", downloaded.display()))?;
    Ok(incoming.accept()?)
}

fn from_wheels(model: &CatalogueModel, lock: &WriteLock<'_>, reporter: &dyn Reporter) -> anyhow::Result<PathBuf> {
    let names: Vec<_> = model.wheels.iter().map(|wheel| wheel.requirement).collect();
    reporter.announce(format_args!(
        "{}: taking it from the Python wheel{} {}",
        model.name,
        if names.len() == 1 { "" } else { "s" },
        names.join(", ")
    ));
    let scratch = lock.scratch()?;
    let mut incoming = lock.incoming()?;
    for wheel in model.wheels {
        wheel::copy_member(wheel, scratch.path(), &mut incoming, reporter)?;
    }
    Ok(incoming.accept()?)
}
