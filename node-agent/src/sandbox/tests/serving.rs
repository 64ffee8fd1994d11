//! Servers: how they start, how they are reached, and that nothing of them is used again.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use common::function::Contract;
use runner::wire::{ServerOrder, Stream};

use super::*;

/// Answers each connection with its number; what `die` is sent ends it.
const SERVER: &str = "
import os, socket
print('up', flush=True)
listener = socket.create_server(('127.0.0.1', int(os.environ['PORT'])))
for number in range(100):
    connection, _ = listener.accept()
    connection.sendall(b'%d' % number)
    word = connection.recv(16)
    if word == b'die':
        os._exit(7)
    if word == b'eat':
        kept = bytearray(200 << 20)
    connection.close()
";

/// A server that runs this program.
pub(super) fn server(node: &Node, program: &str) -> (DeploymentSpec, Build) {
    let (spec, _) = node.function("python");
    let path = node.directory.path().join(spec.deployment.to_string());
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("main.py"), program).unwrap();
    (DeploymentSpec { contract: Contract::Http { idle_timeout_ms: 1000 }, ..spec }, Arc::new(path))
}

/// The next word that is not output, with what was printed before it.
async fn told(serving: &mut Serving) -> (Word, String) {
    let mut printed = String::new();
    loop {
        match tokio::time::timeout(PATIENCE, serving.hear()).await.unwrap().unwrap() {
            Word::Printed(Stream::Stdout, bytes) => printed.push_str(text(&bytes)),
            Word::Printed(Stream::Stderr, bytes) => panic!("stderr: {}", text(&bytes)),
            word => return (word, printed),
        }
    }
}

async fn connected(serving: &mut Serving) -> TcpStream {
    serving.ask(&ServerOrder::Connect { timeout_ms: 10_000 }).await.unwrap();
    match told(serving).await.0 {
        Word::Connected(stream) => {
            stream.set_nonblocking(false).unwrap();
            stream
        }
        other => panic!("{other:?} and no connection"),
    }
}

/// All that the server says on a new connection, which is a number.
pub(super) async fn heard(serving: &mut Serving) -> u64 {
    let mut said = String::new();
    connected(serving).await.read_to_string(&mut said).unwrap();
    said.trim().parse().unwrap()
}

fn talk(mut stream: TcpStream, word: &str) -> String {
    let mut heard = [0; 1];
    stream.read_exact(&mut heard).unwrap();
    stream.write_all(word.as_bytes()).unwrap();
    text(&heard).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_reached_without_a_network() {
    on_node(
        |_| {},
        async |node| {
            let lease = node.lease(&server(node, SERVER)).await.unwrap();
            let mut serving = lease.serve().await.unwrap();
            for number in ["0", "1"] {
                assert_eq!(talk(connected(&mut serving).await, "bye"), number);
            }
            let stream = connected(&mut serving).await;
            assert_eq!(stream.peer_addr().unwrap().port(), PORT);
            assert_eq!(talk(stream, "die"), "2");
            assert!(matches!(told(&mut serving).await.0, Word::Ended(How::Exited(7))));
            assert_eq!((node.sandboxes.counts().busy, node.sandboxes.counts().warm.len()), (0, 1));
            drop(serving);
            // Its sandbox goes, though it would look clean.
            node.settles_at(0).await;
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_printed_is_there_when_asked_for() {
    on_node(
        |_| {},
        async |node| {
            let mut serving = node.lease(&server(node, SERVER)).await.unwrap().serve().await.unwrap();
            serving.ask(&ServerOrder::Connect { timeout_ms: 10_000 }).await.unwrap();
            let (word, mut printed) = told(&mut serving).await;
            assert!(matches!(word, Word::Connected(_)), "{word:?}");
            serving.ask(&ServerOrder::Flush).await.unwrap();
            let (word, more) = told(&mut serving).await;
            assert!(matches!(word, Word::Flushed), "{word:?}");
            printed.push_str(&more);
            assert_eq!(printed, "up\n");
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_servers_want_of_memory_is_told_from_a_crash() {
    on_node(
        |_| {},
        async |node| {
            let mut serving = node.lease(&server(node, SERVER)).await.unwrap().serve().await.unwrap();
            talk(connected(&mut serving).await, "eat");
            let (word, _) = told(&mut serving).await;
            assert!(matches!(word, Word::Ended(How::OutOfMemory)), "{word:?}");
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_reached_where_nobody_listens() {
    on_node(
        |_| {},
        async |node| {
            let program = "import time; time.sleep(60)";
            let mut serving = node.lease(&server(node, program)).await.unwrap().serve().await.unwrap();
            serving.ask(&ServerOrder::Connect { timeout_ms: 300 }).await.unwrap();
            let (word, _) = told(&mut serving).await;
            assert!(matches!(word, Word::Unconnected(_)), "{word:?}");
        },
    )
    .await;
}
