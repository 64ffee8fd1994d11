//! Server-sent events (WHATWG HTML, 9.2), as far as a build log needs them.

/// Longest event, in bytes: a failed build's answer holds its whole log.
const MAX_EVENT_BYTES: usize = 16 * 1024 * 1024;

/// One event.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Event {
    /// `message` where the server named none.
    pub(crate) name: String,
    /// Its data lines, joined.
    pub(crate) data: String,
}

/// An event over its limit.
#[derive(Debug, thiserror::Error)]
#[error("the server sent an event of more than {MAX_EVENT_BYTES} bytes")]
pub(crate) struct TooLong;

/// Puts events together from bytes as they come.
#[derive(Default)]
pub(crate) struct Events {
    line: Vec<u8>,
    name: Option<String>,
    data: Vec<String>,
    held: usize,
}

impl Events {
    /// Takes in `bytes` and returns the events that they complete.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Event>, TooLong> {
        let mut events = Vec::new();
        for &byte in bytes {
            if byte == b'\n' {
                let line = std::mem::take(&mut self.line);
                events.extend(self.end_line(&String::from_utf8_lossy(&line)));
                continue;
            }
            self.held += 1;
            if self.held > MAX_EVENT_BYTES {
                return Err(TooLong);
            }
            self.line.push(byte);
        }
        Ok(events)
    }

    fn end_line(&mut self, line: &str) -> Option<Event> {
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.is_empty() {
            self.held = 0;
            let (name, data) = (self.name.take(), std::mem::take(&mut self.data));
            let name = name.unwrap_or_else(|| "message".into());
            return (!data.is_empty()).then(|| Event { name, data: data.join("\n") });
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.name = Some(value.to_owned()),
            "data" => self.data.push(value.to_owned()),
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(stream: &str, expected: &[(&str, &str)]) {
        let expected: Vec<Event> =
            expected.iter().map(|(name, data)| Event { name: (*name).into(), data: (*data).into() }).collect();
        assert_eq!(Events::default().feed(stream.as_bytes()).unwrap(), expected, "{stream:?}");
        let mut events = Events::default();
        let by_byte: Vec<Event> = stream.bytes().flat_map(|byte| events.feed(&[byte]).unwrap()).collect();
        assert_eq!(by_byte, expected, "{stream:?} byte by byte");
    }

    #[test]
    fn events() {
        check("event: log\ndata: one\n\nevent: result\ndata: {}\n\n", &[("log", "one"), ("result", "{}")]);
        check("data: a\ndata:b\r\n\r\n", &[("message", "a\nb")]);
        check(": keep-alive\n\nid: 1\ndata:\n\n", &[("message", "")]);
        check("event: log\n\ndata: ü\n\n", &[("message", "ü")]);
        check("data: unfinished\n", &[]);
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut events = Events::default();
        let mebibyte = vec![b'x'; 1 << 20];
        assert!((0..17).any(|_| events.feed(&mebibyte).is_err()));
    }
}
