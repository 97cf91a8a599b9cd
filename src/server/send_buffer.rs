//! How much a socket may hold of what its client has not taken yet.
//!
//! Left to itself the kernel lets a send buffer grow to megabytes, which a far client needs (bandwidth times delay) and a
//! near one only drags through the processor's caches. So the buffer of a near client is bounded, before its first large body.
//! How near it is says the least round trip that the kernel has seen, and where that is not known yet, or a busy moment made
//! it long, it is asked again.

#![expect(
    unsafe_code,
    reason = "no crate at hand wraps getsockopt(TCP_INFO), which alone says how far a client is"
)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use socket2::SockRef;
use tracing::debug;

/// The send buffer of one socket.
#[derive(Debug, Default)]
pub(super) struct SendBuffer {
    /// Nothing is left to do.
    is_settled: bool,
    /// Bytes of large bodies until the next look; `None` before the first large body.
    until_look: Option<u64>,
}

impl SendBuffer {
    /// A large body comes next.
    pub(super) fn expect_much(&mut self) {
        self.until_look = Some(0);
    }

    /// To be called before each write; does nothing for most.
    pub(super) fn see_to(&mut self, socket: impl AsFd) {
        if self.until_look != Some(0) || self.is_settled {
            return;
        }
        let socket = socket.as_fd();
        match round_trip(socket) {
            Ok(Some(round_trip)) => match send_buffer(round_trip) {
                Some(bytes) => {
                    self.is_settled = true;
                    if let Err(error) = SockRef::from(&socket).set_send_buffer_size(bytes) {
                        debug!(error = %error, "the send buffer could not be bounded");
                    }
                }
                None => self.until_look = Some(LOOK_BYTES),
            },
            // With the first acknowledgement it is known.
            Ok(None) => {}
            Err(error) => {
                self.is_settled = true;
                debug!(error = %error, "how far a client is cannot be told");
            }
        }
    }

    /// Counts what was written.
    pub(super) fn wrote(&mut self, bytes: usize) {
        if let Some(left) = &mut self.until_look {
            *left = left.saturating_sub(bytes as u64);
        }
    }
}

/// The send buffer for a client at this distance; `None` leaves it to the kernel.
fn send_buffer(round_trip: Duration) -> Option<usize> {
    (round_trip < NEAR).then_some(NEAR_BUFFER_BYTES)
}

/// The least round trip of what was measured, in microseconds: of late, and smoothed. A kernel that has measured nothing says
/// that the one is very long, and one before 4.6 does not say it; the other is 0 then.
fn least(min: u32, smoothed: u32) -> Option<Duration> {
    let measured = [min, smoothed].into_iter();
    let measured = measured.filter(|it| (1..u32::MAX).contains(it));
    measured.min().map(|it| Duration::from_micros(it.into()))
}

/// The least round trip that the kernel knows of, the handshake's included; `None` when it knows of none.
fn round_trip(socket: impl AsFd) -> io::Result<Option<Duration>> {
    let socket = socket.as_fd();
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let Ok(mut len) = libc::socklen_t::try_from(size_of_val(&info)) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    // SAFETY: the descriptor is open, since `socket` is borrowed. `info` and `len` are valid for writes during the call and
    // nothing else refers to them; `len` is the size of `info`, and the kernel writes no more than that (tcp(7)).
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all of it was zeroed, and the kernel wrote over a part of that. It consists of integers, for which any bytes
    // are a value.
    let info = unsafe { info.assume_init() };
    Ok(least(info.tcpi_min_rtt, info.tcpi_rtt))
}

/// Below this a client is near: what the bounded buffer holds, once a round trip, is at least 850 MB/s then.
const NEAR: Duration = Duration::from_micros(500);
/// What is asked for, as much as any kernel grants without more rights (`net.core.wmem_max`). It doubles it.
const NEAR_BUFFER_BYTES: usize = 208 << 10;
/// One that seemed far is looked at again after so many bytes: the first round trips were those of a busy machine, perhaps.
const LOOK_BYTES: u64 = 16 << 20;

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn only_a_near_client_is_bounded() {
        for (round_trip, is_bounded) in [
            (1, true),
            (30, true),
            (499, true),
            (500, false),
            (50_000, false),
        ] {
            let buffer = send_buffer(Duration::from_micros(round_trip));
            assert_eq!(buffer.is_some(), is_bounded, "{round_trip} us");
        }
    }

    #[test]
    fn what_was_not_measured_is_no_round_trip() {
        let unknown = u32::MAX;
        let table = [
            ((unknown, 0), None),
            ((0, 0), None),
            ((0, 40), Some(40)),
            ((unknown, 40), Some(40)),
            ((30, 900), Some(30)),
            ((30, 0), Some(30)),
        ];
        for ((min, smoothed), expected) in table {
            let expected = expected.map(Duration::from_micros);
            assert_eq!(least(min, smoothed), expected, "{min} {smoothed}");
        }
    }

    async fn accepted() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (client, accepted) = tokio::join!(client, listener.accept());
        (client.unwrap(), accepted.unwrap().0)
    }

    fn held(tcp: &TcpStream) -> usize {
        SockRef::from(tcp).send_buffer_size().unwrap()
    }

    #[tokio::test]
    async fn the_socket_is_bounded_before_a_large_body_and_not_before() {
        let (_client, tcp) = accepted().await;
        SockRef::from(&tcp).set_send_buffer_size(4 << 10).unwrap();
        let before = held(&tcp);
        let mut buffer = SendBuffer::default();
        buffer.see_to(&tcp);
        assert_eq!(held(&tcp), before);
        let near = round_trip(&tcp)
            .unwrap()
            .is_some_and(|it| send_buffer(it).is_some());
        buffer.expect_much();
        buffer.see_to(&tcp);
        assert_eq!(held(&tcp) > before, near);
    }

    #[tokio::test]
    async fn one_that_seemed_far_is_looked_at_again() {
        let (_client, tcp) = accepted().await;
        let mut buffer = SendBuffer {
            is_settled: false,
            until_look: Some(LOOK_BYTES),
        };
        buffer.see_to(&tcp);
        buffer.wrote(16 << 20);
        assert_eq!(buffer.until_look, Some(0));
        buffer.see_to(&tcp);
        assert!(buffer.is_settled || buffer.until_look == Some(LOOK_BYTES));
    }

    #[tokio::test]
    async fn what_is_no_tcp_socket_is_left_alone() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut buffer = SendBuffer::default();
        buffer.expect_much();
        buffer.see_to(&one);
        assert!(buffer.is_settled);
    }
}
