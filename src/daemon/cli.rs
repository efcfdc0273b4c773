//! The command line: words to a [`Command`], nothing else.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use crate::daemon::operation::Number;

/// Exit status for a call that makes no sense, after sysexits.h.
pub const USAGE: u8 = 64;

/// Exit status for a configuration that makes no sense, after sysexits.h.
pub const CONFIG: u8 = 78;

/// What edge was asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The configuration file that was named; without one, the usual places are looked at.
    pub config: Option<PathBuf>,
    /// What to do.
    pub command: Command,
}

/// What edge can do.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Run in the foreground until SIGTERM (the default)
    Run,
    /// Check the configuration: print every problem, or ok and each app's final command line; what is only warned of does not fail
    Check {
        /// Look at each name as a CA would: its A and AAAA records, and who answers there; exit with 1 if one would fail
        #[arg(long)]
        dns: bool,
    },
    /// Show listeners, apps, workers and certificates of the running edge
    Status {
        /// Print JSON, which has every worker
        #[arg(long)]
        json: bool,
        /// Show every worker, however many there are
        #[arg(long)]
        all: bool,
    },
    /// Show the certificates of the running edge
    #[command(args_conflicts_with_subcommands = true)]
    Certs {
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Exit with 1 if a certificate is missing, expired or close to its end
        #[arg(long)]
        check: bool,
        /// What to do instead
        #[command(subcommand)]
        action: Option<CertsAction>,
    },
    /// Something a running edge does
    #[command(flatten)]
    Operate(Operate),
    /// Print the final command line and environment of an app's worker
    Explain {
        /// Name of the app
        app: String,
    },
    /// Print the JSON Schema of the configuration, by which editors complete and check it
    Schema,
    /// Print the root certificate of edge's own CA, to be trusted by browsers and clients
    Trust,
    /// Serve the built-in demo worker on EDGE_SOCKET, or on PORT (8000) of 127.0.0.1
    Hello,
}

/// What a running edge can be asked to do.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Operate {
    /// Apply the changed configuration, or roll an app to fresh workers; nothing changes on failure
    Reload {
        /// Name of the app whose workers are replaced in any case
        app: Option<String>,
    },
    /// Replace an app's workers by fresh ones
    Restart {
        /// Name of the app
        app: String,
    },
    /// Hold an app at a number of workers, whatever the load, until `scale APP auto` or a change of how the file runs them; if new ones
    /// fail to start it exits with 1, and goes on trying
    Scale {
        /// Name of the app
        app: String,
        /// How many, also fewer or more than a range in the file allows; `auto` is what the file says
        #[arg(value_name = "N|auto")]
        workers: Number,
    },
    /// Print what workers printed
    Logs {
        /// Name of the app; without one, all of them
        app: Option<String>,
        /// Go on with what they print from now on
        #[arg(short, long)]
        follow: bool,
    },
    /// Answer an app's visitors with 503 and a message, and leave its workers alone
    Maintenance {
        /// Begin or end
        switch: Switch,
        /// Name of the app
        app: String,
        /// What visitors are told
        #[arg(short, long, value_name = "TEXT")]
        message: Option<String>,
    },
}

/// What can be done with certificates.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum CertsAction {
    /// Obtain a new certificate at once, and wait for it; the wait a CA has asked for is kept
    Renew {
        /// The domain, as an app lists it
        name: String,
    },
    /// Take over the certificates that certbot or Caddy keeps, for the domains of the configuration that have `tls: auto`
    Import {
        /// /etc/letsencrypt or its `live`; Caddy's data directory, its `certificates`, or the home of Caddy's user
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
}

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[expect(missing_docs, reason = "the words say it")]
pub enum Switch {
    On,
    Off,
}

#[derive(Parser)]
#[command(
    name = "edge",
    version,
    about = "Serves web applications: TLS and certificates, HTTP/1.1 and HTTP/2, and the worker processes behind them",
    after_help = "Example:\n  edge --config edge.yaml\n\nExit status: 0 done or drained, 1 failed or forced, 64 usage, 78 configuration.",
    subcommand_required = false
)]
struct Words {
    /// Configuration file [default: ./edge.yaml, then /etc/edge/edge.yaml]
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Reads the words of a call, the program's name first. The error also carries the texts of `--help` and `--version`:
/// see [`exit_status`].
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Call, clap::Error> {
    let words = Words::try_parse_from(words)?;
    Ok(Call { config: words.config, command: words.command.unwrap_or(Command::Run) })
}

/// The exit status that goes with what [`parse`] returned instead of a call.
pub fn exit_status(error: &clap::Error) -> u8 {
    if error.use_stderr() { USAGE } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Call, clap::Error> {
        parse(line.split(' ').map(OsString::from))
    }

    #[test]
    fn every_promised_call_is_understood() {
        let file = || Some(PathBuf::from("a.yaml"));
        for (line, config, command) in [
            ("edge", None, Command::Run),
            ("edge --config a.yaml", file(), Command::Run),
            ("edge run --config a.yaml", file(), Command::Run),
            ("edge --config=a.yaml check", file(), Command::Check { dns: false }),
            ("edge check --dns", None, Command::Check { dns: true }),
            ("edge status", None, Command::Status { json: false, all: false }),
            ("edge status --json --config a.yaml", file(), Command::Status { json: true, all: false }),
            ("edge status --all", None, Command::Status { json: false, all: true }),
            ("edge certs --json", None, Command::Certs { json: true, check: false, action: None }),
            (
                "edge certs renew a.example",
                None,
                Command::Certs {
                    json: false,
                    check: false,
                    action: Some(CertsAction::Renew { name: "a.example".to_owned() }),
                },
            ),
            (
                "edge certs import /etc/letsencrypt",
                None,
                Command::Certs {
                    json: false,
                    check: false,
                    action: Some(CertsAction::Import { dir: "/etc/letsencrypt".into() }),
                },
            ),
            ("edge explain api", None, Command::Explain { app: "api".to_owned() }),
            ("edge reload", None, Command::Operate(Operate::Reload { app: None })),
            (
                "edge reload api --config a.yaml",
                file(),
                Command::Operate(Operate::Reload { app: Some("api".to_owned()) }),
            ),
            ("edge restart api", None, Command::Operate(Operate::Restart { app: "api".to_owned() })),
            (
                "edge scale api 3",
                None,
                Command::Operate(Operate::Scale { app: "api".to_owned(), workers: Number::Held(3) }),
            ),
            (
                "edge scale api auto",
                None,
                Command::Operate(Operate::Scale { app: "api".to_owned(), workers: Number::Auto }),
            ),
            ("edge logs", None, Command::Operate(Operate::Logs { app: None, follow: false })),
            (
                "edge logs api -f",
                None,
                Command::Operate(Operate::Logs { app: Some("api".to_owned()), follow: true }),
            ),
            (
                "edge maintenance on api -m Soon.",
                None,
                Command::Operate(Operate::Maintenance {
                    switch: Switch::On,
                    app: "api".to_owned(),
                    message: Some("Soon.".to_owned()),
                }),
            ),
            ("edge schema", None, Command::Schema),
            ("edge trust", None, Command::Trust),
            ("edge hello", None, Command::Hello),
        ] {
            assert_eq!(read(line).expect(line), Call { config, command }, "{line}");
        }
    }

    #[test]
    fn a_call_that_makes_no_sense_is_64_and_help_is_0() {
        for (line, status) in [
            ("edge serve", 64),
            ("edge --confg a.yaml", 64),
            ("edge explain", 64),
            ("edge status api", 64),
            ("edge --config", 64),
            ("edge scale api", 64),
            ("edge scale api many", 64),
            ("edge scale api 0", 64),
            ("edge scale api 1001", 64),
            ("edge maintenance api", 64),
            ("edge --help", 0),
            ("edge help", 0),
            ("edge status --help", 0),
            ("edge --version", 0),
        ] {
            let error = read(line).expect_err(line);
            assert_eq!(exit_status(&error), status, "{line}");
        }
    }
}
