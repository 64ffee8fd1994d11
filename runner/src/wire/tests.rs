//! Frames there and back, and bytes that are none.

use super::*;

pub(super) fn body(buffer: &[u8]) -> &[u8] {
    let (body, used) = split(buffer).unwrap().unwrap();
    assert_eq!(used, buffer.len());
    body
}

fn check_report(report: Report) {
    let mut buffer = Vec::new();
    match &report {
        Report::Output { stream, bytes } => encode_output(&mut buffer, *stream, bytes),
        Report::Done(done) => encode_done(&mut buffer, done),
        Report::Connected => encode_connected(&mut buffer),
        Report::Unconnected(errno) => encode_unconnected(&mut buffer, *errno),
        Report::Flushed => encode_flushed(&mut buffer),
    }
    assert_eq!(Report::decode(body(&buffer)), Ok(report));
    never_panics(&buffer);
}

/// Every prefix and every single wrong byte is read without a panic.
pub(super) fn never_panics(frame: &[u8]) {
    for end in 0..frame.len() {
        assert_eq!(split(&frame[..end]), Ok(None));
    }
    for at in 0..frame.len() {
        for value in [0, 1, 0x7f, 0xff] {
            let mut broken = frame.to_vec();
            broken[at] = value;
            if let Ok(Some((body, _))) = split(&broken) {
                let _ = (Order::decode(body), Report::decode(body));
            }
        }
    }
}

#[test]
fn reports_survive_the_wire() {
    check_report(Report::Output { stream: Stream::Stdout, bytes: b"hello\n".to_vec() });
    check_report(Report::Output { stream: Stream::Stderr, bytes: Vec::new() });
    let done = Done { how: How::Exited(3), peak_rss_bytes: 1 << 40, duration_us: 7, truncated: true, clean: false };
    check_report(Report::Done(done));
    check_report(Report::Done(Done { how: How::Signaled(9), clean: true, ..done }));
    check_report(Report::Done(Done { how: How::TimedOut, ..done }));
    check_report(Report::Done(Done { how: How::SpawnFailed(2), ..done }));
    check_report(Report::Connected);
    check_report(Report::Unconnected(111));
    check_report(Report::Flushed);
}

#[test]
fn orders_survive_the_wire() {
    let run = Run {
        argv: vec![b"sh".to_vec(), b"-c".to_vec(), Vec::new()],
        env: vec![b"A=\xff".to_vec()],
        cwd: b"/function".to_vec(),
        timeout_ms: 5000,
        output_cap_bytes: u64::MAX,
        merged: true,
        call: b"{}".to_vec(),
    };
    let mut buffer = Vec::new();
    run.encode(&mut buffer).unwrap();
    assert_eq!(Order::decode(body(&buffer)), Ok(Order::Run(run)));
    never_panics(&buffer);
    let (argv, env) = (vec![b"sh".to_vec()], vec![b"A=b".to_vec()]);
    let spare = Spare { argv, env, cwd: b"/".to_vec(), fork: true };
    buffer.clear();
    spare.encode(&mut buffer).unwrap();
    assert_eq!(Order::decode(body(&buffer)), Ok(Order::Keep(spare)));
    never_panics(&buffer);
}

#[test]
fn sizes_are_bounded() {
    assert_eq!(split(&[0xff; 16]), Err(Malformed));
    let run = Run { env: vec![vec![0; MAX_FRAME_BYTES]], ..Run::default() };
    let mut buffer = vec![1];
    assert_eq!(run.encode(&mut buffer), Err(Malformed));
    assert_eq!(buffer, [1]);
    encode_output(&mut buffer, Stream::Stdout, &[0; MAX_OUTPUT_BYTES * 2]);
    assert!(buffer.len() < MAX_OUTPUT_BYTES + 64);
    // A list that claims four billion items and has none.
    assert_eq!(Order::decode(&[RUN, 0xff, 0xff, 0xff, 0xff]), Err(Malformed));
    assert_eq!(Report::decode(&[]), Err(Malformed));
}
