//! Checking passwords, which is made to be slow: away from the tasks that serve, a few at once, and not again for each request.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign};
use moka::sync::Cache;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout};

use super::entries::{Fingerprint, User, Users};
use crate::net::{Buckets, Rate, Secret, Source};

/// Checks passwords, and remembers for a while what it found.
///
/// What is remembered is found by a keyed hash of user and password, and holds for the entry it was found by: with another line
/// for the user, or none, it is void. Right and wrong ones are kept apart, so that who tries wrong ones pushes no right one out.
///
/// From a source where many were wrong of late, no more are checked for a while. Those that are known to be right still are, so
/// that somebody who guesses shuts none of its neighbours out who were there before.
#[derive(Debug)]
pub(super) struct Passwords {
    /// Random, of this process.
    key: Key,
    places: Arc<Semaphore>,
    /// Requests that may wait for a place, and those that have one.
    queue: Semaphore,
    right: Cache<Keyed, Found>,
    wrong: Cache<Keyed, Found>,
    /// Wrong ones by where they came from.
    failures: Mutex<Buckets<Source>>,
    /// From when the time of those is counted.
    began: Instant,
}

/// What became of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Checked {
    /// It is the password of the user's entry.
    Right(Fingerprint),
    Wrong,
    /// Too many are waiting.
    Busy,
    /// Too many were wrong that came from there; again after this long.
    TooManyWrong(Duration),
}

/// A user and a password, as nobody can read them.
type Keyed = [u8; 32];

/// What was found of them.
#[derive(Clone, Copy, Debug)]
struct Found {
    /// By which entry; `None` where there was none.
    entry: Option<Fingerprint>,
    until: Instant,
}

impl Passwords {
    pub(super) fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let key: [u8; 32] = rand::random();
        Self {
            key: Key::new(HMAC_SHA256, &key),
            // The others serve.
            places: Arc::new(Semaphore::new((cores / 2).max(1))),
            queue: Semaphore::new(QUEUE_MAX),
            right: Cache::new(RIGHT_MAX),
            wrong: Cache::new(WRONG_MAX),
            failures: Mutex::new(Buckets::new(FAILURES, SOURCES_MAX)),
            began: Instant::now(),
        }
    }

    /// Whether this is the password of this user, who need not exist. Cancelled, a check that has begun goes on for nobody.
    pub(super) async fn check(
        &self,
        users: &Users,
        name: &str,
        password: &Secret,
        source: Source,
    ) -> Checked {
        let keyed = self.keyed(name, password);
        let user = users.get(name);
        if let Some(known) = self.known(&keyed, user) {
            return known;
        }
        if let Err(after) = self.may_fail(source) {
            return Checked::TooManyWrong(after);
        }
        let Ok(_waiting) = self.queue.try_acquire() else {
            return Checked::Busy;
        };
        let place = timeout(PATIENCE, Arc::clone(&self.places).acquire_owned());
        let Ok(Ok(place)) = place.await else {
            return Checked::Busy;
        };
        // Somebody with the same may have been before.
        if let Some(known) = self.known(&keyed, user) {
            return known;
        }
        // And so may those who came from there with others.
        if let Err(after) = self.may_fail(source) {
            return Checked::TooManyWrong(after);
        }
        let hash = user.map_or_else(
            || users.stand_in(self.number(name)),
            |it| Arc::clone(&it.hash),
        );
        let password = password.clone();
        let checking = spawn_blocking(move || {
            let _place = place;
            // What cannot be checked against was refused when the file was read.
            bcrypt::verify(password.reveal(), &hash).unwrap_or(false)
        });
        let is_right = checking.await.unwrap_or(false);
        let entry = user.map(|it| it.entry);
        // A stand-in is nobody's, whatever it matches.
        let checked = match entry {
            Some(entry) if is_right => Checked::Right(entry),
            Some(_) | None => Checked::Wrong,
        };
        let until = |lifetime| Instant::now() + lifetime;
        if checked == Checked::Wrong {
            let now = self.began.elapsed();
            self.failures.lock().take(&source, now, Duration::ZERO);
            let until = until(WRONG_FOR);
            self.wrong.insert(keyed, Found { entry, until });
        } else {
            let until = until(RIGHT_FOR);
            self.right.insert(keyed, Found { entry, until });
        }
        checked
    }

    /// Whether one more that is wrong may come from there.
    fn may_fail(&self, source: Source) -> Result<(), Duration> {
        self.failures.lock().look(&source, self.began.elapsed())
    }

    /// What was found before, and holds yet.
    fn known(&self, keyed: &Keyed, user: Option<&User>) -> Option<Checked> {
        let entry = user.map(|it| it.entry);
        let holds = |it: &Found| it.entry == entry && Instant::now() < it.until;
        if let (Some(entry), Some(_)) = (entry, self.right.get(keyed).filter(holds)) {
            return Some(Checked::Right(entry));
        }
        let wrong = self.wrong.get(keyed).filter(holds);
        wrong.map(|_| Checked::Wrong)
    }

    fn keyed(&self, name: &str, password: &Secret) -> Keyed {
        // No name has a control character.
        let pair = Secret::new(format!("{name}\0{}", password.reveal()));
        self.sign(pair.reveal())
    }

    /// A number of a name's own, that nobody outside can know.
    fn number(&self, name: &str) -> usize {
        let bytes = self.sign(name);
        let fold = |number: usize, byte: &u8| number << 8 | usize::from(*byte);
        bytes.iter().take(4).fold(0, fold)
    }

    fn sign(&self, text: &str) -> Keyed {
        let tag = sign(&self.key, text.as_bytes());
        tag.as_ref().try_into().unwrap_or_default()
    }
}

/// Requests that wait for a check or have one. A thousand nodes that come at once with one password need one check.
const QUEUE_MAX: usize = 1024;
/// How long one waits.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a password that was right is so unasked.
const RIGHT_FOR: Duration = Duration::from_secs(300);
/// How long one that was wrong is: who tries it again and again costs nothing.
const WRONG_FOR: Duration = Duration::from_secs(5);
const RIGHT_MAX: u64 = 10_000;
/// So many different ones may be wrong from one source, at once and then by the minute: more than the typing errors of all who
/// are behind one address, and far fewer than guessing takes. The same one again is one in [`WRONG_FOR`].
const FAILURES: Rate = Rate::per_minute(60);
const SOURCES_MAX: usize = 1 << 16;
const WRONG_MAX: u64 = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn users(lines: &[(&str, &str)]) -> Users {
        let line = |(name, password): &(&str, &str)| {
            format!("{name}:{}\n", bcrypt::hash(password, 4).unwrap())
        };
        Users::parse(&lines.iter().map(line).collect::<String>()).unwrap()
    }

    async fn is_right(passwords: &Passwords, users: &Users, name: &str, password: &str) -> bool {
        let (password, source) = (Secret::new(password), Source::of([192, 0, 2, 1].into()));
        let checked = passwords.check(users, name, &password, source).await;
        match checked {
            Checked::Right(entry) => {
                assert_eq!(entry, users.get(name).unwrap().entry);
                true
            }
            Checked::Wrong => false,
            Checked::Busy | Checked::TooManyWrong(_) => panic!("nobody else is there"),
        }
    }

    #[tokio::test]
    async fn who_guesses_is_not_listened_to_and_shuts_out_nobody_who_was_there() {
        let passwords = Passwords::new();
        let users = users(&[("ann", "one"), ("bob", "two")]);
        let [here, there] = [1, 2].map(|n| Source::of([192, 0, 2, n].into()));
        let check = async |name, password: &str, source| {
            let password = Secret::new(password);
            passwords.check(&users, name, &password, source).await
        };
        assert!(matches!(check("ann", "one", here).await, Checked::Right(_)));
        let mut wrong = 0;
        for n in 0..600 {
            match check("bob", &n.to_string(), here).await {
                Checked::Wrong => wrong += 1,
                Checked::TooManyWrong(after) => {
                    assert!(after <= Duration::from_secs(1));
                    break;
                }
                other @ (Checked::Right(_) | Checked::Busy) => panic!("{other:?}"),
            }
        }
        assert!(wrong >= 60, "{wrong}");
        // Were it right, nobody would hear it.
        passwords
            .failures
            .lock()
            .take(&here, passwords.began.elapsed(), FOREVER);
        let guess = check("bob", "two", here).await;
        assert!(matches!(guess, Checked::TooManyWrong(_)), "{guess:?}");
        assert!(matches!(check("ann", "one", here).await, Checked::Right(_)));
        assert!(matches!(
            check("bob", "two", there).await,
            Checked::Right(_)
        ));
    }

    const FOREVER: Duration = Duration::from_secs(1 << 20);

    #[tokio::test]
    async fn what_was_found_holds_for_the_entry_it_was_found_by() {
        let passwords = Passwords::new();
        let before = users(&[("ann", "one"), ("bob", "two")]);
        for _ in 0..2 {
            assert!(is_right(&passwords, &before, "ann", "one").await);
            assert!(!is_right(&passwords, &before, "ann", "two").await);
            assert!(!is_right(&passwords, &before, "eve", "one").await);
            assert!(!is_right(&passwords, &before, "Ann", "one").await);
        }
        let after = users(&[("ann", "two"), ("eve", "one")]);
        assert!(!is_right(&passwords, &after, "ann", "one").await);
        assert!(is_right(&passwords, &after, "ann", "two").await);
        assert!(is_right(&passwords, &after, "eve", "one").await);
        assert!(!is_right(&passwords, &after, "bob", "two").await);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_found_holds_for_its_time() {
        let passwords = Passwords::new();
        let users = users(&[("ann", "one")]);
        let known = |password| {
            let keyed = passwords.keyed("ann", &Secret::new(password));
            passwords.known(&keyed, users.get("ann"))
        };
        assert!(is_right(&passwords, &users, "ann", "one").await);
        assert!(matches!(known("one"), Some(Checked::Right(_))));
        tokio::time::advance(RIGHT_FOR).await;
        assert_eq!(known("one"), None);
        assert!(!is_right(&passwords, &users, "ann", "two").await);
        assert_eq!(known("two"), Some(Checked::Wrong));
        tokio::time::advance(WRONG_FOR).await;
        assert_eq!(known("two"), None);
    }

    #[tokio::test]
    async fn who_is_not_there_has_nobodys_password() {
        let passwords = Passwords::new();
        // The stand-in of whoever is not there is the only hash there is.
        let users = users(&[("ann", "one")]);
        assert!(!is_right(&passwords, &users, "eve", "one").await);
    }

    #[tokio::test]
    async fn many_with_one_password_need_one_check() {
        let passwords = Passwords::new();
        let users = users(&[("ann", "one")]);
        let checks = (0..500).map(|_| is_right(&passwords, &users, "ann", "one"));
        let began = passwords.places.available_permits();
        for right in futures_util::future::join_all(checks).await {
            assert!(right);
        }
        assert_eq!(passwords.places.available_permits(), began);
        passwords.right.run_pending_tasks();
        assert_eq!(passwords.right.entry_count(), 1);
    }
}
