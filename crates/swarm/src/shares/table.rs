//! Rows with names, which stay where they are.

use std::collections::HashMap;
use std::hash::Hash;

/// Values by name and, without looking anything up, by the number of their row.
#[derive(Debug)]
pub(super) struct Table<K, V> {
    places: HashMap<K, usize>,
    rows: Vec<Option<(K, V)>>,
    /// Rows without a value.
    free: Vec<usize>,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { places: HashMap::new(), rows: Vec::new(), free: Vec::new() }
    }
}

impl<K: Copy + Eq + Hash, V> Table<K, V> {
    pub(super) fn find(&self, name: &K) -> Option<usize> {
        self.places.get(name).copied()
    }

    pub(super) fn get(&self, row: usize) -> Option<&V> {
        self.rows.get(row)?.as_ref().map(|(_, value)| value)
    }

    pub(super) fn get_mut(&mut self, row: usize) -> Option<&mut V> {
        self.rows.get_mut(row)?.as_mut().map(|(_, value)| value)
    }

    /// Adds a value under a name that has none, and says in which row it is until it is removed.
    pub(super) fn insert(&mut self, name: K, value: V) -> usize {
        let row = self.free.pop().unwrap_or(self.rows.len());
        match self.rows.get_mut(row) {
            Some(place) => *place = Some((name, value)),
            None => self.rows.push(Some((name, value))),
        }
        self.places.insert(name, row);
        row
    }

    pub(super) fn remove(&mut self, row: usize) {
        if let Some((name, _)) = self.rows.get_mut(row).and_then(Option::take) {
            self.places.remove(&name);
            self.free.push(row);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Rows, with a value or without.
    #[cfg(test)]
    pub(super) fn rows(&self) -> usize {
        self.rows.len()
    }
}
