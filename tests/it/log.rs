//! The log, as a test sees it.

use std::{
    fmt::{self, Write as _},
    io,
    sync::{Arc, Mutex, OnceLock},
};

use tracing::{
    Dispatch, Event, Subscriber,
    field::{Field, Visit},
    span::{Id, Record},
    subscriber::DefaultGuard,
};
use tracing_subscriber::{
    Layer,
    fmt::format::FmtSpan,
    layer::{Context, SubscriberExt},
    registry::LookupSpan,
};

/// Keeps every line of this crate's targets, one per event or recorded set of span fields.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<String>>>);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Log {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        if metadata.target().starts_with("tower_sea_orm") {
            let mut text = Text(format!("{} {}", metadata.level(), metadata.target()));
            event.record(&mut text);
            self.0.lock().unwrap().push(text.0);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let mut text = Text(format!("span {}", context.span(id).unwrap().name()));
        values.record(&mut text);
        self.0.lock().unwrap().push(text.0);
    }
}

impl Log {
    pub fn start() -> (Self, DefaultGuard) {
        keep_interest();
        let log = Self::default();
        let guard =
            tracing::subscriber::set_default(tracing_subscriber::registry().with(log.clone()));
        (log, guard)
    }

    pub fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    /// Returns the lines above INFO.
    pub fn loud(&self) -> Vec<String> {
        let mut lines = self.lines();
        lines.retain(|line| line.starts_with("WARN") || line.starts_with("ERROR"));
        lines
    }

    pub fn count(&self, part: &str) -> usize {
        self.lines()
            .iter()
            .filter(|line| line.contains(part))
            .count()
    }
}

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        write!(self.0, " {}={value:?}", field.name()).unwrap();
    }
}

/// Has every line offered to each thread's own log.
///
/// With one log in the process, a line that a thread without a log comes to first is taken for unwanted by all
/// threads: <https://github.com/tokio-rs/tracing/issues/2874>. With a second one, all logs are asked.
pub fn keep_interest() {
    static SECOND: OnceLock<Dispatch> = OnceLock::new();
    SECOND.get_or_init(|| Dispatch::new(tracing_subscriber::registry().with(Log::default())));
}

/// Everything that is logged at any level, with the fields of all spans.
#[derive(Clone, Default)]
pub struct FullLog(Arc<Mutex<Vec<u8>>>);

impl io::Write for FullLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl FullLog {
    pub fn start() -> (Self, DefaultGuard) {
        keep_interest();
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_span_events(FmtSpan::NEW)
            .with_ansi(false)
            .with_writer(move || writer.clone());
        (log, tracing::subscriber::set_default(subscriber.finish()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }

    pub fn count(&self, part: &str) -> usize {
        self.text().matches(part).count()
    }
}
