//! A token server: it gives whoever shows the right password a token that the registry trusts
//! (the distribution project's token authentication specification).

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::certificates::{Identity, base64, sign, signer};

/// A running token server. Dropping it stops it.
pub(crate) struct TokenServer {
    address: SocketAddr,
    desk: Arc<Desk>,
    thread: Option<JoinHandle<()>>,
}

/// An exchange of a password for a token.
#[derive(Debug, Clone)]
pub(crate) struct Exchange {
    /// What the token is good for, as in `repository:library/debian:pull`.
    pub(crate) scope: String,
    pub(crate) token: String,
}

/// What is behind the socket.
struct Desk {
    identity: Identity,
    /// The values of the header that are let in, and the repositories of each.
    users: Vec<(String, Option<Vec<String>>)>,
    exchanges: Mutex<Vec<Exchange>>,
    refused: Mutex<Vec<String>>,
    is_closing: AtomicBool,
}

impl TokenServer {
    /// Starts one that knows one user.
    pub(crate) fn start(dir: &Path, username: &str, password: &str) -> Self {
        Self::knowing(dir, vec![(authorization(username, password), None)])
    }

    /// Starts one that knows several users, by name and password, each of whom may pull from
    /// these repositories alone.
    pub(crate) fn start_for(dir: &Path, users: &[(&str, &str, &[&str])]) -> Self {
        let users = users.iter().map(|(username, password, repositories)| {
            let repositories = repositories.iter().map(|it| (*it).to_owned()).collect();
            (authorization(username, password), Some(repositories))
        });
        Self::knowing(dir, users.collect())
    }

    fn knowing(dir: &Path, users: Vec<(String, Option<Vec<String>>)>) -> Self {
        let desk = Arc::new(Desk {
            identity: signer(dir, "tokens"),
            users,
            exchanges: Mutex::default(),
            refused: Mutex::default(),
            is_closing: AtomicBool::new(false),
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let served = Arc::clone(&desk);
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if served.is_closing.load(Ordering::Relaxed) {
                    return;
                }
                served.serve(&stream.unwrap());
            }
        });
        Self {
            address,
            desk,
            thread: Some(thread),
        }
    }

    /// The section `auth` of a registry that takes these tokens and no others.
    pub(crate) fn auth(&self) -> Value {
        json!({ "token": {
            "realm": format!("{}/token", self.url()),
            "service": SERVICE,
            "issuer": ISSUER,
            "rootcertbundle": self.desk.identity.certificate,
        } })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Every exchange so far.
    pub(crate) fn exchanges(&self) -> Vec<Exchange> {
        self.desk.exchanges.lock().clone()
    }

    /// What was asked for by those who were turned away.
    pub(crate) fn refused(&self) -> Vec<String> {
        self.desk.refused.lock().clone()
    }
}

impl Drop for TokenServer {
    fn drop(&mut self) {
        self.desk.is_closing.store(true, Ordering::Relaxed);
        // It looks when somebody comes.
        let came = TcpStream::connect(self.address);
        if let (Ok(_), Some(thread)) = (came, self.thread.take()) {
            let ended = thread.join();
            assert!(
                ended.is_ok() || thread::panicking(),
                "the token server panicked"
            );
        }
    }
}

impl Desk {
    /// Answers one request; whoever has another one comes again.
    fn serve(&self, mut stream: &TcpStream) {
        stream.set_read_timeout(Some(SILENCE_MAX)).unwrap();
        let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
        let Some(asked) = lines.next() else {
            return;
        };
        let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
        let (status, more, body) = self.judge(&asked, &head);
        let body = body.to_string();
        let length = body.len();
        let answer = format!(
            "HTTP/1.1 {status}\r\n{more}Content-Type: application/json\r\n\
             Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
        // Whoever asked may be gone.
        let _ = stream.write_all(answer.as_bytes());
    }

    fn judge(&self, asked: &str, head: &[String]) -> (&'static str, &'static str, Value) {
        let target = asked.split(' ').nth(1).unwrap();
        let query = target.split_once('?').map_or("", |(_, query)| query);
        let pairs: Vec<(String, String)> = form_urlencoded::parse(query.as_bytes())
            .into_owned()
            .collect();
        let values = |name: &str| {
            let named = pairs.iter().filter(|(key, _)| key == name);
            let values = named.map(|(_, value)| value.clone());
            values.collect::<Vec<String>>()
        };
        let mut fields = head.iter().filter_map(|line| line.split_once(": "));
        let shown = fields.find(|(name, _)| name.eq_ignore_ascii_case("authorization"));
        let user = self
            .users
            .iter()
            .find(|(it, _)| shown.is_some_and(|(_, shown)| shown == it));
        let Some((_, repositories)) = user.filter(|_| values("service") == [SERVICE]) else {
            self.refused.lock().push(target.to_owned());
            let challenge = "WWW-Authenticate: Basic realm=\"tokens\"\r\n";
            return ("401 Unauthorized", challenge, json!({ "details": "who?" }));
        };
        let mut scopes = values("scope");
        // What somebody may not is left out.
        scopes.retain(|scope| {
            let name = scope.split(':').nth(1).unwrap();
            let may = |it: &Vec<String>| it.iter().any(|it| it == name);
            repositories.as_ref().is_none_or(may)
        });
        let token = self.token(&scopes);
        self.exchanges.lock().push(Exchange {
            scope: scopes.join(" "),
            token: token.clone(),
        });
        (
            "200 OK",
            "",
            json!({ "token": token, "expires_in": VALID_SECONDS }),
        )
    }

    /// A JSON Web Token for all that is asked, signed with the key that the registry knows.
    fn token(&self, scopes: &[String]) -> String {
        let pem = std::fs::read_to_string(&self.identity.certificate).unwrap();
        let lines = pem.lines().filter(|line| !line.starts_with("-----"));
        let header = json!({ "typ": "JWT", "alg": "RS256", "x5c": [lines.collect::<String>()] });
        let access = scopes.iter().map(|scope| {
            let parts: Vec<&str> = scope.splitn(3, ':').collect();
            let actions: Vec<&str> = parts[2].split(',').collect();
            json!({ "type": parts[0], "name": parts[1], "actions": actions })
        });
        let access: Vec<Value> = access.collect();
        let now = unix_seconds();
        let claims = json!({
            "iss": ISSUER,
            "aud": SERVICE,
            "sub": "robot",
            "iat": now,
            "nbf": now,
            "exp": now + VALID_SECONDS,
            "jti": self.exchanges.lock().len().to_string(),
            "access": access,
        });
        let encoded = |value: &Value| base64url(value.to_string().as_bytes());
        let signed = format!("{}.{}", encoded(&header), encoded(&claims));
        let signature = sign(signed.as_bytes(), &self.identity);
        format!("{signed}.{}", base64url(&signature))
    }
}

/// What somebody shows who has a password.
pub(crate) fn authorization(username: &str, password: &str) -> String {
    let credentials = base64(format!("{username}:{password}").as_bytes());
    format!("Basic {credentials}")
}

/// Base64 as tokens have it (RFC 7515 section 2).
fn base64url(bytes: &[u8]) -> String {
    let text = base64(bytes).replace('+', "-").replace('/', "_");
    text.trim_end_matches('=').to_owned()
}

#[expect(
    clippy::disallowed_methods,
    reason = "the registry's clock is the machine's"
)]
fn unix_seconds() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap().as_secs()
}

const SERVICE: &str = "registry of the suite";
const ISSUER: &str = "tokens of the suite";

/// Longer than any test.
const VALID_SECONDS: u64 = 3600;

const SILENCE_MAX: Duration = Duration::from_secs(30);
