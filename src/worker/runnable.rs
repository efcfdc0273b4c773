//! Whether a program is there and its user may run it, found without running it: what stands in the way, and what to do.
//!
//! Must not do: forbid anything. Rights that an access list grants are not seen here, and a program may come into being.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::config::model::{Account, WorkerSpec};
use crate::worker::adapter::{Plan, Program};
use crate::worker::environment;

/// Where directories of programs that belong to one application lie, below that.
const NEAR: [&str; 4] = [".venv/bin", "venv/bin", "env/bin", "node_modules/.bin"];
/// Longest first line of a script that the kernel reads.
const FIRST_LINE: u64 = 256;
/// A script's interpreter may be a script.
const DEEPEST: u32 = 3;

/// What keeps a program from being run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// No file of that name.
    Missing {
        /// As the command names it.
        program: String,
        /// Where it was looked for, in words.
        place: String,
        /// A file that may be meant.
        near: Option<PathBuf>,
    },
    /// A directory in the place of a program.
    Directory(PathBuf),
    /// The user may not enter the directory its workers start in.
    Start {
        /// The working directory.
        working_dir: PathBuf,
        /// A directory on the way to it, or itself.
        at: PathBuf,
        /// Who may not.
        user: String,
    },
    /// A file that nobody can run.
    NotExecutable(PathBuf),
    /// A script whose interpreter is not there.
    Interpreter {
        /// The script.
        script: PathBuf,
        /// What its first line names.
        interpreter: String,
    },
    /// The user may not enter or run this.
    Closed {
        /// The program, or the interpreter of its script.
        program: PathBuf,
        /// That script.
        script: Option<PathBuf>,
        /// A directory on the way to it, or itself.
        at: PathBuf,
        /// Who may not.
        user: String,
    },
}

impl Obstacle {
    /// Whether a program in its way cannot be run as things are: an access list may let in whom the mode keeps out.
    pub fn is_certain(&self) -> bool {
        match self {
            Self::Missing { .. } | Self::Directory(_) | Self::NotExecutable(_) | Self::Interpreter { .. } => {
                true
            }
            Self::Closed { .. } | Self::Start { .. } => false,
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { program, place, near: Some(near) } => {
                write!(f, "`{program}` {place}: there is `{}`, write that", near.display())
            }
            Self::Missing { program, place, near: None } if program.contains('/') => {
                write!(f, "`{program}` {place}")
            }
            Self::Missing { program, place, near: None } => {
                write!(
                    f,
                    "`{program}` {place}: install it, write its whole path, or set PATH under `environment`"
                )
            }
            Self::Directory(file) => {
                write!(f, "`{}` is a directory: name the program in it", file.display())
            }
            Self::Start { working_dir, at, user } => {
                let (dir, at) = (working_dir.display(), at.display());
                write!(f, "{user} may not enter `{at}`")?;
                if working_dir.as_os_str() != at.to_string().as_str() {
                    write!(f, ", on the way to `{dir}`")?;
                }
                write!(f, ", where its workers start (`working_dir`): open it (`chmod o+x`), or set `user`")
            }
            Self::NotExecutable(file) => {
                let file = file.display();
                write!(f, "`{file}` is no executable file: `chmod +x {file}` makes a program one")
            }
            Self::Interpreter { script, interpreter } if interpreter.ends_with('\r') => {
                let (script, name) = (script.display(), interpreter.trim_end());
                write!(
                    f,
                    "`{script}` has Windows' ends of lines, so that its interpreter would be `{name}` with a \
                     carriage return: `sed -i 's/\\r$//' {script}` removes them"
                )
            }
            Self::Interpreter { script, interpreter } if !interpreter.contains('/') => write!(
                f,
                "`{}` is a script for `{interpreter}`, which is not in PATH: install it, or set PATH under `environment`",
                script.display()
            ),
            Self::Interpreter { script, interpreter } => write!(
                f,
                "`{}` is a script for `{interpreter}`, which does not exist: a virtual environment that was moved has to be made anew",
                script.display()
            ),
            Self::Closed { program, script, at, user } => {
                let (named, at_itself) = (program.display(), program == at);
                if at_itself {
                    write!(f, "{user} may not run `{named}`")?;
                } else {
                    write!(f, "{user} may not enter `{}`, on the way to `{named}`", at.display())?;
                }
                if let Some(script) = script {
                    write!(f, ", the interpreter of `{}`", script.display())?;
                }
                let help = if at_itself { "o+rx`)" } else { "o+x`), move the program" };
                write!(f, ": open it (`chmod {help}, or set `user`")
            }
        }
    }
}

/// What keeps a worker of `spec` from being started by `plan`.
pub fn obstacle(spec: &WorkerSpec, plan: &Plan) -> Option<Obstacle> {
    match plan.program {
        Program::Named => {
            let view = View::new(spec, plan.environment.get("PATH"));
            view.obstacle(plan.argv.first()?).or_else(|| view.start())
        }
        Program::Edge => None,
    }
}

/// A worker's view of the files: where it starts, where it looks for programs, whose rights it has.
#[derive(Debug)]
pub struct View<'a> {
    search: OsString,
    working_dir: &'a Path,
    account: &'a Account,
}

impl<'a> View<'a> {
    /// What a worker of `spec` sees that gets `path` as its PATH, or else what edge has.
    pub fn new(spec: &'a WorkerSpec, path: Option<&String>) -> Self {
        let search = path.map(OsString::from);
        let inherited = || environment::inherited(&spec.account).remove(&OsString::from("PATH"));
        Self {
            search: search.or_else(inherited).unwrap_or_default(),
            working_dir: &spec.working_dir,
            account: &spec.account,
        }
    }

    /// What keeps the worker from running `program`, if anything does that can be seen.
    pub fn obstacle(&self, program: &str) -> Option<Obstacle> {
        self.find(program, DEEPEST).err()
    }

    /// What keeps the worker out of the directory it starts in: edge enters that with its own rights, and then every file is
    /// out of the worker's reach.
    fn start(&self) -> Option<Obstacle> {
        let found = fs::metadata(self.working_dir).ok()?;
        let (account, working_dir) = (self.account, self.working_dir);
        match account {
            // Edge has entered it itself.
            Account::Own => None,
            Account::Other { .. } => match self.enter(working_dir, false, &found) {
                Err(Obstacle::Closed { at, user, .. }) => {
                    Some(Obstacle::Start { working_dir: working_dir.to_owned(), at, user })
                }
                Ok(()) | Err(_) => None,
            },
        }
    }

    /// As execvp does it: the first that can be run; where there is none, what is wrong with the first that is there.
    fn find(&self, program: &str, depth: u32) -> Result<(), Obstacle> {
        if program.contains('/') {
            return self.judge(Path::new(program), depth).unwrap_or_else(|| {
                let target = fs::read_link(self.working_dir.join(program));
                let place = if let Ok(target) = target {
                    format!("is a link to `{}`, which does not exist", target.display())
                } else if program.starts_with('~') {
                    "does not exist: `~` is not expanded, write the whole path".to_owned()
                } else if program.starts_with('/') {
                    "does not exist".to_owned()
                } else {
                    format!("does not exist in {}", self.working_dir.display())
                };
                Err(Obstacle::Missing { program: program.to_owned(), place, near: None })
            });
        }
        let mut first = None;
        for directory in std::env::split_paths(&self.search) {
            match self.judge(&self.working_dir.join(directory).join(program), depth) {
                Some(Ok(())) => return Ok(()),
                Some(Err(obstacle)) => first = first.or(Some(obstacle)),
                None => {}
            }
        }
        Err(first.unwrap_or_else(|| Obstacle::Missing {
            program: program.to_owned(),
            place: format!("is not in PATH ({})", self.search.to_string_lossy()),
            near: NEAR
                .iter()
                .map(|near| self.working_dir.join(near).join(program))
                .find(|file| file.exists()),
        }))
    }

    /// `None` where there is no such file, as far as this process can see.
    fn judge(&self, path: &Path, depth: u32) -> Option<Result<(), Obstacle>> {
        let file = &self.working_dir.join(path);
        let found = match fs::metadata(file) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Some(Ok(())),
            Err(_) => return None,
        };
        if found.is_dir() {
            return Some(Err(Obstacle::Directory(file.to_owned())));
        }
        if !found.is_file() || found.permissions().mode() & 0o111 == 0 {
            return Some(Err(Obstacle::NotExecutable(file.to_owned())));
        }
        Some(self.enter(file, path.is_relative(), &found).and_then(|()| self.interpret(file, depth)))
    }

    /// Whether every directory on the way to it lets the user in, and it itself. `relative` begins in the working directory,
    /// which edge has entered with its own rights.
    fn enter(&self, file: &Path, relative: bool, found: &Metadata) -> Result<(), Obstacle> {
        let closed = |at: &Path, user: String| Obstacle::Closed {
            program: file.to_owned(),
            script: None,
            at: at.to_owned(),
            user,
        };
        let name = match self.account {
            Account::Own => {
                return match rustix::fs::access(file, rustix::fs::Access::EXEC_OK) {
                    Err(rustix::io::Errno::ACCESS) => Err(closed(file, "edge's own user".to_owned())),
                    Ok(()) | Err(_) => Ok(()),
                };
            }
            Account::Other { name, .. } => name,
        };
        // Where links lead is on the way, too.
        let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let (there, start) = (real(file), real(self.working_dir));
        let entered = |directory: &Path| {
            let above = |start: &Path| start != directory && start.starts_with(directory);
            relative && (above(&start) || above(self.working_dir))
        };
        for directory in file.ancestors().skip(1).chain(there.ancestors().skip(1)) {
            if !entered(directory) && fs::metadata(directory).is_ok_and(|found| !self.may_execute(&found)) {
                return Err(closed(directory, format!("user `{name}`")));
            }
        }
        if self.may_execute(found) { Ok(()) } else { Err(closed(file, format!("user `{name}`"))) }
    }

    /// By its mode alone.
    fn may_execute(&self, found: &Metadata) -> bool {
        let (uid, gid, groups) = match self.account {
            Account::Own => return true,
            Account::Other { uid, gid, groups, .. } => (*uid, *gid, groups),
        };
        let bit = if uid == 0 {
            0o111
        } else if found.uid() == uid {
            0o100
        } else if found.gid() == gid || groups.contains(&found.gid()) {
            0o010
        } else {
            0o001
        };
        uid == 0 && found.is_dir() || found.mode() & bit != 0
    }

    /// Whether the interpreter that a script names can be run.
    fn interpret(&self, script: &Path, depth: u32) -> Result<(), Obstacle> {
        let Some(line) = first_line(script).filter(|_| depth > 0) else { return Ok(()) };
        let mut words = line.splitn(2, [' ', '\t']);
        let (interpreter, argument) = (words.next().unwrap_or_default(), words.next().map(str::trim_start));
        if interpreter.is_empty() {
            return Ok(());
        }
        let missing = |interpreter: &str| Obstacle::Interpreter {
            script: script.to_owned(),
            interpreter: interpreter.to_owned(),
        };
        let told = |obstacle| match obstacle {
            Obstacle::Closed { program, script: None, at, user } => {
                Obstacle::Closed { program, script: Some(script.to_owned()), at, user }
            }
            other => other,
        };
        let judged = self.judge(Path::new(interpreter), depth - 1);
        judged.unwrap_or_else(|| Err(missing(interpreter))).map_err(told)?;
        // `#!/usr/bin/env python3`, where that is all: with options, or words after it, only `env` knows.
        let looked_up = argument.filter(|_| interpreter.ends_with("/env"));
        match looked_up.filter(|name| !name.starts_with('-') && !name.contains([' ', '\t', '=', '/'])) {
            Some(name) => match self.find(name, depth - 1) {
                Err(Obstacle::Missing { .. }) => Err(missing(name)),
                other => other.map_err(told),
            },
            None => Ok(()),
        }
    }
}

/// What follows `#!`, where a file begins with it and can be read.
fn first_line(file: &Path) -> Option<String> {
    let mut start = Vec::new();
    fs::File::open(file).ok()?.take(FIRST_LINE).read_to_end(&mut start).ok()?;
    let line = start.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    Some(String::from_utf8_lossy(line).trim_matches([' ', '\t']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Stage {
        root: tempfile::TempDir,
        account: Account,
    }

    impl Stage {
        fn new() -> Self {
            let root = tempfile::tempdir().expect("a directory");
            fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).expect("open");
            Self { root, account: Account::Own }
        }

        /// Of somebody who owns nothing here.
        fn stranger() -> Self {
            let name = "www".to_owned();
            let account =
                Account::Other { uid: 65_533, gid: 65_533, groups: Vec::new(), name, home: "/".into() };
            Self { account, ..Self::new() }
        }

        fn file(&self, name: &str, text: &str, mode: u32) -> String {
            let path = self.root.path().join(name);
            fs::create_dir_all(path.parent().expect("below")).expect("a directory");
            fs::write(&path, text).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("its mode");
            path.display().to_string()
        }

        fn says(&self, program: &str) -> String {
            self.with_path(program, "/usr/bin:/bin")
        }

        fn with_path(&self, program: &str, path: &str) -> String {
            let view = View { search: path.into(), working_dir: self.root.path(), account: &self.account };
            let root = self.root.path().display().to_string();
            view.obstacle(program)
                .map_or_else(String::new, |obstacle| obstacle.to_string().replace(&root, "DIR"))
        }
    }

    #[test]
    fn what_can_be_run_meets_no_obstacle() {
        let stage = Stage::new();
        let script = stage.file("bin/run", "#!/bin/sh\n", 0o755);
        stage.file("bin/python", "#! /usr/bin/env sh\n", 0o755);
        for program in ["sh", "/bin/sh", "bin/run", &script, "bin/python"] {
            assert_eq!(stage.says(program), "", "{program}");
        }
        assert_eq!(stage.with_path("run", "/nowhere:bin:/usr/bin"), "", "from the working directory");
        stage.file("closed/sh", "", 0o644);
        assert_eq!(stage.with_path("sh", "closed:/bin"), "", "the next one in PATH can be run");
    }

    #[test]
    fn what_is_missing_is_told_with_where_it_was_looked_for_and_what_may_be_meant() {
        let stage = Stage::new();
        assert_eq!(
            stage.says("no-such"),
            "`no-such` is not in PATH (/usr/bin:/bin): install it, write its whole path, or set PATH under `environment`"
        );
        stage.file(".venv/bin/uvicorn", "#!/bin/sh\n", 0o755);
        assert_eq!(
            stage.says("uvicorn"),
            "`uvicorn` is not in PATH (/usr/bin:/bin): there is `DIR/.venv/bin/uvicorn`, write that"
        );
        assert_eq!(stage.says("bin/x"), "`bin/x` does not exist in DIR");
        assert_eq!(stage.says("/no/such"), "`/no/such` does not exist");
    }

    #[test]
    fn what_cannot_be_executed_is_told_apart() {
        let stage = Stage::new();
        stage.file("plain", "", 0o644);
        assert_eq!(
            stage.says("./plain"),
            "`DIR/./plain` is no executable file: `chmod +x DIR/./plain` makes a program one"
        );
        stage.file("moved", "#!/old/venv/bin/python3\nimport x\n", 0o755);
        assert!(
            stage.says("./moved").contains("is a script for `/old/venv/bin/python3`, which does not exist")
        );
        stage.file("windows", "#!/bin/sh\r\necho\r\n", 0o755);
        assert!(stage.says("./windows").contains("Windows' ends of lines"), "{}", stage.says("./windows"));
        stage.file("looked-up", "#!/usr/bin/env no-such-language\n", 0o755);
        assert!(
            stage.says("./looked-up").contains("is a script for `no-such-language`, which is not in PATH"),
            "{}",
            stage.says("./looked-up")
        );
        stage.file("bin/x", "", 0o755);
        assert_eq!(stage.says("./bin"), "`DIR/./bin` is a directory: name the program in it");
        std::os::unix::fs::symlink("/no/such", stage.root.path().join("dangling")).expect("linked");
        assert_eq!(stage.says("./dangling"), "`./dangling` is a link to `/no/such`, which does not exist");
        assert_eq!(stage.says("~/run"), "`~/run` does not exist: `~` is not expanded, write the whole path");
        let view = View { search: "/bin".into(), working_dir: stage.root.path(), account: &stage.account };
        assert!(view.obstacle("./moved").is_some_and(|obstacle| obstacle.is_certain()));
    }

    #[test]
    fn a_user_that_is_kept_out_is_told_where() {
        let stage = Stage::stranger();
        let script = stage.file("home/venv/bin/run", "#!/bin/sh\n", 0o755);
        assert_eq!(stage.says(&script), "");
        let home = stage.root.path().join("home");
        fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).expect("closed");
        let closed = "user `www` may not enter `DIR/home`, on the way to `DIR/home/venv/bin/run`: \
                      open it (`chmod o+x`), move the program, or set `user`";
        assert_eq!(stage.says(&script), closed);
        let outside = stage.file("outside", &format!("#!{script}\n"), 0o755);
        assert_eq!(
            stage.says(&outside),
            closed.replace("bin/run`", "bin/run`, the interpreter of `DIR/outside`")
        );
        // Of a link, both ends count.
        std::os::unix::fs::symlink(&script, stage.root.path().join("link")).expect("linked");
        assert!(stage.says("./link").starts_with("user `www` may not enter `DIR/home`"));
        let script = stage.file("own", "#!/bin/sh\n", 0o700);
        assert_eq!(
            stage.says(&script),
            "user `www` may not run `DIR/own`: open it (`chmod o+rx`), or set `user`"
        );
        // Edge enters the working directory for it; from there on it walks itself.
        stage.file("run", "#!/bin/sh\n", 0o755);
        let working_dir = home.join("venv");
        let view = View { search: "/bin".into(), working_dir: &working_dir, account: &stage.account };
        assert_eq!(view.obstacle("bin/run"), None);
        let start = view.start().expect("closed");
        let told = start.to_string().replace(&stage.root.path().display().to_string(), "DIR");
        assert_eq!(
            told,
            "user `www` may not enter `DIR/home`, on the way to `DIR/home/venv`, where its workers start (`working_dir`): \
             open it (`chmod o+x`), or set `user`"
        );
        assert!(!start.is_certain());
        let view = View { working_dir: &home, ..view };
        assert!(view.start().expect("closed").to_string().contains("home`, where its workers start"));
        let view = View { working_dir: stage.root.path(), ..view };
        assert_eq!(view.start(), None);
        let view = View { working_dir: &working_dir, ..view };
        let absolute = working_dir.join("bin/run").display().to_string();
        assert!(view.obstacle(&absolute).is_some_and(|obstacle| !obstacle.is_certain()));
    }
}
