//! What was typed.
//!
//! [`Options`] holds words: nothing here is opened, resolved or judged. [`crate::config`] turns them, together with the
//! environment and the file, into what to run on, so that every value is checked in one place whoever gave it. For the
//! same reason clap does not read the environment: the help names each variable, and the configuration looks it up.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// The command line was carried out, and what was started has ended as asked.
pub const EXIT_OK: u8 = 0;
/// Anything that is neither a clean end nor a usage error: a port that is taken, a directory that cannot be written.
pub const EXIT_FAILED: u8 = 1;
/// The command line or the configuration is wrong (`EX_USAGE` of sysexits.h).
pub const EXIT_USAGE: u8 = 64;

/// A pull-through caching proxy for OCI and Docker registries.
#[derive(Clone, Debug, Parser)]
#[command(name = "layerhold", version, max_term_width = 100)]
#[command(after_help = PRECEDENCE)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the program is asked to do.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// Run the proxy until SIGTERM or SIGINT.
    ///
    /// The first signal lets responses in progress end (at most `timeouts.drain`) and exits with 0; a second one stops
    /// at once and exits with 1.
    #[command(after_help = PRECEDENCE)]
    Serve(Options),
    /// Print the configuration that `serve` would run on, as TOML, and exit.
    ///
    /// Nothing is opened but the configuration file and the files that it names, which have to be what they should: a port
    /// that is taken or a directory that cannot be written shows only when serving.
    #[command(after_help = PRECEDENCE)]
    Check(Options),
    /// Print what makes a client pull through this proxy, as the content of one file, and exit.
    ///
    /// The flags, variables and file are those of `serve`: they say which registries there are. Only the snippet goes to
    /// stdout, so that it can be redirected into the file; its first line is a comment with the file's usual path, where the
    /// format has comments.
    #[command(after_help = PRECEDENCE)]
    ClientConfig(ClientConfig),
    /// Make a running proxy forget a tag, a repository, or content.
    ///
    /// A tag is asked upstream at its next pull, however fresh it was. Of a repository all tags are forgotten, and that it
    /// holds its content, which is then proven anew before it is served there. Content is removed from the disk. Prints
    /// one line for each reference; that nothing was stored is no error. Exits with 64 when a reference is malformed, and
    /// with 1 when no proxy answers or it refuses.
    #[command(after_help = PRECEDENCE)]
    Purge(Purge),
    /// Check everything that is kept: content against its digests, and all records.
    ///
    /// The flags, variables and file are those of `serve`: they say where the cache is. When a running proxy has it, that
    /// one is asked, at its admin address, to check itself. Nothing is changed without --repair, but that a running proxy
    /// sets damaged content aside whenever it finds some. Says what is wrong, a line each, and a summary; on a terminal also
    /// how far it is. SIGINT and SIGTERM end it with what was found so far. Exits with 0 when nothing was wrong, or --repair
    /// has made all of it right; with 1 when something was wrong or not everything was looked at.
    #[command(after_help = PRECEDENCE)]
    Verify(Verify),
}

/// What makes a client pull through the proxy.
#[derive(Clone, Debug, clap::Args)]
pub struct ClientConfig {
    /// The client
    #[arg(value_enum)]
    pub client: Client,

    /// What clients call the proxy, as in `cache.example:5000` [default: where it listens]
    ///
    /// The default is the first address of the registry API; where that stands for all addresses, the machine's name and
    /// its port. Needed when the port is 0, or when clients know the machine by another name. With `https://` or `http://`
    /// before it, that is what clients speak, as where a proxy in front speaks TLS; else what the registry API speaks.
    #[arg(long, value_name = "HOST:PORT")]
    pub address: Option<String>,

    /// Which registries there are, and where the proxy listens.
    #[command(flatten)]
    pub options: Options,
}

/// A client that can be told to pull through the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Client {
    /// dockerd: `daemon.json`
    Docker,
    /// containerd: `hosts.toml` for every registry
    Containerd,
    /// podman, buildah and skopeo: a file of `registries.conf.d`
    Podman,
    /// CRI-O: a file of `registries.conf.d`
    Crio,
    /// k3s and RKE2: `registries.yaml`
    K3s,
    /// BuildKit: `buildkitd.toml`
    Buildkit,
}

/// What is purged, and where.
#[derive(Clone, Debug, clap::Args)]
pub struct Purge {
    /// What to forget, beginning with its registry: docker.io/library/debian:12 (a tag), docker.io/library/debian (a
    /// repository), docker.io/library/debian@sha256:… or sha256:… (that content, in every repository)
    #[arg(value_name = "REFERENCE", required = true)]
    pub references: Vec<String>,

    /// The admin address of the proxy [default: the one that `serve` would listen on, given the same flags]
    ///
    /// A host and a port, as in `cache.example:9555`, or `https://cache.example:9555` for one that speaks TLS with a
    /// certificate that the machine trusts. With it no configuration is read.
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<String>,

    /// The flags of `serve`, by which the admin address is found.
    #[command(flatten)]
    pub options: Options,
}

/// How everything that is kept is checked.
#[derive(Clone, Debug, clap::Args)]
pub struct Verify {
    /// Set damaged content aside, and drop broken records
    ///
    /// What is set aside is in the directory `staging` of the cache until the next start, and is not served. It is pulled
    /// again when it is asked for. What is not ours is told, and left where it is.
    #[arg(long)]
    pub repair: bool,

    /// How much is read in a second, such as `200MiB` [default: as fast as the disk is; 64MiB by a running proxy]
    #[arg(long, value_name = "SIZE")]
    pub rate: Option<String>,

    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,

    /// Have the proxy at this admin address check itself [default: whoever has the cache directory]
    ///
    /// A host and a port, as in `cache.example:9555`, or `https://cache.example:9555` for one that speaks TLS with a
    /// certificate that the machine trusts. With it no configuration is read.
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<String>,

    /// The flags of `serve`, by which the cache directory is found.
    #[command(flatten)]
    pub options: Options,
}

/// The flags of one process. Each has an environment variable; the list of upstreams belongs in the file.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Options {
    /// The configuration file, in TOML [variable: LAYERHOLD_CONFIG] [default: none]
    ///
    /// Needed for freshness, timeouts, limits and everything that belongs to one upstream. Unknown keys are errors.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Where the registry API listens [variable: LAYERHOLD_LISTEN] [key: listen] [default: 127.0.0.1:5000]
    ///
    /// An IP address and a port; repeat the flag or separate with commas for several. Change it when clients are on
    /// other machines, as in `0.0.0.0:5000`. Port 0 takes a free one and logs it.
    #[arg(long, value_name = "ADDR", value_delimiter = ',')]
    pub listen: Vec<String>,

    /// Where metrics and health are, and orders are taken [variable: LAYERHOLD_ADMIN_LISTEN] [key: admin_listen] [default: 127.0.0.1:9555]
    ///
    /// Never the address of the registry API. Change it when Prometheus or a health check is on another machine; whoever
    /// reaches it sees which upstreams are used. To purge and to have it check itself is for the machine itself, unless
    /// `access.admin_networks` or `access.admin_identities` say otherwise.
    #[arg(long, value_name = "ADDR")]
    pub admin_listen: Option<String>,

    /// Where the cache is kept [variable: LAYERHOLD_CACHE_DIR] [key: cache.dir] [default: see --help]
    ///
    /// The default is $CACHE_DIRECTORY, which systemd sets, else $XDG_CACHE_HOME/layerhold, else
    /// $HOME/.cache/layerhold. Made when absent; refused when it holds anything that is not ours. Change it to use a
    /// disk of its own.
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,

    /// How much the cache keeps [variable: LAYERHOLD_CACHE_SIZE] [key: cache.size] [default: 50GiB, or 80 % of what is
    /// free]
    ///
    /// Bytes of content and metadata, such as `200GiB`. The default is chosen at the first start: 50GiB, or 80 % of what
    /// is then free if that is less. Change it to what the disk can spare.
    #[arg(long, value_name = "SIZE")]
    pub cache_size: Option<String>,

    /// A registry that clients may pull from [variable: LAYERHOLD_UPSTREAM] [key: upstream] [default: the built-in list]
    ///
    /// Repeatable; the variable separates several with commas. The first serves requests that name no registry. Any
    /// upstream given here replaces those of the file, and any given at all replaces the built-in list: docker.io, ghcr.io,
    /// quay.io, registry.k8s.io, gcr.io, mcr.microsoft.com, public.ecr.aws, registry.gitlab.com. What is not on the list
    /// is never dialled. Use the file for anything beyond name and address.
    #[arg(long, value_name = "NAMESPACE=URL")]
    pub upstream: Vec<String>,

    /// How the log is written: text or json [variable: LAYERHOLD_LOG_FORMAT] [key: log_format] [default: text on a
    /// terminal, else json]
    ///
    /// Goes to stderr. `json` is one object a line. Change it when the guess is wrong for whoever reads the log.
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,

    /// How much is logged: error, warn, info, debug or trace [variable: LAYERHOLD_LOG_LEVEL] [key: log_level] [default:
    /// info]
    ///
    /// `info` is one line for each request; `warn` only what needs attention; `debug` adds the decisions behind an
    /// answer.
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,

    /// Rights that `serve` gives away: none or landlock [variable: LAYERHOLD_SANDBOX] [key: sandbox] [default: none]
    ///
    /// With `landlock` the kernel lets the process, and the credential helpers and verifiers that it runs, write below the
    /// cache directory and nowhere else. Needs Linux 5.19 or newer; elsewhere a warning says so. Change it unless one of
    /// those programs keeps files of its own, or something else confines the process already.
    #[arg(long, value_name = "KIND")]
    pub sandbox: Option<String>,
}

/// Why the command line is not carried out.
#[derive(Debug)]
pub enum Stop {
    /// Help or the version was asked for; the text is for stdout.
    Told(clap::Error),
    /// A command is missing; the help is for stderr.
    Incomplete(clap::Error),
    /// It cannot be understood; one line for stderr.
    Refused(String),
}

/// Reads the command line; the first word is the program's name.
pub fn parse<I>(words: I) -> Result<Args, Stop>
where
    I: IntoIterator<Item: Into<OsString> + Clone>,
{
    use clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand as Missing;

    Args::try_parse_from(words).map_err(|error| {
        if !error.use_stderr() {
            return Stop::Told(error);
        }
        if error.kind() == Missing {
            return Stop::Incomplete(error);
        }
        let text = error.render().to_string();
        // What is missing stands on lines of its own below the first.
        let paragraph = text.split("\n\n").next().unwrap_or_default();
        let words: Vec<&str> = paragraph.split_whitespace().collect();
        let line = words.join(" ");
        let line = line.strip_prefix("error: ").unwrap_or(&line);
        Stop::Refused(format!("{line} (see `layerhold --help`)"))
    })
}

impl Stop {
    /// What the process exits with.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Told(_) => ExitCode::from(EXIT_OK),
            Self::Incomplete(_) | Self::Refused(_) => ExitCode::from(EXIT_USAGE),
        }
    }
}

const PRECEDENCE: &str = "Each value is taken from the first that has it: the flag, the environment variable, the \
configuration file, the default. An empty variable counts as unset. Exit codes: 0 stopped as asked, 64 the command line or \
the configuration is wrong, 1 anything else.";

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn options(words: &[&str]) -> Options {
        let words = ["layerhold", "serve"].iter().chain(words);
        match parse(words).unwrap().command {
            Command::Serve(options) | Command::Check(options) => options,
            Command::ClientConfig(other) => panic!("{other:?}"),
            Command::Purge(purge) => purge.options,
            Command::Verify(verify) => verify.options,
        }
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn flags_are_kept_as_typed() {
        let options = options(&[
            "--listen",
            "a:1,b:2",
            "--listen=c:3",
            "--cache-size",
            "lots",
            "--upstream",
            "x=y,z",
            "--upstream",
            "u=v",
        ]);
        assert_eq!(options.listen, ["a:1", "b:2", "c:3"]);
        assert_eq!(options.cache_size.as_deref(), Some("lots"));
        assert_eq!(options.upstream, ["x=y,z", "u=v"]);
        assert_eq!(options.admin_listen, None);
    }

    #[test]
    fn a_client_is_one_word_and_takes_the_flags_of_serve() {
        let words = "layerhold client-config k3s --address c.example:5000 --listen a:1";
        let Command::ClientConfig(typed) = parse(words.split(' ')).unwrap().command else {
            panic!("{words}")
        };
        assert_eq!(typed.client, Client::K3s);
        assert_eq!(typed.address.as_deref(), Some("c.example:5000"));
        assert_eq!(typed.options.listen, ["a:1"]);
        for words in [
            "client-config",
            "client-config cri-o",
            "client-config k3s docker",
        ] {
            let words = format!("layerhold {words}");
            let stop = parse(words.split(' ')).unwrap_err();
            assert_eq!(stop.exit_code(), ExitCode::from(64), "{words}");
        }
    }

    #[test]
    fn help_and_version_succeed_and_everything_else_is_a_usage_error() {
        for words in [&["--help"][..], &["--version"], &["serve", "--help"]] {
            let stop = parse(["layerhold"].iter().chain(words)).unwrap_err();
            assert!(matches!(stop, Stop::Told(_)), "{words:?}");
            assert_eq!(stop.exit_code(), ExitCode::from(0));
        }
        for words in [
            &["sing"][..],
            &["serve", "--loud"],
            &["serve", "x"],
            &["serve", "--listen"],
            &["purge"],
        ] {
            let stop = parse(["layerhold"].iter().chain(words)).unwrap_err();
            assert_eq!(stop.exit_code(), ExitCode::from(64), "{words:?}");
            let Stop::Refused(line) = stop else {
                panic!("{words:?}: {stop:?}")
            };
            assert!(!line.contains('\n') && !line.starts_with("error"), "{line}");
        }
        let Stop::Refused(line) = parse(["layerhold", "purge"]).unwrap_err() else {
            panic!("a purge of nothing is carried out")
        };
        assert!(line.contains("<REFERENCE>..."), "{line}");
        let stop = parse(["layerhold"]).unwrap_err();
        assert!(matches!(stop, Stop::Incomplete(_)));
        assert_eq!(stop.exit_code(), ExitCode::from(64));
    }

    #[test]
    fn help_names_every_variable_and_the_precedence() {
        for name in ["serve", "check", "client-config", "purge", "verify"] {
            let mut args = Args::command();
            args.build();
            let command = args.find_subcommand_mut(name).unwrap();
            let help = command.render_long_help().to_string();
            for flag in command.get_arguments().filter_map(|it| it.get_long()) {
                // What belongs to one command belongs to no environment.
                let own = ["help", "address", "admin", "repair", "rate", "json"];
                if !own.contains(&flag) {
                    let name = flag.replace('-', "_").to_uppercase();
                    let variable = format!("[variable: LAYERHOLD_{name}]");
                    assert!(help.contains(&variable), "{variable}");
                }
            }
            let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(help.contains("the flag, the environment variable, the configuration file"));
        }
    }
}
