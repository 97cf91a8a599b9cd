//! A map of bounded size that forgets exactly the least recently used key.
//!
//! For what a cache that drops late or refuses newcomers cannot hold: open files, whose descriptors count, and states
//! that must be found again while they are in use.

use std::hash::Hash;

use foldhash::fast::RandomState;
use hashlink::LinkedHashMap;

/// A bounded map in the order of last use, the least recently used first.
#[derive(Debug)]
pub struct Lru<K, V> {
    entries: LinkedHashMap<K, V, RandomState>,
    max: usize,
}

impl<K: Clone + Eq + Hash, V> Lru<K, V> {
    /// An empty map for at most `max` keys, at least one.
    pub fn new(max: usize) -> Self {
        Self {
            entries: LinkedHashMap::with_hasher(RandomState::default()),
            max: max.max(1),
        }
    }

    /// The value under `key`, which becomes the most recently used.
    pub fn touch(&mut self, key: &K) -> Option<&mut V> {
        self.entries.to_back(key)
    }

    /// The value under `key`, its place in the order unchanged.
    pub fn peek(&self, key: &K) -> Option<&V> {
        self.entries.get(key)
    }

    /// Puts `value` under `key` as the most recently used, and gives back what no longer has room: the value that stood
    /// there, or the least recently used.
    pub fn insert(&mut self, key: K, value: V) -> Option<(K, V)> {
        if let Some(former) = self.entries.insert(key.clone(), value) {
            return Some((key, former));
        }
        if self.entries.len() <= self.max {
            return None;
        }
        self.entries.pop_front()
    }

    /// Forgets `key`.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        self.entries.remove(key)
    }

    /// Forgets the least recently used key whose value is so, and gives both.
    pub fn remove_first(&mut self, is_so: impl Fn(&V) -> bool) -> Option<(K, V)> {
        let (key, _) = self.entries.iter().find(|(_, value)| is_so(value))?;
        let key = key.clone();
        self.entries.remove_entry(&key)
    }

    /// All keys and values, the least recently used first; their places in the order unchanged.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries.iter()
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut lru = Lru::new(2);
        assert_eq!(lru.insert("a", 1), None);
        assert_eq!(lru.insert("b", 2), None);
        assert_eq!(lru.touch(&"a"), Some(&mut 1));
        assert_eq!(lru.insert("c", 3), Some(("b", 2)));
        assert_eq!(lru.peek(&"b"), None);
        assert_eq!(lru.insert("c", 4), Some(("c", 3)));
        assert_eq!(lru.remove(&"a"), Some(1));
        assert_eq!(lru.len(), 1);
    }
    #[test]
    fn the_first_that_is_so_goes_and_no_other() {
        let mut lru = Lru::new(9);
        for (key, value) in [("a", 1), ("b", 2), ("c", 4)] {
            lru.insert(key, value);
        }
        assert_eq!(lru.remove_first(|it| it % 2 == 0), Some(("b", 2)));
        lru.touch(&"a");
        assert_eq!(lru.remove_first(|_| true), Some(("c", 4)));
        assert_eq!(lru.remove_first(|it| *it > 1), None);
        assert_eq!(lru.len(), 1);
    }
}
