//! The phases in which a host stops.

use tokio_util::sync::CancellationToken;

/// The phases of a stop, in their order. A phase that has begun does not end.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    /// The host is not ready but goes on serving, so that load balancers send requests elsewhere.
    pub drain: CancellationToken,
    /// The host accepts no new connection and finishes the requests in flight.
    pub close: CancellationToken,
    /// The host ends at once.
    pub abort: CancellationToken,
}

/// A request to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopRequest {
    /// By a supervisor (SIGTERM). Load balancers may still send requests.
    Supervisor,
    /// By a person (Ctrl-C). No load balancer has to notice.
    Terminal,
    /// By the end of a terminal (SIGHUP). A shell sends it together with other signals, so it is
    /// never a second request.
    HangUp,
}

impl Stop {
    /// Begins the phase that a request asks for. A second request ends the host at once.
    pub fn request(&self, request: StopRequest) {
        if self.drain.is_cancelled() {
            if request != StopRequest::HangUp {
                self.abort.cancel();
            }
            return;
        }
        self.drain.cancel();
        if request != StopRequest::Supervisor {
            self.close.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phases(requests: &[StopRequest]) -> [bool; 3] {
        let stop = Stop::default();
        requests.iter().for_each(|request| stop.request(*request));
        [&stop.drain, &stop.close, &stop.abort].map(CancellationToken::is_cancelled)
    }

    #[test]
    fn a_supervisor_lets_the_host_drain_a_person_does_not_and_a_second_request_ends_it() {
        use StopRequest::{HangUp, Supervisor, Terminal};
        assert_eq!(phases(&[]), [false, false, false]);
        assert_eq!(phases(&[Supervisor]), [true, false, false]);
        assert_eq!(phases(&[Terminal]), [true, true, false]);
        assert_eq!(phases(&[HangUp]), [true, true, false]);
        // The end of the terminal does not shorten what another request began.
        assert_eq!(phases(&[Supervisor, HangUp]), [true, false, false]);
        assert_eq!(phases(&[Terminal, HangUp]), [true, true, false]);
        assert_eq!(phases(&[HangUp, HangUp]), [true, true, false]);
        for second in [Supervisor, Terminal] {
            assert!(phases(&[HangUp, second])[2]);
            assert!(phases(&[Supervisor, second])[2]);
            assert!(phases(&[Terminal, second])[2]);
        }
    }
}
