//! One question in flight for each key; whoever asks the same meanwhile gets the same answer.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

/// Questions in flight. The answering task is nobody's in particular: it goes on when all who asked are gone.
#[derive(Debug)]
pub(super) struct Flights<K, V> {
    running: Running<K, V>,
    tracker: TaskTracker,
}

type Running<K, V> = Arc<Mutex<HashMap<K, watch::Receiver<Option<V>>>>>;

impl<K, V> Flights<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub(super) fn new(tracker: TaskTracker) -> Self {
        Self {
            running: Arc::default(),
            tracker,
        }
    }

    /// The answer to `key`, asked by `ask` unless it is being asked already. `None` when the asking task panicked.
    /// Cancel-safe.
    pub(super) async fn run<F>(&self, key: K, ask: impl FnOnce() -> F) -> Option<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut answer = {
            let mut running = self.running.lock();
            match running.get(&key) {
                Some(answer) => answer.clone(),
                None => {
                    let (sender, answer) = watch::channel(None);
                    running.insert(key.clone(), answer.clone());
                    let landing = Landing {
                        running: Arc::clone(&self.running),
                        answer: answer.clone(),
                        key,
                    };
                    let asking = ask();
                    self.tracker.spawn(async move {
                        let value = asking.await;
                        // Forgotten first: who comes after the answer asks anew.
                        drop(landing);
                        sender.send_replace(Some(value));
                    });
                    answer
                }
            }
        };
        answer.wait_for(Option::is_some).await.ok()?.clone()
    }

    /// Lets nobody join what is asked of these keys any more; whoever waits for it gets its answer.
    pub(super) fn part_from(&self, is_about: impl Fn(&K) -> bool) {
        self.running.lock().retain(|key, _| !is_about(key));
    }
}

/// Takes the question out, also when the asking task panics.
struct Landing<K: Eq + Hash, V> {
    running: Running<K, V>,
    answer: watch::Receiver<Option<V>>,
    key: K,
}

impl<K: Eq + Hash, V> Drop for Landing<K, V> {
    fn drop(&mut self) {
        let mut running = self.running.lock();
        // Another question may have taken its place.
        let own = |it: &watch::Receiver<_>| it.same_channel(&self.answer);
        if running.get(&self.key).is_some_and(own) {
            running.remove(&self.key);
        }
    }
}
