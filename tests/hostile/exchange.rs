//! One connection: what is sent, how, and what must come back.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::answers::{Answers, answers};
use crate::harness::within;

/// One connection's worth of mischief.
#[derive(Debug)]
pub(crate) struct Exchange {
    /// What is wrong with it.
    pub(crate) shape: &'static str,
    pub(crate) bytes: Vec<u8>,
    pub(crate) delivery: Delivery,
    /// What must be answered, in this order.
    pub(crate) expected: Vec<Expected>,
    /// Whether the connection may end without the last of the answers.
    pub(crate) may_be_silent: bool,
}

/// How it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    AtOnce,
    /// In pieces of so many bytes.
    Pieces(usize),
    /// At once, and then nothing more: the other direction stays open.
    HalfClosed,
    /// At once, and then the client is gone.
    Gone,
}

/// What an answer may be.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    pub(crate) is_head: bool,
    /// Any status that there is, when it is empty.
    pub(crate) statuses: &'static [u16],
}

impl Exchange {
    /// Carries it out, and fails the test where what comes back is wrong: the ids of the requests that were answered.
    pub(crate) async fn run(self, to: SocketAddr) -> Vec<String> {
        let shown = self.shown();
        let began = Instant::now();
        let (bytes, is_cut) = within(&shown, self.exchanged(to)).await;
        // Who is slow with a head may be hung up on.
        let is_cut = is_cut || began.elapsed() > SLOW;
        if self.delivery == Delivery::Gone {
            return Vec::new();
        }
        let answers = answers(&bytes, &self.expected, is_cut);
        let answers = answers.unwrap_or_else(|wrong| panic!("{wrong}\n{shown}"));
        self.judge(&answers, is_cut)
            .unwrap_or_else(|wrong| panic!("{wrong}: {answers:?}\n{shown}"));
        let ids = answers.0.into_iter();
        ids.filter_map(|it| it.header("x-request-id").map(str::to_owned))
            .collect()
    }

    fn judge(&self, answers: &Answers, is_cut: bool) -> Result<(), String> {
        for (answer, expected) in answers.0.iter().zip(&self.expected) {
            answer.is_sane(expected)?;
        }
        let (come, wanted) = (answers.0.len(), self.expected.len());
        // Whoever is refused while it still sends may see a reset before the answer.
        let may_miss = is_cut || self.may_be_silent;
        match come {
            _ if come == wanted || (come < wanted && may_miss) => Ok(()),
            _ => Err(format!("{come} answers instead of {wanted}")),
        }
    }

    /// What came back, and whether it ended by a reset.
    async fn exchanged(&self, to: SocketAddr) -> (Vec<u8>, bool) {
        let mut stream = TcpStream::connect(to).await.unwrap();
        stream.set_nodelay(true).unwrap();
        if self.delivery == Delivery::Gone {
            let _ = stream.write_all(&self.bytes).await;
            return (Vec::new(), true);
        }
        let mut received = Vec::new();
        let (mut from, mut into) = stream.split();
        let sending = async {
            let size = match self.delivery {
                Delivery::Pieces(size) => size,
                Delivery::AtOnce | Delivery::HalfClosed | Delivery::Gone => self.bytes.len(),
            };
            for piece in self.bytes.chunks(size.max(1)) {
                // Refused before it is read, perhaps.
                into.write_all(piece).await?;
                if size < self.bytes.len() {
                    sleep(Duration::from_micros(200)).await;
                }
            }
            if self.delivery == Delivery::HalfClosed {
                into.shutdown().await?;
            }
            Ok::<(), std::io::Error>(())
        };
        let reading = async {
            (&mut from)
                .take(ANSWERS_BYTES_MAX)
                .read_to_end(&mut received)
                .await
        };
        let (sent, read) = tokio::join!(sending, reading);
        (received, sent.is_err() || read.is_err())
    }

    fn shown(&self) -> String {
        let start = &self.bytes[..self.bytes.len().min(3000)];
        let (shape, delivery, bytes) = (self.shape, self.delivery, start.escape_ascii());
        format!("{shape}, {delivery:?}: b\"{bytes}\"")
    }
}

/// Not as long as the binary waits for a head, and long enough for a machine that does other things.
const SLOW: Duration = Duration::from_secs(2);
/// More than any answers here have.
const ANSWERS_BYTES_MAX: u64 = 8 << 20;
