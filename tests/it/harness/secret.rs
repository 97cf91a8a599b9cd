//! Where an operator keeps a password: a file, and a program of docker's credential-helper protocol.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::{lose, poll};

/// A file with a password, in a directory of its own.
#[derive(Debug)]
pub(crate) struct PasswordFile {
    home: TempDir,
}

/// A credential helper that notes down how often it ran and what it was asked.
#[derive(Debug)]
pub(crate) struct HelperScript {
    home: TempDir,
}

impl PasswordFile {
    pub(crate) fn new(password: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let file = Self { home };
        file.write(password);
        file
    }

    pub(crate) fn path(&self) -> String {
        text(&self.home.path().join("password"))
    }

    /// Has another password in it from now on; of another length, since two changes may have one time.
    pub(crate) fn write(&self, password: &str) {
        fs::write(self.path(), format!("{password}\n")).unwrap();
    }

    /// The same for one of the same length, as the file's time does not tell.
    pub(crate) fn slip(&self, password: &str) {
        let mut file = File::options().write(true).open(self.path()).unwrap();
        let time = file.metadata().unwrap().modified().unwrap();
        writeln!(file, "{password}").unwrap();
        file.set_modified(time).unwrap();
    }

    /// Takes the file away.
    pub(crate) fn lose(&self) {
        lose(Path::new(&self.path()));
    }
}

impl HelperScript {
    /// A helper that does this, in the words of the shell, in a directory of its own.
    pub(crate) fn new(script: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let helper = Self { home };
        let script = format!(
            "#!/bin/sh\ncd '{}' || exit 1\necho \"$@\" >> runs\ncat > asked\n{script}\n",
            text(helper.home.path())
        );
        // Not written by this process: another test's child may hold the file open a moment longer, and what is open for
        // writing cannot be run.
        let mut writer = Command::new("sh")
            .args(["-c", "cat > \"$0\" && chmod 755 \"$0\"", &helper.path()])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = writer.stdin.take().unwrap();
        input.write_all(script.as_bytes()).unwrap();
        drop(input);
        assert!(writer.wait().unwrap().success());
        helper
    }

    /// A helper that says this.
    pub(crate) fn saying(user: &str, secret: &str) -> Self {
        Self::new(&says(user, secret))
    }

    pub(crate) fn path(&self) -> String {
        text(&self.file("helper"))
    }

    /// How often it was run.
    pub(crate) fn runs(&self) -> usize {
        let runs = fs::read_to_string(self.file("runs")).unwrap_or_default();
        assert!(runs.lines().all(|it| it == "get"), "{runs}");
        runs.lines().count()
    }

    /// What it was asked last.
    pub(crate) fn asked(&self) -> String {
        fs::read_to_string(self.file("asked")).unwrap()
    }

    /// Waits until a process whose number the helper wrote into a file of this name is gone, and was waited for.
    pub(crate) async fn gone(&self, name: &str) {
        poll(&format!("{name} to be gone"), async || {
            self.state(name).is_none().then_some(())
        })
        .await;
    }

    /// The same of a process that this one is not to wait for, but whoever takes in orphans.
    pub(crate) async fn dead(&self, name: &str) {
        poll(&format!("{name} to be dead"), async || {
            self.state(name).is_none_or(|it| it == 'Z').then_some(())
        })
        .await;
    }

    /// The state of a process (proc_pid_stat(5)).
    fn state(&self, name: &str) -> Option<char> {
        let pid = fs::read_to_string(self.file(name)).unwrap();
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).ok()?;
        let (_, rest) = stat.rsplit_once(") ")?;
        rest.chars().next()
    }

    /// A file of its directory.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }
}

/// The words of the shell that say who we are.
pub(crate) fn says(user: &str, secret: &str) -> String {
    format!(r#"echo '{{"ServerURL":"x","Username":"{user}","Secret":"{secret}"}}'"#)
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}
