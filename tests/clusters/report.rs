//! [`Table`]: what came of a part, printed and kept for the document.

use std::{env, fs, io::Write, path::PathBuf, sync::Mutex, time::Duration};

/// A table, kept in a file of this name; its rows come one by one.
pub struct Table {
    pub name: &'static str,
    pub head: &'static [&'static str],
}

impl Table {
    /// Prints the row, and keeps it if there is a place for it.
    pub fn row(&self, cells: &[String]) {
        assert_eq!(cells.len(), self.head.len(), "a cell for each column");
        let line = format!("| {} |\n", cells.join(" | "));
        if is_next(&self.heading()) {
            eprint!("\n{}", self.heading());
        }
        eprint!("{line}");
        let Some(dir) = env::var_os("CLUSTER_OUT").map(PathBuf::from) else {
            return;
        };
        let path = dir.join(self.name);
        let file = fs::File::options().create(true).append(true).open(path);
        let mut file = file.expect("a file for the table");
        if file.metadata().is_ok_and(|file| file.len() == 0) {
            write!(file, "{}", self.heading()).expect("the table's head is kept");
        }
        write!(file, "{line}").expect("the row is kept");
    }

    fn heading(&self) -> String {
        let numbers = "|--:".repeat(self.head.len() - 1);
        format!("| {} |\n|---{numbers}|\n", self.head.join(" | "))
    }
}

/// Whether this is another heading than the one that was printed last.
fn is_next(heading: &str) -> bool {
    static LAST: Mutex<String> = Mutex::new(String::new());
    let mut last = LAST.lock().expect("no panic while it is held");
    let is_next = *last != heading;
    heading.clone_into(&mut last);
    is_next
}

/// As an order of magnitude.
pub fn about(time: Duration) -> String {
    match time.as_millis() {
        millis @ ..100 => format!("{millis} ms"),
        millis @ ..1000 => format!("{} ms", millis / 10 * 10),
        millis => format!("{}.{} s", millis / 1000, millis % 1000 / 100),
    }
}
