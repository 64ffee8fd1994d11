//! The phases of a call: what its time went into. The same words stand in `Server-Timing`, in the record, in the
//! metrics and in the call's story.

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

/// The gateway's: from the request's head to the route being found.
pub const GATE: &str = "gate";
/// The gateway's: identity and limits.
pub const AUTH: &str = "auth";
/// The node's: waiting for a sandbox.
pub const QUEUE: &str = "queue";
/// The node's: starting a sandbox for this call, and all that the start needed.
pub const COLD: &str = "cold";
/// The function's process, from its start to its end.
pub const FN: &str = "fn";
/// Between gateway and node: all that is in no other phase.
pub const LINK: &str = "link";
/// From the request's head to the answer's.
pub const TOTAL: &str = "total";

/// Upper bounds of the histograms of phases, in seconds. A warm call's phases are some microseconds, a cold one's
/// are seconds; the metrics library has no native histograms, which would need no such list.
pub const BUCKETS: [f64; 20] = [
    0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
    0.5, 1.0, 2.5, 5.0, 10.0, 60.0,
];

/// Why a sandbox had to be started for a call. A closed set: it is a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ColdCause {
    /// The version is younger than the agent's life, and had no sandbox on this node yet.
    FirstCall,
    /// The version had no sandbox since the agent started; whether it had one before that is not known.
    AgentStarted,
    /// It has sandboxes, and all were busy.
    AllBusy,
    /// The last one was idle for too long.
    Idle,
    /// The last one made room for another function's.
    Memory,
    /// The last one died, or a call left it in a state that no other call may find.
    Died,
    /// They were let go because the version got no more calls, as after a deploy; now it gets some again.
    Retired,
}

impl ColdCause {
    /// Every cause.
    pub const ALL: [Self; 7] =
        [Self::FirstCall, Self::AgentStarted, Self::AllBusy, Self::Idle, Self::Memory, Self::Died, Self::Retired];

    /// The word in headers, metrics and the table of records.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::FirstCall => "first_call",
            Self::AgentStarted => "agent_started",
            Self::AllBusy => "all_busy",
            Self::Idle => "idle",
            Self::Memory => "memory",
            Self::Died => "died",
            Self::Retired => "retired",
        }
    }

    /// The cause behind `word`.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|cause| cause.word() == word)
    }

    /// The same for a person, after "cold: ".
    #[must_use]
    pub fn sentence(self) -> &'static str {
        match self {
            Self::FirstCall => "the first call of this version on this node",
            Self::AgentStarted => "the first call of this version since the node's agent started",
            Self::AllBusy => "every sandbox of this version on this node was busy",
            Self::Idle => "the last sandbox was removed after it was idle for a while",
            Self::Memory => "the last sandbox was removed because another function needed its memory",
            Self::Died => "the last sandbox died, or the call before left it unfit for another",
            Self::Retired => "the sandboxes were let go when the version was replaced",
        }
    }
}

/// What a call's time went into, in microseconds. What nobody measured, or an older peer did not say, is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Phases {
    /// [`GATE`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gate_us: Option<u64>,
    /// [`AUTH`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth_us: Option<u64>,
    /// [`QUEUE`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_us: Option<u64>,
    /// [`COLD`]; `None` for a warm call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cold_us: Option<u64>,
    /// [`FN`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fn_us: Option<u64>,
    /// From the request's arrival at the node to the call's outcome.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_us: Option<u64>,
    /// Why it was cold, where the node knows.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "known_cause")]
    pub cold_cause: Option<ColdCause>,
}

/// A cause that only a newer peer knows is none, and no reason to lose the record.
fn known_cause<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ColdCause>, D::Error> {
    let word = Option::<Cow<'de, str>>::deserialize(deserializer)?;
    Ok(word.and_then(|word| ColdCause::from_word(&word)))
}

/// A duration as phases have it.
#[must_use]
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// A `Server-Timing` header as it grows.
#[derive(Debug)]
pub struct ServerTiming(String);

/// Room for all seven phases, so that the text is allocated once.
const TIMING_BYTES: usize = 192;

impl ServerTiming {
    /// Without a phase.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "an empty header is a beginning, not a default")]
    pub fn new() -> Self {
        Self(String::with_capacity(TIMING_BYTES))
    }

    /// Adds a phase, if it was measured.
    pub fn add(&mut self, phase: &str, us: Option<u64>) {
        let Some(us) = us else { return };
        self.separate();
        self.0.push_str(phase);
        self.duration(us);
    }

    /// Adds a node's own phases.
    pub fn add_node(&mut self, phases: &Phases) {
        self.add(QUEUE, phases.queue_us);
        match (phases.cold_us, phases.cold_cause) {
            (Some(us), Some(cause)) => {
                self.separate();
                for part in [COLD, ";desc=\"", cause.word(), "\""] {
                    self.0.push_str(part);
                }
                self.duration(us);
            }
            (us, _) => self.add(COLD, us),
        }
        self.add(FN, phases.fn_us);
    }

    /// Adds what another wrote in the same form.
    pub fn add_text(&mut self, text: &str) {
        if !text.is_empty() {
            self.separate();
            self.0.push_str(text);
        }
    }

    /// The header's value; empty where nothing was added.
    #[must_use]
    pub fn text(self) -> String {
        self.0
    }

    /// Adds microseconds as milliseconds. Every call pays for this four times and more, so it goes without the
    /// formatter, which takes more than twice as long.
    fn duration(&mut self, us: u64) {
        const DECIMALS: usize = 3;
        // 20 digits are the most that there are, and a point.
        let mut text = [0; 21];
        let (mut at, mut rest) = (text.len(), us);
        let point = text.len() - DECIMALS - 1;
        while rest > 0 || at >= point {
            at -= 1;
            if at == point {
                text[at] = b'.';
            } else {
                text[at] = b'0' + (rest % 10) as u8;
                rest /= 10;
            }
        }
        self.0.push_str(";dur=");
        self.0.push_str(std::str::from_utf8(&text[at..]).unwrap_or_default());
    }

    fn separate(&mut self) {
        if !self.0.is_empty() {
            self.0.push_str(", ");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_causes() {
        for cause in ColdCause::ALL {
            assert_eq!(ColdCause::from_word(cause.word()), Some(cause));
            assert_eq!(serde_json::to_value(cause).unwrap(), cause.word());
        }
        assert_eq!(ColdCause::from_word("whim"), None);
    }

    #[test]
    fn phases_in_json() {
        let check = |text: &str, expected: Phases| {
            assert_eq!(serde_json::from_str::<Phases>(text).unwrap(), expected, "{text}");
            let again = serde_json::to_string(&expected).unwrap();
            assert_eq!(serde_json::from_str::<Phases>(&again).unwrap(), expected, "{again}");
        };
        check("{}", Phases::default());
        check(r#"{"gate_us":1,"from_the_future":true}"#, Phases { gate_us: Some(1), ..Phases::default() });
        let cold = Phases { cold_us: Some(2), cold_cause: Some(ColdCause::Idle), ..Phases::default() };
        check(r#"{"cold_us":2,"cold_cause":"idle"}"#, cold);
        check(r#"{"cold_us":2,"cold_cause":"whim"}"#, Phases { cold_cause: None, ..cold });
        check(r#"{"cold_us":2,"cold_cause":null}"#, Phases { cold_cause: None, ..cold });
    }

    #[test]
    fn server_timing() {
        let check = |phases: Phases, total: Option<u64>, expected: &str| {
            let mut timing = ServerTiming::new();
            timing.add(GATE, phases.gate_us);
            timing.add(AUTH, phases.auth_us);
            timing.add_node(&phases);
            timing.add_text("");
            timing.add(TOTAL, total);
            assert_eq!(timing.text(), expected);
        };
        check(Phases::default(), None, "");
        check(Phases::default(), Some(12), "total;dur=0.012");
        let warm = Phases { gate_us: Some(0), queue_us: Some(3), fn_us: Some(20_500), ..Phases::default() };
        check(warm, Some(1_000_001), "gate;dur=0.000, queue;dur=0.003, fn;dur=20.500, total;dur=1000.001");
        let cold = Phases { cold_us: Some(400_000), cold_cause: Some(ColdCause::FirstCall), ..warm };
        let expected = "gate;dur=0.000, queue;dur=0.003, cold;desc=\"first_call\";dur=400.000, fn;dur=20.500";
        check(cold, None, expected);
        let why_not_known = Phases { cold_cause: None, ..cold };
        check(why_not_known, None, "gate;dur=0.000, queue;dur=0.003, cold;dur=400.000, fn;dur=20.500");
        check(Phases::default(), Some(u64::MAX), "total;dur=18446744073709551.615");
        check(Phases::default(), Some(1000), "total;dur=1.000");
        let mut whole = ServerTiming::new();
        for phase in [GATE, AUTH, LINK, TOTAL] {
            whole.add(phase, Some(3_599_999_999));
        }
        whole.add_node(&Phases { cold_cause: Some(ColdCause::AgentStarted), ..cold });
        assert!(whole.text().len() <= TIMING_BYTES);
    }
}
