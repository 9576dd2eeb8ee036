//! Mutexes whose poison means nothing.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// For structures that are changed in single steps: a panic elsewhere leaves them consistent, so poison is ignored.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
