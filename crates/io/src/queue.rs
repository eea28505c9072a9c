//! A counting semaphore for one thread, strictly first come, first served.
//!
//! Invariants: a permit freed while somebody waits goes to the one who waits longest, never to a newcomer;
//! a waiter that is dropped after it was granted a permit passes it on; a waiter that is dropped earlier
//! leaves the queue, so the queue is as long as there are live waiters.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// Permits and those who wait for them.
pub(crate) struct Permits {
    free: Cell<usize>,
    waiters: RefCell<VecDeque<Rc<Waiter>>>,
}

struct Waiter {
    granted: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Permits {
    pub(crate) fn new(free: usize) -> Rc<Self> {
        Rc::new(Permits {
            free: Cell::new(free),
            waiters: RefCell::new(VecDeque::new()),
        })
    }

    /// Takes a permit if one is free and nobody waits. The caller gives it back with [`Permits::release`].
    pub(crate) fn try_take(&self) -> bool {
        // Free permits and waiters never exist at once, so this cannot overtake anybody.
        let free = self.free.get();
        if free > 0 {
            self.free.set(free - 1);
        }
        free > 0
    }

    /// Waits for a permit. The caller gives it back with [`Permits::release`].
    pub(crate) fn take(self: &Rc<Self>) -> Take {
        Take {
            permits: Rc::clone(self),
            waiter: None,
        }
    }

    /// Gives a permit back: to the first in the queue, else to the free ones.
    pub(crate) fn release(&self) {
        let first = self.waiters.borrow_mut().pop_front();
        match first {
            Some(waiter) => {
                waiter.granted.set(true);
                let waker = waiter.waker.borrow_mut().take();
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            None => self.free.set(self.free.get() + 1),
        }
    }

    /// Permits that are free now.
    pub(crate) fn free(&self) -> usize {
        self.free.get()
    }
}

/// Future of a permit.
pub(crate) struct Take {
    permits: Rc<Permits>,
    waiter: Option<Rc<Waiter>>,
}

impl Future for Take {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(waiter) = &self.waiter {
            if waiter.granted.get() {
                self.waiter = None;
                return Poll::Ready(());
            }
            waiter.waker.replace(Some(cx.waker().clone()));
            return Poll::Pending;
        }
        if self.permits.try_take() {
            return Poll::Ready(());
        }
        let waiter = Rc::new(Waiter {
            granted: Cell::new(false),
            waker: RefCell::new(Some(cx.waker().clone())),
        });
        self.permits
            .waiters
            .borrow_mut()
            .push_back(Rc::clone(&waiter));
        self.waiter = Some(waiter);
        Poll::Pending
    }
}

impl Drop for Take {
    fn drop(&mut self) {
        let Some(waiter) = self.waiter.take() else {
            return;
        };
        if waiter.granted.get() {
            self.permits.release();
        } else {
            self.permits
                .waiters
                .borrow_mut()
                .retain(|other| !Rc::ptr_eq(other, &waiter));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll(take: &mut Pin<Box<Take>>) -> bool {
        take.as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_ready()
    }

    #[test]
    fn waiters_are_served_in_order_and_newcomers_do_not_overtake() {
        let permits = Permits::new(1);
        assert!(permits.try_take());
        let mut first = Box::pin(permits.take());
        let mut second = Box::pin(permits.take());
        assert!(!poll(&mut first));
        assert!(!poll(&mut second));
        permits.release();
        assert!(
            !permits.try_take(),
            "the permit belongs to the first waiter"
        );
        assert!(!poll(&mut second));
        assert!(poll(&mut first));
        permits.release();
        assert!(poll(&mut second));
        permits.release();
        assert_eq!(permits.free(), 1);
    }

    #[test]
    fn dropped_waiters_leave_the_queue_or_pass_their_permit_on() {
        let permits = Permits::new(1);
        assert!(permits.try_take());
        let mut first = Box::pin(permits.take());
        let mut second = Box::pin(permits.take());
        let mut third = Box::pin(permits.take());
        assert!(!poll(&mut first) && !poll(&mut second) && !poll(&mut third));
        drop(second);
        permits.release();
        drop(first);
        assert!(poll(&mut third), "the granted permit of the first moved on");
        permits.release();
        assert_eq!(permits.free(), 1);
        assert!(permits.waiters.borrow().is_empty());
    }
}
