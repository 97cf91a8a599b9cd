//! Requests of the test itself, as plain as they come.
//!
//! HTTP/1.0, so that an answer is never chunked and ends with its connection.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How the test's own requests are told from those of others in a log.
pub(crate) const USER_AGENT: &str = "layerhold-docker-suite";

/// Gets a document that must be there.
pub(crate) fn get(address: SocketAddr, path: &str, accept: &str) -> Vec<u8> {
    let (status, body) = exchange(address, &format!("GET {path}"), ("Accept", accept), b"");
    assert_eq!(status, 200, "GET {path}");
    body
}

/// The answer to a request for what may not be there: its status, and head and body as text.
pub(crate) fn answer(address: SocketAddr, path: &str) -> (u16, String) {
    let accept = ("Accept", "*/*");
    let (status, head, body) = raw(address, &format!("GET {path}"), accept, b"");
    (status, head + &String::from_utf8_lossy(&body))
}

/// The same for who shows something of themselves, as the field `Authorization` has it.
pub(crate) fn answer_to(address: SocketAddr, asked: &str, shown: &str) -> (u16, String) {
    let (status, head, body) = raw(address, asked, ("Authorization", shown), b"");
    (status, head + &String::from_utf8_lossy(&body))
}

/// Puts a document where it must be taken.
pub(crate) fn put(address: SocketAddr, path: &str, content_type: &str, body: &[u8]) {
    let head = ("Content-Type", content_type);
    let (status, answer) = exchange(address, &format!("PUT {path}"), head, body);
    let answer = String::from_utf8_lossy(&answer);
    assert_eq!(status, 201, "PUT {path}: {answer}");
}

fn exchange(address: SocketAddr, asked: &str, field: (&str, &str), body: &[u8]) -> (u16, Vec<u8>) {
    let (status, _, body) = raw(address, asked, field, body);
    (status, body)
}

fn raw(
    address: SocketAddr,
    asked: &str,
    (field, value): (&str, &str),
    body: &[u8],
) -> (u16, String, Vec<u8>) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(SILENCE_MAX)).unwrap();
    let length = body.len();
    let head = format!(
        "{asked} HTTP/1.0\r\nHost: {address}\r\nUser-Agent: {USER_AGENT}\r\n\
         {field}: {value}\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(&[head.as_bytes(), body].concat()).unwrap();

    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let body = answer.split_off(end.unwrap() + 4);
    let head = String::from_utf8(answer).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head, body)
}

const SILENCE_MAX: Duration = Duration::from_secs(30);
