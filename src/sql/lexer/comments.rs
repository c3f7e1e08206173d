//! Comments, some of which are SQL to some servers.

use sea_orm::DatabaseBackend::{MySql, Postgres, Sqlite};

use super::{Lexer, is_space};

impl Lexer<'_> {
    pub(super) fn is_line_comment(&self) -> bool {
        match self.backend {
            // An operator on PostgreSQL, a placeholder's sign on SQLite.
            MySql if self.byte(0) == Some(b'#') => true,
            // Without a space it is twice a minus
            // (<https://dev.mysql.com/doc/refman/8.4/en/ansi-diff-comments.html>).
            MySql => self.starts_with("--") && self.byte(2).is_none_or(is_space),
            _ => self.starts_with("--"),
        }
    }

    pub(super) fn skip_line(&mut self) {
        let start = self.at;
        // PostgreSQL ends it at a carriage return as well. Taken for the rest
        // of the comment, a COMMIT behind one would go unseen.
        let postgres = self.backend == Postgres;
        self.advance(|byte| byte != b'\n' && !(postgres && byte == b'\r'));
        self.look_for_other_end(start);
    }

    /// Returns whether the comment that begins here is executable.
    pub(super) fn comment(&mut self) -> bool {
        if self.backend == MySql {
            // MySQL runs the first kind, MariaDB both
            // (<https://mariadb.com/kb/en/comment-syntax/>).
            let executable = ["/*!", "/*M!"]
                .into_iter()
                .find(|begin| self.starts_with(begin));
            if let Some(begin) = executable {
                // Servers differ in which of them they execute, by the version
                // behind the mark.
                self.doubtful |= self.executable;
                self.executable = true;
                self.at += begin.len();
                self.advance(|byte| byte.is_ascii_digit());
                return true;
            }
        }
        self.at += 2;
        // Only PostgreSQL's comments nest: by the others' rule, what follows
        // the first end would be SQL.
        if self.backend == Postgres {
            self.nested_comment();
        // An end in a line comment or a string counts as well: the servers look
        // for nothing else.
        } else if !self.skip_past("*/") {
            // SQLite closes it at the text's end
            // (<https://sqlite.org/lang_comment.html>).
            self.doubtful |= self.backend != Sqlite;
        }
        // A server that skips the comment around this one might take this end
        // for its own.
        self.executable
    }

    fn nested_comment(&mut self) {
        let mut depth = 1_usize;
        while depth > 0 {
            self.advance(|byte| byte != b'*' && byte != b'/');
            if self.starts_with("/*") {
                depth += 1;
                self.at += 2;
            } else if self.starts_with("*/") {
                depth -= 1;
                self.at += 2;
            } else if self.byte(0).is_some() {
                self.at += 1;
            } else {
                self.doubtful = true;
                return;
            }
        }
    }

    /// A server that skips an executable comment ends it at the first `*/`, in
    /// quotes or not.
    pub(super) fn look_for_other_end(&mut self, start: usize) {
        self.doubtful |= self.executable
            && self
                .sql
                .get(start..self.at)
                .is_none_or(|text| text.contains("*/"));
    }
}
