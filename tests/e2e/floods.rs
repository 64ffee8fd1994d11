//! Floods of HTTP/2 frames on the public TLS listener: whoever sends them is cut off, memory stays, and all others are
//! served meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::platform::{Form, Platform};
use crate::tls::Certificates;

const PATIENCE: Duration = Duration::from_secs(60);

/// Attackers at once, and how often each comes back.
const ATTACKERS: usize = 8;
const ROUNDS: usize = 10;

/// Streams that one opens and resets who would keep below what is a flood: by fives, which are read before the next.
const PATIENT: (usize, usize) = (500, 5);

/// How much more memory the gateway may have at most. It was 25 to 90 MiB while calls of the API went on that their client
/// had taken back.
const MORE_MEMORY: u64 = 20 << 20;

/// How long a call of somebody else may take at worst.
const SLOWEST: Duration = Duration::from_secs(5);

const RST_STREAM: u8 = 3;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CANCEL: [u8; 4] = [0, 0, 0, 8];
const ENHANCE_YOUR_CALM: u32 = 11;

/// `GET /api/health` of `localhost`, by HPACK's static table.
const GET: &[u8] = b"\x82\x87\x04\x0b/api/health\x01\x09localhost";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// What a client says first: the preface, and that it has no wishes.
fn hello() -> Vec<u8> {
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &frame(4, 0, 0, &[])].concat()
}

/// The id of a client's stream.
fn stream(number: usize) -> u32 {
    u32::try_from(2 * number + 1).unwrap_or(u32::MAX)
}

/// Requests that are taken back at once.
fn resets(from: usize, count: usize) -> Vec<u8> {
    let one = |number| [frame(1, 0x5, stream(number), GET), frame(RST_STREAM, 0, stream(number), &CANCEL)].concat();
    (from..from + count).flat_map(one).collect()
}

/// A head that goes on and on, each part of it as large as this.
fn continuations(count: usize, bytes: usize) -> Vec<u8> {
    let value = vec![b'y'; 100];
    let line = [b"\x00\x03x-y\x64".as_slice(), &value].concat();
    let part: Vec<u8> = line.iter().copied().cycle().take(bytes / line.len() * line.len()).collect();
    let rest = std::iter::repeat_n(frame(9, 0, 1, &part), count);
    std::iter::once(frame(1, 0x1, 1, GET)).chain(rest).flatten().collect()
}

/// The next frame: its kind, its flags and its payload; `None` at the end.
async fn next(stream: &mut (impl AsyncRead + Unpin)) -> Option<(u8, u8, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let [a, b, c, kind, flags, ..] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
    stream.read_exact(&mut payload).await.ok()?;
    Some((kind, flags, payload))
}

/// Sends all of it, and reads until the gateway closes; the error that it said.
async fn attack(certificates: &Certificates, platform: &Platform, flood: &[u8]) -> Result<Option<u32>> {
    let stream = certificates.handshake(platform.port(), &[b"h2"]).await?;
    let (mut read, mut write) = tokio::io::split(stream);
    let attacked = async {
        let sent = async {
            // It is closed under who sends.
            write.write_all(&[&hello(), flood].concat()).await.ok();
            write.flush().await.ok();
        };
        let heard = async {
            let mut said = None;
            while let Some((kind, _, payload)) = next(&mut read).await {
                if let (GOAWAY, Some(code)) = (kind, payload.get(4..8)) {
                    said = Some(code.iter().fold(0, |code, byte| code << 8 | u32::from(*byte)));
                }
            }
            said
        };
        tokio::join!(sent, heard).1
    };
    timeout(PATIENCE, attacked).await.context("it is not cut off")
}

/// Opens and resets streams for as long as that is no flood; how many.
async fn wear_out<S: AsyncRead + AsyncWrite + Unpin>(mut connection: S) -> Result<usize> {
    connection.write_all(&hello()).await?;
    for round in 0..PATIENT.0 {
        let ping = frame(PING, 0, 0, &[7; 8]);
        connection.write_all(&[resets(round * PATIENT.1, PATIENT.1), ping].concat()).await?;
        connection.flush().await?;
        loop {
            match timeout(PATIENCE, next(&mut connection)).await?.context("it is cut off")? {
                (PING, flags, _) if flags & 1 == 1 => break,
                // What was read may still wait to be begun, on a busy machine.
                (GOAWAY, ..) => return Ok(round * PATIENT.1),
                _ => {}
            }
        }
    }
    Ok(PATIENT.0 * PATIENT.1)
}

/// Calls of somebody else until the end, and how long the slowest of them took.
async fn others(client: reqwest::Client, url: String, end: Arc<AtomicBool>) -> Result<(usize, Duration)> {
    let (mut calls, mut slowest) = (0, Duration::ZERO);
    while !end.load(Ordering::Relaxed) {
        let begun = Instant::now();
        client.get(&url).send().await?.error_for_status()?;
        (calls, slowest) = (calls + 1, slowest.max(begun.elapsed()));
    }
    Ok((calls, slowest))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_is_cut_off_and_nobody_else_sees_it() -> Result<()> {
    let certificates = Certificates::make()?;
    let platform = certificates.platform(Form::Gateway, &[]).await?;
    for (what, flood) in [
        ("reset streams", resets(0, 64)),
        ("parts of a head", continuations(8, 1024)),
        ("empty parts of a head", continuations(64, 0)),
    ] {
        let said = attack(&certificates, &platform, &flood).await.context(what)?;
        ensure!(said == Some(ENHANCE_YOUR_CALM), "{what}: {said:?}");
    }

    let end = Arc::<AtomicBool>::default();
    let url = format!("{}/api/health", platform.url());
    let served = tokio::spawn(others(platform.http().build()?, url, Arc::clone(&end)));
    let (many_resets, long_head) = (resets(0, 1000), continuations(64, 16 * 1024));
    let (begun, before) = (Instant::now(), platform.peak_memory()?[0].1);
    let attackers = (0..ATTACKERS).map(async |_| {
        for _ in 0..ROUNDS {
            attack(&certificates, &platform, &many_resets).await?;
            attack(&certificates, &platform, &long_head).await?;
        }
        wear_out(certificates.handshake(platform.port(), &[b"h2"]).await?).await
    });
    let worn: usize = try_join_all(attackers).await?.iter().sum();
    let more = platform.peak_memory()?[0].1.saturating_sub(before);
    println!("{:?}, {worn} patient resets: {} MiB more at most", begun.elapsed(), more >> 20);
    ensure!(more < MORE_MEMORY, "{} MiB more", more >> 20);
    end.store(true, Ordering::Relaxed);
    let (calls, slowest) = served.await??;
    println!("{calls} calls of others, the slowest {slowest:?}");
    ensure!(calls > 10 && slowest < SLOWEST, "{calls} calls, the slowest {slowest:?}");
    Ok(())
}
