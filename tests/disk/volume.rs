//! Small file systems that tests may break, and what fills them.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::geteuid;
use tempfile::TempDir;

use crate::harness::{KIB, MIB, lose};

/// A mounted file system; dropped, it is unmounted, whoever still has files in it.
#[derive(Debug)]
pub(crate) struct Volume {
    at: PathBuf,
    is_mounted: bool,
    /// The image of what is no tmpfs, and where it lies if that is its own.
    image: Option<(PathBuf, Option<TempDir>)>,
}

/// What leaves no room in a file system for as long as it is there.
#[derive(Debug)]
pub(crate) struct Ballast {
    files: Vec<PathBuf>,
}

impl Volume {
    /// A tmpfs of some MiB.
    pub(crate) fn tmpfs(at: &Path, mib: usize) -> Self {
        Self::tmpfs_with(at, &format!("size={mib}m"))
    }

    /// A tmpfs with these options.
    pub(crate) fn tmpfs_with(at: &Path, options: &str) -> Self {
        assert!(geteuid().is_root(), "only root may mount");
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(at));
        Self {
            at: at.to_owned(),
            is_mounted: true,
            image: None,
        }
    }

    /// An ext4 of some MiB, which becomes read-only when the kernel finds an error in it.
    pub(crate) fn ext4(at: &Path, mib: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        format(&image, mib);
        Self::of_image(at, (image, Some(dir)), "remount-ro")
    }

    /// An ext4 of some MiB in a file that is to be made. Reading from it changes nothing in it.
    pub(crate) fn ext4_in(at: &Path, image: &Path, mib: usize) -> Self {
        format(image, mib);
        Self::of_image(at, (image.to_owned(), None), "remount-ro,noatime")
    }

    fn of_image(at: &Path, image: (PathBuf, Option<TempDir>), errors: &str) -> Self {
        assert!(geteuid().is_root(), "only root may mount");
        run(Command::new("mount")
            .args(["-o", &format!("loop,errors={errors}")])
            .args([&image.0, at]));
        Self {
            at: at.to_owned(),
            is_mounted: true,
            image: Some(image),
        }
    }

    /// The same folder, read-only, over itself: new names cannot be made, and what is open is written to.
    pub(crate) fn read_only_over(at: &Path) -> Self {
        run(Command::new("mount").arg("--bind").args([at, at]));
        let volume = Self {
            at: at.to_owned(),
            is_mounted: true,
            image: None,
        };
        volume.remount("bind,ro");
        volume
    }

    /// Where it is mounted.
    pub(crate) fn at(&self) -> &Path {
        &self.at
    }

    /// Mounts it with other options.
    pub(crate) fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        run(Command::new("mount").args(["-o", &options]).arg(&self.at));
    }

    /// Has the kernel find an error in it.
    pub(crate) fn give_up(&self) {
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let at = self.at.to_str().unwrap();
        let mount = mounts.lines().find(|it| it.split(' ').nth(1) == Some(at));
        let device = mount.unwrap().split(' ').next().unwrap();
        let device = device.strip_prefix("/dev/").unwrap();
        let trigger = format!("/sys/fs/ext4/{device}/trigger_fs_error");
        fs::write(trigger, "1").unwrap();
    }

    /// Unmounts it, has it checked and repaired, and mounts it again. Nobody may have files in it.
    pub(crate) fn repaired(self) -> Self {
        self.unmounted("remount-ro", |image| {
            // It says 1 or 2 when there was something to repair, which is what it is asked for.
            let status = Command::new("e2fsck").arg("-fy").arg(image).output();
            let code = status.unwrap().status.code().unwrap();
            assert!(code <= 2, "e2fsck: {code}");
        })
    }

    /// Unmounts it, wipes the inode of a file, whose name stays, and mounts it again, so that an error leaves it writable.
    /// Nobody may have files in it.
    pub(crate) fn with_damaged_inode(self, file: &Path) -> Self {
        self.unmounted("continue", |image| {
            let request = format!("clri /{}", file.display());
            run(Command::new("debugfs")
                .args(["-w", "-R", &request])
                .arg(image));
        })
    }

    fn unmounted(mut self, errors: &str, change: impl FnOnce(&Path)) -> Self {
        let (image, dir) = self.image.take().unwrap();
        let at = self.at.clone();
        run(Command::new("umount").arg(&at));
        self.is_mounted = false;
        change(&image);
        Self::of_image(&at, (image, dir), errors)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if self.is_mounted {
            // A test that failed may have left it in use.
            let _ = Command::new("umount").arg("--lazy").arg(&self.at).status();
        }
    }
}

impl Ballast {
    /// Takes all bytes that there are.
    pub(crate) fn fill(at: &Path) -> Self {
        let path = at.join("ballast");
        let mut file = File::create_new(&path).unwrap();
        let piece = vec![0; 64 * KIB];
        while file.write_all(&piece).is_ok() {}
        // Down to the last one, and not only promised.
        while file.write_all(&[0]).is_ok() {}
        let _ = file.sync_all();
        Self { files: vec![path] }
    }

    /// Takes all names that there are.
    pub(crate) fn names(at: &Path) -> Self {
        let paths = (0..).map(|n| at.join(format!("ballast-{n}")));
        let made = paths.map_while(|path| File::create_new(&path).ok().map(|_| path));
        Self {
            files: made.collect(),
        }
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        self.files.iter().for_each(|file| lose(file));
    }
}

/// Makes an image of an ext4.
fn format(image: &Path, mib: usize) {
    let mut file = OpenOptions::new();
    let file = file.write(true).create_new(true).open(image).unwrap();
    file.set_len((mib * MIB) as u64).unwrap();
    run(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(image));
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
