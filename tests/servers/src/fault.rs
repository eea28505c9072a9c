//! Faults: which requests they hit and what then happens.

use std::time::Duration;

use crate::message::Reply;

/// What happens to a request that a fault hits.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// The connection is reset as soon as the head has arrived; upstream hears nothing.
    ResetBeforeRequest,
    /// This many bytes of the request's body go upstream, then both connections break. A shorter body
    /// arrives whole, and its reply is lost.
    ResetAfterRequestBytes(u64),
    /// Upstream gets the request and answers; instead of the reply comes a reset.
    LostReply,
    /// This reply, and upstream hears nothing.
    Answer(Reply),
    /// Upstream gets the request and answers; instead of its reply comes `200` with an S3 error of this code.
    ErrorIn200(String),
    /// The reply's body ends after at most this many bytes, always before its end, by an orderly close. A reply
    /// without a body is lost, as by [`Action::LostReply`].
    TruncateReply(u64),
    /// The request's body is taken at so many bytes a second, beside what buffers on the way hold.
    SlowRequest(u64),
    /// The reply's body comes at so many bytes a second.
    SlowReply(u64),
    /// The reply's body stops after at most this many bytes, and the connection stays open.
    StallReply(u64),
    /// Upstream gets the request twice, one after the other; the second reply is passed on.
    Duplicate,
    /// The request is taken, upstream hears nothing, and no reply ever comes.
    Stall,
    /// Upstream gets the request and answers; no reply ever comes.
    SilentReply,
    /// The request is taken and goes upstream when the test says so ([`crate::FaultProxy::release`]), also if its client
    /// has gone away by then. Whoever still waits gets the status of the reply, and nothing else of it.
    Hold,
    /// Upstream answers, and of a listing the entries whose keys contain one of these are left out of the reply, as from an
    /// index that lags behind.
    Hide(Vec<String>),
    /// Upstream answers, and the reply bears this date, as from a server whose clock is wrong.
    Dated(String),
    /// The request waits, and then passes.
    Delay(Duration),
}

impl Action {
    /// `503 SlowDown`, which asks for fewer requests.
    pub fn slow_down() -> Self {
        Action::error(503, "SlowDown")
    }

    /// An S3 error with this status and code, and upstream hears nothing.
    pub fn error(status: u16, code: &str) -> Self {
        Action::Answer(Reply::s3_error(status, code, "injected by a test"))
    }
}

/// A fault: an action, and the requests that it hits. Without further calls it hits every request.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    action: Action,
    method: Option<String>,
    path: Option<String>,
    query: Option<String>,
    times: u64,
    chance: Option<(f64, u64)>,
}

impl Fault {
    /// A fault that hits every request.
    pub fn new(action: Action) -> Self {
        Fault {
            action,
            method: None,
            path: None,
            query: None,
            times: u64::MAX,
            chance: None,
        }
    }

    /// Hits only requests with this method.
    #[must_use]
    pub fn method(mut self, method: &str) -> Self {
        self.method = Some(method.to_owned());
        self
    }

    /// Hits only requests whose path, as sent, contains this.
    #[must_use]
    pub fn path(mut self, part: &str) -> Self {
        self.path = Some(part.to_owned());
        self
    }

    /// Hits only requests whose query, as sent, contains this.
    #[must_use]
    pub fn query(mut self, part: &str) -> Self {
        self.query = Some(part.to_owned());
        self
    }

    /// Hits this many requests and no more.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }

    /// Hits each request with this probability (0 to 1); the seed decides which.
    #[must_use]
    pub fn chance(mut self, probability: f64, seed: u64) -> Self {
        self.chance = Some((probability, seed));
        self
    }

    fn matches(&self, method: &str, path: &str, query: &str) -> bool {
        let within = |part: &Option<String>, whole: &str| {
            part.as_deref().is_none_or(|part| whole.contains(part))
        };
        self.method.as_deref().is_none_or(|wanted| wanted == method)
            && within(&self.path, path)
            && within(&self.query, query)
    }
}

/// A fault at work.
#[derive(Debug)]
pub(crate) struct Armed {
    fault: Fault,
    pub(crate) hits: u64,
    random: u64,
}

impl Armed {
    pub(crate) fn new(fault: Fault) -> Self {
        let random = fault.chance.map_or(0, |(_, seed)| seed);
        Armed {
            fault,
            hits: 0,
            random,
        }
    }

    /// What happens to this request, if it is hit; then it is counted.
    pub(crate) fn action(&mut self, method: &str, path: &str, query: &str) -> Option<Action> {
        self.hit(method, path, query)
            .then(|| self.fault.action.clone())
    }

    fn hit(&mut self, method: &str, path: &str, query: &str) -> bool {
        if self.hits >= self.fault.times || !self.fault.matches(method, path, query) {
            return false;
        }
        if let Some((probability, _)) = self.fault.chance
            && self.fraction() >= probability
        {
            return false;
        }
        self.hits += 1;
        true
    }

    /// The next pseudo-random number from 0 to below 1 (SplitMix64).
    fn fraction(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let bits = (z ^ (z >> 31)) >> 11;
        bits as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(fault: Fault, requests: u64) -> Vec<bool> {
        let mut armed = Armed::new(fault);
        (0..requests)
            .map(|_| armed.hit("PUT", "/b/k", ""))
            .collect()
    }

    #[test]
    fn a_fault_hits_until_it_is_spent() {
        let fault = Fault::new(Action::Stall).times(2);
        assert_eq!(pattern(fault, 4), [true, true, false, false]);
    }

    #[test]
    fn a_fault_hits_what_matches_in_every_respect() {
        let fault = Fault::new(Action::Stall)
            .method("PUT")
            .path("/packs/")
            .query("partNumber=2");
        let mut armed = Armed::new(fault);
        assert!(!armed.hit("GET", "/b/packs/1", "partNumber=2"));
        assert!(!armed.hit("PUT", "/b/manifests/1", "partNumber=2"));
        assert!(!armed.hit("PUT", "/b/packs/1", "partNumber=1"));
        assert!(armed.hit("PUT", "/b/packs/1", "x&partNumber=2"));
        assert_eq!(armed.hits, 1);
    }

    #[test]
    fn the_seed_decides_which_requests_are_hit() {
        let with = |seed| pattern(Fault::new(Action::Stall).chance(0.25, seed), 1000);
        assert_eq!(with(7), with(7));
        assert_ne!(with(7), with(8));
        let hits = with(7).into_iter().filter(|hit| *hit).count();
        assert!((200..300).contains(&hits), "{hits} of 1000");
    }
}
