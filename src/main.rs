//! Flags, configuration, runtime, app, exit code.

use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use prometheus::Registry;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::system::uname;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use layerhold::app::{App, Running};
use layerhold::cache::{self, Cache, Verify, VerifyProgress, VerifyReport};
use layerhold::cli::{
    self, ClientConfig, Command, EXIT_FAILED, EXIT_OK, EXIT_USAGE, Options, Stop,
};
use layerhold::config::{Config, Sandbox};
use layerhold::log::Logging;
use layerhold::net::{Chain, parse_size};
use layerhold::oci::FullReference;
use layerhold::operator::{self, Admin};
use layerhold::sandbox::{self, Confined};
use layerhold::server;
use layerhold::upstream;

// The C library's allocator keeps what ten thousand clients needed for good; this one gives it back within seconds.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let command = match cli::parse(std::env::args_os()) {
        Ok(args) => args.command,
        Err(stop) => {
            match &stop {
                Stop::Told(text) | Stop::Incomplete(text) => text.print().unwrap_or_default(),
                Stop::Refused(line) => complain(line),
            }
            return stop.exit_code();
        }
    };
    let code = match command {
        Command::Serve(options) => configured(&options).map(|config| serve(config, &options)),
        Command::Check(options) => configured(&options).map(|config| print(&config.report())),
        Command::ClientConfig(typed) => client_config(&typed),
        Command::Purge(asked) => purge(&asked),
        Command::Verify(asked) => verify(&asked),
    };
    ExitCode::from(code.unwrap_or(EXIT_USAGE))
}

/// What to run on; `None` when that is wrong, which has then been said.
fn configured(options: &Options) -> Option<Config> {
    said(checked(options))
}

/// What there is; `None` when there is an error instead, which is then said.
fn said<T>(result: Result<T, String>) -> Option<T> {
    result.inspect_err(|error| complain(error)).ok()
}

/// What to run on, with the files that it names.
fn checked(options: &Options) -> Result<Config, String> {
    let config =
        Config::load(options, &environment()).map_err(|error| Chain(&error).to_string())?;
    server::check_files(&config.server).map_err(|error| Chain(&error).to_string())?;
    for upstream in &config.proxy.upstreams {
        upstream::check_files(&upstream.connection)
            .map_err(|error| format!("upstream[{}]: {}", upstream.namespace, Chain(&error)))?;
    }
    server::check_access_files(&config.access)
        .map_err(|error| format!("access: {}", Chain(&error)))?;
    Ok(config)
}

/// The configuration, for a command that asks no upstream: an operator's shell has no secrets of the service's.
fn load(options: &Options) -> Result<Config, String> {
    let config = Config::load_for_commands(options, &environment());
    config.map_err(|error| Chain(&error).to_string())
}

fn environment() -> BTreeMap<String, String> {
    // What is not UTF-8 gets a replacement character, which the configuration refuses where it matters.
    let text = |os: OsString| os.to_string_lossy().into_owned();
    let variables = std::env::vars_os();
    variables
        .map(|(name, value)| (text(name), text(value)))
        .collect()
}

/// Prints what a client needs; `None` when that cannot be said, and why has been.
fn client_config(typed: &ClientConfig) -> Option<u8> {
    let config = said(load(&typed.options))?;
    let machine = uname();
    let host_name = machine.nodename().to_string_lossy();
    let snippet = config.client_config(typed.client, typed.address.as_deref(), &host_name);
    let snippet = said(snippet.map_err(|error| Chain(&error).to_string()))?;
    snippet.remarks.iter().for_each(|it| complain(it));
    Some(print(&snippet.text))
}

/// Has a running proxy purge what was typed; `None` when that is wrong, which has then been said.
fn purge(asked: &cli::Purge) -> Option<u8> {
    let mut references = Vec::new();
    for text in &asked.references {
        match FullReference::parse(text) {
            Ok(reference) => references.push(reference),
            Err(error) => {
                complain(&format!("{text:?}: {}", Chain(&error)));
                return None;
            }
        }
    }
    let admin = match &asked.admin {
        Some(typed) => typed_admin(typed)?,
        None => admin_of(&said(load(&asked.options))?)?,
    };
    let Some(answer) = block_on(operator::purge(&admin, &references)) else {
        return Some(EXIT_FAILED);
    };
    match answer {
        Ok(report) => {
            let lines = report.purged.iter().map(operator::told);
            Some(print(&lines.map(|line| line + "\n").collect::<String>()))
        }
        Err(error) => {
            complain(&Chain(&error).to_string());
            Some(EXIT_FAILED)
        }
    }
}

/// Runs a command's own work; `None` when it cannot be, which has then been said.
fn block_on<T>(work: impl Future<Output = T>) -> Option<T> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build();
    let runtime = said(runtime.map_err(|error| format!("could not start the runtime: {error}")))?;
    let done = runtime.block_on(work);
    // What still runs is not waited for.
    runtime.shutdown_timeout(LEAVING_MAX);
    Some(done)
}

/// Checks all that is kept; `None` when what was typed is wrong, which has then been said.
fn verify(typed: &cli::Verify) -> Option<u8> {
    let rate = typed.rate.as_deref().map(parse_size).transpose();
    let rate = said(rate.map_err(|error| format!("--rate: {error}")))?;
    let asked = Verify {
        rate: rate.unwrap_or(0),
        repair: typed.repair,
    };
    let report = match &typed.admin {
        Some(typed) => {
            let admin = typed_admin(typed)?;
            block_on(verify_there(&admin, None, asked))
        }
        None => {
            let config = said(load(&typed.options))?;
            block_on(verify_here(&config, asked))
        }
    };
    let Some(report) = report.flatten() else {
        return Some(EXIT_FAILED);
    };
    let text = if typed.json {
        // Numbers and strings can always be written.
        serde_json::to_string(&report).unwrap_or_default() + "\n"
    } else {
        operator::told_report(&report)
    };
    let printed = print(&text);
    Some(if report.is_clean(asked) {
        printed
    } else {
        EXIT_FAILED
    })
}

/// Checks the cache directory, or has its holder do it; `None` when neither can be done, which has then been said.
async fn verify_here(config: &Config, asked: Verify) -> Option<VerifyReport> {
    let mut signals = said(Signals::listen().map_err(|error| error.to_string()))?;
    let cache = config.cache.clone();
    let opening = tokio::task::spawn_blocking(move || {
        let metrics = cache::Metrics::register(&Registry::new());
        let metrics = metrics.map_err(|error| error.to_string());
        metrics.map(|metrics| Cache::open_to_verify(&cache, metrics, asked.repair))
    });
    // A directory that is being read is left as it is.
    let opened = tokio::select! {
        opened = opening => said(opened.map_err(|error| error.to_string()).flatten())?,
        name = signals.next() => {
            complain(&format!("{name} before anything was looked at"));
            return None;
        }
    };
    let cache = match opened {
        Ok(cache) => cache,
        Err(error @ cache::OpenError::InUse { .. }) => {
            complain(&format!(
                "{}, which is asked to check itself",
                Chain(&error)
            ));
            let directory = cache::identity(&config.cache.dir);
            return verify_there(&admin_of(config)?, directory, asked).await;
        }
        Err(error) => {
            complain(&Chain(&error).to_string());
            return None;
        }
    };
    let stop = CancellationToken::new();
    let (progress, seen) = watch::channel(VerifyProgress::default());
    let mut line = ProgressLine::new();
    let mut verifying = std::pin::pin!(cache.verify(asked, &stop, &progress));
    loop {
        // The check is not dropped but told, so that it reports what it has found.
        tokio::select! {
            report = verifying.as_mut() => return Some(report),
            name = signals.next() => {
                if stop.is_cancelled() {
                    complain(&format!("a second {name}: stopped without a report"));
                    return None;
                }
                stop.cancel();
            }
            () = tokio::time::sleep(PROGRESS_INTERVAL) => line.show(*seen.borrow()),
        }
    }
}

/// Has a running proxy check itself; `None` when it does not, which has then been said.
async fn verify_there(
    admin: &Admin,
    directory: Option<String>,
    asked: Verify,
) -> Option<VerifyReport> {
    let mut signals = said(Signals::listen().map_err(|error| error.to_string()))?;
    let mut line = ProgressLine::new();
    let directory = directory.as_deref();
    let verifying = operator::verify(admin, directory, asked, |now| line.show(now));
    // Dropped, the connection is closed, which stops the check.
    let report = tokio::select! {
        report = verifying => report.map_err(|error| Chain(&error).to_string()),
        name = signals.next() => Err(format!("{name}: the proxy was told to stop checking")),
    };
    drop(line);
    said(report)
}

/// One line on a terminal that is written again and again; nothing where nobody looks.
struct ProgressLine {
    began: Instant,
    is_seen: bool,
    is_shown: bool,
}

impl ProgressLine {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            is_seen: io::stderr().is_terminal(),
            is_shown: false,
        }
    }

    fn show(&mut self, progress: VerifyProgress) {
        if self.is_seen {
            self.is_shown = true;
            let line = operator::told_progress(progress, self.began.elapsed());
            // To the line's beginning, and what was there is erased (ECMA-48, EL).
            let _ = write!(io::stderr(), "\r\x1b[K{line}");
        }
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        if self.is_shown {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// An admin port as it was typed; `None` when it is none, which has then been said.
fn typed_admin(typed: &str) -> Option<Admin> {
    let (is_https, address) = match typed.strip_prefix("https://") {
        Some(rest) => (true, rest),
        None => (false, typed.strip_prefix("http://").unwrap_or(typed)),
    };
    let port = address
        .rsplit_once(':')
        .map(|(_, port)| port.parse::<u16>());
    let address = address.to_owned();
    match port {
        Some(Ok(1..)) if is_https => {
            said(Admin::trusted(address).map_err(|error| Chain(&error).to_string()))
        }
        Some(Ok(1..)) => Some(Admin::plain(address)),
        Some(Ok(0) | Err(_)) | None => {
            complain(&format!(
                "--admin {typed:?}: not a host and a port such as `127.0.0.1:9555`, with or without `https://` before it"
            ));
            None
        }
    }
}

/// Where the proxy's admin port is; `None` when nobody can know, or its files cannot be read, which has then been said.
fn admin_of(config: &Config) -> Option<Admin> {
    let Some(address) = operator::reachable(config.server.admin_listen) else {
        complain("admin_listen has port 0, which nobody can know: name the address with --admin");
        return None;
    };
    let address = address.to_string();
    match &config.server.admin_tls {
        None => Some(Admin::plain(address)),
        Some(tls) => said(Admin::own(address, tls).map_err(|error| Chain(&error).to_string())),
    }
}

fn print(text: &str) -> u8 {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes());
    match written.and_then(|()| stdout.flush()) {
        Ok(()) => EXIT_OK,
        Err(_) => EXIT_FAILED,
    }
}

fn serve(config: Config, options: &Options) -> u8 {
    // Dropped last, it writes what is left to write.
    let logging = Logging::start(config.log);
    raise_open_files();
    refuse_core_dumps();
    // Before there are other threads: what is given away is so for those that come.
    if let Err(error) = confine(&config) {
        error!(error = %Chain(&error), "stopped");
        return EXIT_FAILED;
    }
    if let Err(source) = logging.hurry() {
        warn!(error = %source, "the log has no thread of its own: whoever logs waits for its reader");
    }
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    // However many fills there are, only so many write and hash at once; the other threads are for short work.
    builder.max_blocking_threads(cache::turns_max() + SHORT_THREADS_MAX);
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(source) => {
            error!(error = %source, "could not start the runtime");
            return EXIT_FAILED;
        }
    };
    let code = runtime
        .block_on(run(config, options))
        .unwrap_or_else(|error| {
            error!(error = %Chain(&*error), "stopped");
            EXIT_FAILED
        });
    // Whatever still runs is past the drain time, or a second signal said not to wait for it.
    runtime.shutdown_timeout(LEAVING_MAX);
    code
}

/// Gives away the rights that the configuration says. A kernel that cannot do it keeps nobody from serving.
fn confine(config: &Config) -> Result<(), cache::OpenError> {
    match config.sandbox {
        Sandbox::None => return Ok(()),
        Sandbox::Landlock => {}
    }
    let dir = cache::prepare_dir(&config.cache.dir)?;
    match sandbox::confine_writes(&dir) {
        Ok(Confined {
            version,
            threads_before,
        }) => {
            info!(dir = %config.cache.dir.display(), version, threads_before, "landlock: writes are limited to the cache directory");
        }
        Err(error) => {
            warn!(error = %Chain(&error), "landlock: writes are not limited");
        }
    }
    Ok(())
}

/// Serves until a signal, then until what is in progress has ended or a second signal comes.
async fn run(config: Config, options: &Options) -> Result<u8, Box<dyn Error>> {
    let (mut signals, hangup) = (Signals::listen()?, signal(SignalKind::hangup())?);
    // A start may wait for a predecessor that drains; a signal ends that wait. Nothing is served yet.
    let running = tokio::select! {
        started = App::start(config) => started?,
        name = signals.next() => {
            tell_manager(NotifyState::Stopping);
            info!(signal = name, "stopped before serving");
            return Ok(EXIT_OK);
        }
    };
    tell_manager(NotifyState::Ready);
    let running = Arc::new(running);
    let reloading = tokio::spawn(reload_when_asked(
        Arc::clone(&running),
        options.clone(),
        hangup,
    ));
    let name = signals.next().await;
    reloading.abort();
    tell_manager(NotifyState::Stopping);
    info!(signal = name, "draining");
    running.shut_down();
    // Cancelling the wait loses responses in progress, which is what a second signal asks for.
    tokio::select! {
        () = running.stopped() => {
            info!("stopped");
            Ok(EXIT_OK)
        }
        name = signals.next() => {
            warn!(signal = name, "stopped at once");
            Ok(EXIT_FAILED)
        }
    }
}

/// Reloads at each SIGHUP, on a thread that may wait for a disk: the signals to stop are heard meanwhile.
async fn reload_when_asked(running: Arc<Running>, options: Options, mut hangup: Signal) {
    while hangup.recv().await.is_some() {
        let (running, options) = (Arc::clone(&running), options.clone());
        let reloading = tokio::task::spawn_blocking(move || reload(&running, &options));
        if let Err(error) = reloading.await {
            error!(error = %error, "a reload panicked");
        }
    }
}

/// Reads the configuration again; a wrong one changes nothing.
fn reload(running: &Running, options: &Options) {
    let reloaded = checked(options).and_then(|config| {
        let reloaded = running.reload(&config);
        reloaded.map_err(|error| Chain(&error).to_string())
    });
    if let Err(error) = reloaded {
        error!(
            error,
            "the configuration could not be reloaded, going on with the old one"
        );
    }
}

/// Tells the service manager that asked to be told, as systemd does with `NOTIFY_SOCKET` (sd_notify(3)).
fn tell_manager(state: NotifyState<'_>) {
    if let Err(source) = sd_notify::notify(&[state]) {
        warn!(error = %source, "could not tell the service manager");
    }
}

/// How long what is dropped at the end has for that: a credential helper that runs is killed then.
const LEAVING_MAX: Duration = Duration::from_secs(1);
const SHORT_THREADS_MAX: usize = 256;

/// The signals that ask the process to stop.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next one and returns its name. Cancel-safe: a signal is not lost.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Logs to stderr. The level is for our own lines; the crates we use are heard from `warn` up.
/// Raises the soft limit of open files to the hard one: every client and every blob that is read takes one.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(source) = setrlimit(Resource::Nofile, raised) {
        warn!(error = %source, "could not raise the limit of open files");
    }
}

/// Lowers the soft limit of core dumps to none: passwords would be in them. An operator who wants one raises it while it runs
/// (`prlimit --core=unlimited --pid`), which takes no other program's rights away, as a process that cannot be dumped does.
fn refuse_core_dumps() {
    let limit = getrlimit(Resource::Core);
    let lowered = Rlimit {
        current: Some(0),
        maximum: limit.maximum,
    };
    if let Err(source) = setrlimit(Resource::Core, lowered) {
        warn!(error = %source, "could not refuse core dumps");
    }
}

/// Says what is not for stdout: why there is nothing to run, before there is a log to say it in.
fn complain(line: &str) {
    // Nobody is left to tell when stderr is closed.
    let _ = writeln!(io::stderr(), "layerhold: {line}");
}
