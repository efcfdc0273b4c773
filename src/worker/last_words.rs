//! Which of a dead worker's last lines says why it died.
//!
//! Servers go on talking after the cause: frames of a backtrace, a summary, that the master shuts down too. What is passed
//! over here is known to say less than what stands above it; the first other line from the end is shown.

/// The line that says most of an end: the last one that is no epilogue, or where all are, the last with words.
pub(super) fn telling(lines: &[String]) -> Option<&String> {
    cause(lines).and_then(|at| lines.get(at))
}

/// The last `count` lines, and where what says most stands above them, all from there on.
pub(super) fn with_cause(lines: &[String], count: usize) -> &[String] {
    let last = lines.len().saturating_sub(count);
    &lines[cause(lines).map_or(last, |at| at.min(last))..]
}

/// Where [`telling`] stands.
fn cause(lines: &[String]) -> Option<usize> {
    let mut end = lines.len();
    while let Some(at) = end.checked_sub(1) {
        let kept = epilogue(&lines[..end]);
        if kept == end {
            return Some(at);
        }
        end = kept;
    }
    lines.iter().rposition(|line| has_words(line)).or(lines.len().checked_sub(1))
}

/// A line of a backtrace that stands below its message, as Ruby, Node.js and Java print it.
pub(super) fn is_frame(line: &str) -> bool {
    line.starts_with("\tfrom ") || line.starts_with("    at ") || line.starts_with("\tat ")
}

/// How many of the lines are left without the epilogue they end with; all, where the last one says something.
fn epilogue(lines: &[String]) -> usize {
    let end = lines.len();
    let Some(last) = lines.last() else { return 0 };
    let before = |count: usize| end.checked_sub(count + 1).and_then(|at| lines.get(at));
    if let Some(opened) = dump(lines) {
        return opened;
    }
    // The line of a program, and where in it.
    if !has_words(last) && last.contains('^') {
        return end.saturating_sub(2);
    }
    // A function of Go, and where in it; a field of Pydantic's, and what is wrong with it.
    let is_place = last.starts_with('\t') && last.contains(" +0x");
    let is_field = last.starts_with("  ") && last.contains("[type=");
    if is_place || is_field {
        return end.saturating_sub(2);
    }
    if last.starts_with("- ") {
        let list = lines.iter().rev().take_while(|line| line.starts_with("- ")).count();
        return if before(list).is_some_and(|line| line == "Require stack:") { end - list - 1 } else { end };
    }
    if says_less(last) { end - 1 } else { end }
}

/// Where the properties of an error begin that Node.js prints below its frames, in lines of their own.
fn dump(lines: &[String]) -> Option<usize> {
    let (last, above) = lines.split_last()?;
    let inner = above.iter().rev().take_while(|line| line.starts_with("  ") && !is_frame(line)).count();
    let opened = above.len().checked_sub(inner + 1)?;
    (last == "}" && above[opened].ends_with(" {")).then_some(opened)
}

fn says_less(line: &str) -> bool {
    /// With or without a time and a process in front.
    const ANYWHERE: &[&str] = &[
        "Application startup failed. Exiting.",
        "Control socket listening at",
        "Worker exiting (pid:",
        "Shutting down: Master",
        "Reason: Worker failed to boot.",
        "failed to start, stopping the parent process.",
        "For further information visit https://errors.pydantic.dev/",
        "A complete log of this run can be found in:",
        "ELIFECYCLE",
        "Command failed with exit code ",
        "info Visit https://yarnpkg.com/",
    ];
    const BEGINNINGS: &[&str] = &[
        "INFO:     Waiting for child process [",
        "INFO:     Stopping parent process [",
        "Node.js v",
        "npm notice",
        "Emitted 'error' event on ",
        "Tasks: TOP => ",
        "(See full trace by running task with --trace)",
        "Did you mean? ",
        "[signal ",
        "exit status ",
        "stack backtrace:",
        "note: run with `RUST_BACKTRACE",
        "note: Some details are omitted",
    ];
    let is_goroutine = line.starts_with("goroutine ") && line.ends_with("]:");
    let exited = line.contains("[ERROR] Worker (pid:") && line.contains(" exited with code ");
    !has_words(line)
        || is_frame(line)
        || is_goroutine
        || exited
        || is_rust_frame(line)
        || is_rake_frame(line)
        || ANYWHERE.iter().any(|part| line.contains(part))
        || BEGINNINGS.iter().any(|part| line.starts_with(part))
}

/// `  12: module::function` and, below it, `             at file:line:column`.
fn is_rust_frame(line: &str) -> bool {
    let words = line.trim_start();
    let indented = words.len() < line.len();
    let number = words.split_once(": ").is_some_and(|(n, _)| n.bytes().all(|byte| byte.is_ascii_digit()));
    indented && (number || (words.starts_with("at ") && line.starts_with("             ")))
}

/// ``/srv/app.rb:3:in `connect'``, with nothing behind it: a message would stand there.
fn is_rake_frame(line: &str) -> bool {
    line.ends_with('\'') && [":in `", ":in '"].iter().any(|part| line.split(part).count() == 2)
}

fn has_words(line: &str) -> bool {
    line.chars().any(char::is_alphanumeric)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How real servers ended, and the line an operator needs.
    const ENDS: &[(&str, &str)] = &[
        (
            "  File \"/srv/bad.py\", line 1\n    x = (\n        ^\nSyntaxError: '(' was never closed",
            "SyntaxError: '(' was never closed",
        ),
        (
            "ModuleNotFoundError: No module named 'nope'\nNo module named 'nope'\n\
             [2026-11-26 06:05:31 +0000] [20744] [INFO] Worker exiting (pid: 20744)\n\
             [2026-11-26 06:05:31 +0000] [20743] [INFO] Control socket listening at /run/gunicorn.ctl\n\
             [2026-11-26 06:05:31 +0000] [20743] [ERROR] Worker (pid:20744) exited with code 3.\n\
             [2026-11-26 06:05:31 +0000] [20743] [ERROR] Shutting down: Master\n\
             [2026-11-26 06:05:31 +0000] [20743] [ERROR] Reason: Worker failed to boot.",
            "No module named 'nope'",
        ),
        (
            "ConnectionRefusedError: cannot reach the database at db:5432\n\n\
             ERROR:    Application startup failed. Exiting.\n\
             INFO:     Waiting for child process [20764]\n\
             ERROR:    Child process [20764] failed to start, stopping the parent process.\n\
             INFO:     Stopping parent process [20762]\n",
            "ConnectionRefusedError: cannot reach the database at db:5432",
        ),
        (
            "pydantic_core._pydantic_core.ValidationError: 2 validation errors for Settings\ndatabase_url\n  \
             Field required [type=missing, input_value={}, input_type=dict]\n    \
             For further information visit https://errors.pydantic.dev/2.14/v/missing\nsecret\n  \
             Field required [type=missing, input_value={}, input_type=dict]\n    \
             For further information visit https://errors.pydantic.dev/2.14/v/missing",
            "pydantic_core._pydantic_core.ValidationError: 2 validation errors for Settings",
        ),
        (
            "const x = ;\n          ^\n\nSyntaxError: Unexpected token ';'\n    at wrapSafe (node:internal:1464:18)\n\n\
             Node.js v20.20.2\nnpm notice\nnpm notice New minor version of npm available! 11.19.1 -> 11.21.2\nnpm notice",
            "SyntaxError: Unexpected token ';'",
        ),
        (
            "Error: Cannot find module 'express'\nRequire stack:\n- /srv/a.js\n- /srv/b.js\n    \
             at Module._load (node:internal:1091:12)\n    at Function.runMain (node:internal:164:12) {\n  \
             code: 'MODULE_NOT_FOUND',\n  requireStack: [ '/srv/a.js' ]\n}\n\nNode.js v20.20.2",
            "Error: Cannot find module 'express'",
        ),
        (
            "Error: listen EADDRINUSE: address already in use :::3000\n    at Server.listen (node:net:2067:7)\n\
             Emitted 'error' event on Server instance at:\n    at emitErrorNT (node:net:1944:8)\n    \
             at process.processTicksAndRejections (node:internal:82:21) {\n  code: 'EADDRINUSE',\n  port: 3000\n}\n\n\
             Node.js v20.20.2",
            "Error: listen EADDRINUSE: address already in use :::3000",
        ),
        (
            "! Unable to load application: NameError: uninitialized constant ActiveJob\n\
             /srv/job.rb:1:in `<top (required)>': uninitialized constant ActiveJob (NameError)\n\n\
             class ApplicationJob < ActiveJob::Base\n                       ^^^^^^^^^\nDid you mean?  ActiveModel\n\t\
             from /usr/share/kernel.rb:27:in `require'",
            "/srv/job.rb:1:in `<top (required)>': uninitialized constant ActiveJob (NameError)",
        ),
        (
            "builder.rb:116:in `eval': config.ru:12: syntax error, unexpected end-of-input (SyntaxError)\n\
             this is ( not ruby\n                  ^\n\tfrom builder.rb:116:in `new_from_string'",
            "builder.rb:116:in `eval': config.ru:12: syntax error, unexpected end-of-input (SyntaxError)",
        ),
        (
            "rails aborted!\nNameError: uninitialized constant Post\n/srv/config/routes.rb:2:in `<main>'\n\
             Tasks: TOP => db:migrate\n(See full trace by running task with --trace)",
            "NameError: uninitialized constant Post",
        ),
        (
            "up\npanic: no DATABASE_URL\n\ngoroutine 1 [running]:\nmain.main()\n\t/srv/main.go:3 +0x65\nexit status 2",
            "panic: no DATABASE_URL",
        ),
        (
            "thread 'main' (20916) panicked at r.rs:1:77:\nno DATABASE_URL\nstack backtrace:\n   \
             0: __rustc::rust_begin_unwind\n             at /rustc/library/std/src/panicking.rs:689:5\n\
             note: Some details are omitted, run with `RUST_BACKTRACE=full` for a verbose backtrace.",
            "no DATABASE_URL",
        ),
        (
            "npm error Missing script: \"start\"\nnpm error A complete log of this run can be found in: /x",
            "npm error Missing script: \"start\"",
        ),
        (
            "Exception in thread \"main\" java.io.IOException: no\n\tat a.B.main(B.java:3)",
            "Exception in thread \"main\" java.io.IOException: no",
        ),
        (" Starting FastAPI\n \n    Path does not exist nope.py\n\n", "    Path does not exist nope.py"),
        ("a list:\n- one\n- two", "- two"),
        ("{\n  a: 1\n}\nnothing of Node.js\n}", "nothing of Node.js"),
    ];

    #[test]
    fn the_cause_is_found_above_what_servers_say_after_it() {
        for (text, wanted) in ENDS {
            let lines: Vec<String> = text.split('\n').map(str::to_owned).collect();
            assert_eq!(telling(&lines).map(String::as_str), Some(*wanted), "{text}");
        }
    }

    #[test]
    fn where_nothing_else_is_said_the_last_line_stands() {
        for (text, wanted) in [
            ("Node.js v20.20.2", "Node.js v20.20.2"),
            ("  code: 'X',\n}\nNode.js v20.20.2", "  code: 'X',"),
            (
                "long ago\nINFO:     127.0.0.1:0 - \"GET / HTTP/1.1\" 200 OK",
                "INFO:     127.0.0.1:0 - \"GET / HTTP/1.1\" 200 OK",
            ),
            ("^", "^"),
            ("", ""),
        ] {
            let lines: Vec<String> = text.split('\n').map(str::to_owned).collect();
            assert_eq!(telling(&lines).map(String::as_str), Some(wanted), "{text}");
        }
        assert_eq!(telling(&[]), None);
    }

    #[test]
    fn the_last_lines_begin_with_the_cause_where_that_is_further_up() {
        let lines: Vec<String> = ["up", "TypeError: boom", "    at a", "    at b", "", "Node.js v20.20.2"]
            .map(str::to_owned)
            .to_vec();
        assert_eq!(with_cause(&lines, 2), &lines[1..]);
        assert_eq!(with_cause(&lines, 9), &lines[..]);
        assert_eq!(with_cause(&lines[..1], 0), &lines[..1]);
        assert!(with_cause(&[], 5).is_empty());
    }
}
