//! A server that has time for a few requests only, as stores shed load: whoever comes while it is busy is told to slow down.
//!
//! Invariant: a request that is refused takes as long as one that is not, so that what is counted is how many requests
//! the client has under way.

use std::sync::Mutex;
use std::time::Duration;

/// How much a server takes on.
#[derive(Debug)]
pub(crate) struct Crowd {
    served_max: usize,
    takes: Duration,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    under_way: usize,
    arrivals: Vec<usize>,
}

impl Crowd {
    /// Serves so many requests at a time, each of which takes so long.
    pub(crate) fn new(served_max: usize, takes: Duration) -> Self {
        Crowd {
            served_max,
            takes,
            seen: Mutex::default(),
        }
    }

    /// How many requests were under way when each came, itself counted.
    pub(crate) fn arrivals(&self) -> Vec<usize> {
        self.seen().arrivals.clone()
    }

    /// Takes a request's time, and says whether it is served.
    pub(crate) async fn pass(&self) -> bool {
        let arrival = {
            let mut seen = self.seen();
            seen.under_way += 1;
            let arrival = seen.under_way;
            seen.arrivals.push(arrival);
            arrival
        };
        // Also when the client goes away meanwhile.
        let _under_way = UnderWay(self);
        tokio::time::sleep(self.takes).await;
        arrival <= self.served_max
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().expect("nobody panics while it is held")
    }
}

struct UnderWay<'a>(&'a Crowd);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.seen().under_way -= 1;
    }
}
