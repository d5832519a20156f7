//! A network client of the guest: UDP datagrams that come back, and when they did.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::Result;

/// At most one datagram in this time.
const PACE: Duration = Duration::from_millis(1);
/// Longest wait for an answer before the question is asked again. A slow guest answers later than that: several
/// datagrams are under way then, and none of their answers is lost.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// A client that asks for as long as it exists.
#[derive(Debug)]
pub struct Client {
    answers: Arc<Mutex<Vec<Instant>>>,
    stop: Arc<AtomicBool>,
}

impl Client {
    /// Starts to ask the echo of `guest`.
    pub fn start(guest: &str, port: u16) -> Result<Self> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect((guest, port))?;
        let client = Self { answers: Arc::default(), stop: Arc::default() };
        let (answers, stop) = (client.answers.clone(), client.stop.clone());
        thread::Builder::new().name("echo".to_owned()).spawn(move || ask(&socket, &answers, &stop))?;
        Ok(client)
    }

    /// How many answers have come.
    pub fn answered(&self) -> usize {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The longest silence between two answers, of those that reach into the time from `from` to `until`.
    pub fn longest_silence(&self, from: Instant, until: Instant) -> Option<Duration> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let pairs = answers.windows(2).filter(|pair| pair[1] >= from && pair[0] <= until);
        pairs.map(|pair| pair[1] - pair[0]).max()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn ask(socket: &UdpSocket, answers: &Mutex<Vec<Instant>>, stop: &AtomicBool) {
    let mut patience = PACE;
    while !stop.load(Ordering::Relaxed) {
        let asked = Instant::now();
        let mut answer = [0; 16];
        // While the guest moves there may be nobody: that is what is measured.
        let came = socket.send(b"tern").and_then(|_| {
            socket.set_read_timeout(Some(patience))?;
            socket.recv(&mut answer)
        });
        let took = asked.elapsed();
        if came.is_ok() {
            answers.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
            patience = ((patience * 3 + took * 4) / 4).clamp(PACE, ASK_AGAIN);
        }
        thread::sleep(PACE.saturating_sub(took));
    }
}
