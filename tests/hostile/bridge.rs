//! A port in the clear for one that speaks TLS, so that what is sent there is what is decrypted here.

use std::net::SocketAddr;
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use crate::harness::TlsClient;

/// Opens one that leads to another, by what this client speaks.
pub(crate) async fn bridge(to: SocketAddr, client: TlsClient) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (plain, _) = listener.accept().await.unwrap();
            tokio::spawn(pass(plain, to, client.clone()));
        }
    });
    address
}

/// Passes on what is said, its end by both, and a reset.
async fn pass(mut plain: TcpStream, to: SocketAddr, client: TlsClient) {
    plain.set_nodelay(true).unwrap();
    let mut encrypted = client.try_open(to).await.unwrap();
    let passed = copy_bidirectional(&mut plain, &mut encrypted).await;
    if passed.is_err() {
        set_socket_linger(&plain, Some(Duration::ZERO)).unwrap();
    }
}
