//! Which connections are open, and which of them to close when there are too many.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::serve::metrics::Metrics;

/// All open connections.
#[derive(Debug)]
pub(super) struct Connections {
    open: Mutex<BTreeMap<u64, Arc<State>>>,
    /// Grows with every connection and every answer: who came to rest first has the smallest number.
    clock: AtomicU64,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct State {
    /// Since when it rests, or [`BUSY`].
    resting: AtomicU64,
    evicted: Notify,
}

/// A request is in progress.
const BUSY: u64 = u64::MAX;

impl Connections {
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { open: Mutex::default(), clock: AtomicU64::new(0), metrics }
    }

    /// A place for a new connection among `most`. If all are taken, the connection that has been resting for the
    /// longest time makes room: clients that only hold connections cannot keep others out. `None` if none rests.
    pub fn admit(self: &Arc<Self>, most: usize) -> Option<Place> {
        if self.locked().len() >= most && !self.evict_one() {
            return None;
        }
        let number = self.tick();
        let state = Arc::new(State { resting: AtomicU64::new(number), evicted: Notify::new() });
        let mut open = self.locked();
        open.insert(number, state.clone());
        self.metrics.connections.set(open.len() as u64);
        drop(open);
        Some(Place { number, state, connections: self.clone() })
    }

    /// Closes the connection that has been resting for the longest time; `false` if none rests.
    pub fn evict_one(&self) -> bool {
        let mut open = self.locked();
        let resting = open.iter().map(|(number, state)| (state.resting.load(Ordering::Relaxed), *number));
        let Some((_, number)) = resting.filter(|(since, _)| *since != BUSY).min() else { return false };
        if let Some(state) = open.remove(&number) {
            state.evicted.notify_one();
            self.metrics.connections_evicted.increment();
        }
        true
    }

    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<State>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An open connection's place; dropped, it is free again.
#[derive(Debug)]
pub(super) struct Place {
    number: u64,
    state: Arc<State>,
    connections: Arc<Connections>,
}

impl Place {
    /// Marks a request in progress until the guard is dropped.
    pub fn busy(self: &Arc<Self>) -> Busy {
        self.state.resting.store(BUSY, Ordering::Relaxed);
        Busy(self.clone())
    }

    /// Resolves when this connection has to make room.
    pub async fn evicted(&self) {
        self.state.evicted.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.connections.locked();
        open.remove(&self.number);
        self.connections.metrics.connections.set(open.len() as u64);
    }
}

/// A request in progress.
#[derive(Debug)]
pub(super) struct Busy(Arc<Place>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.state.resting.store(self.0.connections.tick(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn connections() -> Arc<Connections> {
        Arc::new(Connections::new(Arc::default()))
    }

    /// Whether the connection was told to close.
    fn is_evicted(place: &Place) -> bool {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async { tokio::time::timeout(Duration::from_millis(1), place.evicted()).await.is_ok() })
    }

    #[test]
    fn the_longest_resting_connection_makes_room() {
        let all = connections();
        let [a, b, c] = [(); 3].map(|()| Arc::new(all.admit(3).unwrap()));
        let working = a.busy();
        drop(b.busy());
        // a works, b rested last: c has rested for the longest time.
        let d = all.admit(3).unwrap();
        assert_eq!([&a, &b, &c].map(|place| is_evicted(place)), [false, false, true]);
        assert_eq!(all.metrics.connections_evicted.get(), 1);
        drop((working, d));
    }

    #[test]
    fn where_all_work_nobody_is_let_in_until_one_leaves() {
        let all = connections();
        let a = Arc::new(all.admit(1).unwrap());
        let working = a.busy();
        assert!(all.admit(1).is_none());
        drop((working, a));
        assert!(all.admit(1).is_some());
        assert_eq!(all.metrics.connections.get(), 0);
    }
}
