//! The table of requests that the kernel knows of, and what each of them keeps alive.
//!
//! Invariants: what a request holds (buffer, file) stays in its slot from insertion until its completion
//! arrives, whatever becomes of the future that waits for it; a slot is reused only afterwards and under a new
//! generation, so a completion that arrives twice or late is refused and frees nothing.

use std::task::{Poll, Waker};

/// Name of one request: slot and generation. Travels through the kernel as `user_data`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OpId {
    index: u32,
    generation: u32,
}

impl OpId {
    pub(crate) fn user_data(self) -> u64 {
        (u64::from(self.generation) << 32) | u64::from(self.index)
    }

    pub(crate) fn from_user_data(user_data: u64) -> Self {
        OpId {
            index: user_data as u32,
            generation: (user_data >> 32) as u32,
        }
    }
}

enum State<R> {
    Free,
    InFlight { waker: Option<Waker>, held: R },
    Orphaned { held: R },
    Done { result: i32, held: R },
}

struct Slot<R> {
    generation: u32,
    state: State<R>,
}

/// What to do after a completion.
pub(crate) enum Completed<R> {
    /// No such request is in flight: nothing happened.
    Stale,
    /// The result waits for the future; wake it.
    Ready(Option<Waker>),
    /// Nobody waits: drop what the request held.
    Orphan(R),
}

/// What to do after a future was dropped.
pub(crate) enum Abandoned<R> {
    /// The request is in flight and now an orphan: cancel it.
    InFlight,
    /// It had completed: drop what it held.
    Done(R),
    /// It was over already.
    Gone,
}

/// Slots for requests that hold an `R` each. Grows to the largest number of unfinished futures at a time.
pub(crate) struct Slab<R> {
    slots: Vec<Slot<R>>,
    free: Vec<u32>,
    in_flight: usize,
}

impl<R> Slab<R> {
    pub(crate) fn new() -> Self {
        Slab {
            slots: Vec::new(),
            free: Vec::new(),
            in_flight: 0,
        }
    }

    /// Requests whose completion has not arrived.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Puts a request in flight.
    pub(crate) fn insert(&mut self, held: R) -> OpId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: 0,
                state: State::Free,
            });
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        slot.state = State::InFlight { waker: None, held };
        self.in_flight += 1;
        OpId {
            index,
            generation: slot.generation,
        }
    }

    /// What a request in flight holds.
    pub(crate) fn held_mut(&mut self, id: OpId) -> Option<&mut R> {
        match &mut self.slot_mut(id)?.state {
            State::InFlight { held, .. } | State::Orphaned { held } => Some(held),
            State::Free | State::Done { .. } => None,
        }
    }

    /// Takes a completion in.
    pub(crate) fn complete(&mut self, id: OpId, result: i32) -> Completed<R> {
        let Some(slot) = self.slot_mut(id) else {
            return Completed::Stale;
        };
        match std::mem::replace(&mut slot.state, State::Free) {
            State::InFlight { waker, held } => {
                slot.state = State::Done { result, held };
                self.in_flight -= 1;
                Completed::Ready(waker)
            }
            State::Orphaned { held } => {
                self.in_flight -= 1;
                self.release(id);
                Completed::Orphan(held)
            }
            other => {
                slot.state = other;
                Completed::Stale
            }
        }
    }

    /// The result of a request, or a note whom to wake for it. Must not be called again after `Ready`.
    pub(crate) fn poll(&mut self, id: OpId, waiting: &Waker) -> Poll<Option<(i32, R)>> {
        let Some(slot) = self.slot_mut(id) else {
            return Poll::Ready(None);
        };
        if let State::InFlight { waker, .. } = &mut slot.state {
            match waker {
                Some(known) => known.clone_from(waiting),
                None => *waker = Some(waiting.clone()),
            }
            return Poll::Pending;
        }
        match std::mem::replace(&mut slot.state, State::Free) {
            State::Done { result, held } => {
                self.release(id);
                Poll::Ready(Some((result, held)))
            }
            other => {
                slot.state = other;
                Poll::Ready(None)
            }
        }
    }

    /// Notes that nobody waits for a request any more.
    pub(crate) fn abandon(&mut self, id: OpId) -> Abandoned<R> {
        let Some(slot) = self.slot_mut(id) else {
            return Abandoned::Gone;
        };
        match std::mem::replace(&mut slot.state, State::Free) {
            State::InFlight { held, .. } => {
                slot.state = State::Orphaned { held };
                Abandoned::InFlight
            }
            State::Done { held, .. } => {
                self.release(id);
                Abandoned::Done(held)
            }
            other => {
                slot.state = other;
                Abandoned::Gone
            }
        }
    }

    fn slot_mut(&mut self, id: OpId) -> Option<&mut Slot<R>> {
        self.slots
            .get_mut(id.index as usize)
            .filter(|slot| slot.generation == id.generation)
    }

    /// Frees a slot whose state is already `Free` under a new generation.
    fn release(&mut self, id: OpId) {
        let slot = &mut self.slots[id.index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(id.index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_and_double_completions_are_refused() {
        let mut slab = Slab::new();
        let id = slab.insert("first");
        assert!(matches!(slab.complete(id, 1), Completed::Ready(None)));
        assert!(matches!(slab.complete(id, 2), Completed::Stale));
        assert!(matches!(
            slab.poll(id, Waker::noop()),
            Poll::Ready(Some((1, "first")))
        ));
        let next = slab.insert("second");
        assert_ne!(next, id, "the slot is reused under a new generation");
        assert!(matches!(slab.complete(id, 3), Completed::Stale));
        assert_eq!(slab.in_flight(), 1);
        assert!(matches!(
            slab.complete(OpId::from_user_data(u64::MAX), 0),
            Completed::Stale
        ));
        assert_eq!(OpId::from_user_data(next.user_data()), next);
    }

    #[test]
    fn an_orphan_holds_on_until_its_completion() {
        let mut slab = Slab::new();
        let id = slab.insert("buffer");
        assert!(slab.poll(id, Waker::noop()).is_pending());
        assert!(matches!(slab.abandon(id), Abandoned::InFlight));
        assert!(matches!(slab.abandon(id), Abandoned::Gone));
        assert_eq!(slab.in_flight(), 1);
        assert!(slab.held_mut(id).is_some());
        assert!(matches!(slab.complete(id, 0), Completed::Orphan("buffer")));
        assert_eq!(slab.in_flight(), 0);
        let done = slab.insert("done");
        assert!(matches!(slab.complete(done, 0), Completed::Ready(_)));
        assert!(matches!(slab.abandon(done), Abandoned::Done("done")));
        assert_eq!(slab.slots.len(), 1);
    }
}
