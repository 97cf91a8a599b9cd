//! The least that a server can do, to see what the clients could take.

use std::fs::File;
use std::io::{self, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::fs::sendfile;
use rustix::net::sockopt::set_socket_send_buffer_size;

use crate::lab::upstream::next_request;

/// Serves one file to whatever is asked: a thread a connection, sendfile, and a send buffer that stays small.
pub(crate) fn serve_file(path: &Path) -> SocketAddr {
    let file = Arc::new(File::open(path).unwrap());
    let (listener, address) = listen();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let file = Arc::clone(&file);
            // It ends when the client has left, with an error or not.
            thread::spawn(move || send_file(&stream?, &file));
        }
    });
    address
}

fn send_file(mut stream: &TcpStream, file: &File) -> io::Result<()> {
    set_socket_send_buffer_size(stream, 208 << 10)?;
    let size = file.metadata()?.len();
    let mut requests = BufReader::new(stream);
    while next_request(&mut requests)?.is_some() {
        stream.write_all(head(size).as_bytes())?;
        let mut at = 0;
        while at < size {
            sendfile(stream, file, Some(&mut at), 1 << 20)?;
        }
    }
    Ok(())
}

/// Serves the same bytes to whatever is asked: one thread for all connections, one write for each read.
pub(crate) fn serve_memory(body: &[u8]) -> SocketAddr {
    let answer = [head(body.len() as u64).as_bytes(), body].concat();
    let (listener, address) = listen();
    // A thread each, as the server has.
    for _ in 0..2 {
        let listener = listener.try_clone().unwrap();
        let answer = answer.clone();
        thread::spawn(move || answer_all(&listener, &answer).unwrap());
    }
    address
}

fn answer_all(listener: &TcpListener, answer: &[u8]) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut streams: Vec<Option<TcpStream>> = Vec::new();
    let watch = |of: &dyn AsFd, as_number| {
        let data = epoll::EventData::new_u64(as_number);
        epoll::add(&poll, of, data, epoll::EventFlags::IN)
    };
    watch(listener, u64::MAX)?;
    let mut events = Vec::with_capacity(64);
    let mut request = [0; 4096];
    loop {
        events.clear();
        epoll::wait(&poll, spare_capacity(&mut events), None)?;
        for event in &events {
            let number = event.data.u64();
            if number == u64::MAX {
                // The other thread may have been quicker.
                if let Ok((stream, _)) = listener.accept() {
                    stream.set_nodelay(true)?;
                    watch(&stream, streams.len() as u64)?;
                    streams.push(Some(stream));
                }
                continue;
            }
            let stream = usize::try_from(number)
                .ok()
                .and_then(|it| streams.get_mut(it));
            let Some(stream) = stream else { continue };
            let answered = stream.as_ref().is_some_and(|mut it| {
                let read = io::Read::read(&mut it, &mut request);
                read.is_ok_and(|read| read > 0) && it.write_all(answer).is_ok()
            });
            if !answered {
                *stream = None;
            }
        }
    }
}

fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn head(length: u64) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n")
}
