//! An SQLite file that is not there: SQLite says only that it cannot be opened.

use std::{borrow::Cow, error::Error as StdError, fmt, path::Path, sync::Arc};

use sea_orm::{
    DbErr, RuntimeErr, SqlxSqliteError,
    sqlx::{
        self, ConnectOptions as _,
        error::{DatabaseError, ErrorKind},
        sqlite::SqliteConnectOptions,
    },
};

/// SQLITE_CANTOPEN, the low byte of its extended codes
/// (<https://sqlite.org/rescode.html#cantopen>).
const CANNOT_OPEN: i32 = 14;

/// Adds what to write to the error of a file that cannot be opened because it
/// does not exist.
pub(crate) fn explained(options: &SqliteConnectOptions, error: sqlx::Error) -> sqlx::Error {
    match error {
        sqlx::Error::Database(error) if is_cannot_open(&*error) => {
            sqlx::Error::Database(match remedy(options) {
                Some(remedy) => Box::new(MissingFile::new(error, &remedy)),
                None => error,
            })
        }
        other => other,
    }
}

/// [`explained`] for SeaORM's error of connecting with this URL.
#[cfg_attr(not(feature = "config"), allow(dead_code))] // it connects by URLs
pub(crate) fn explained_at(url: &str, error: DbErr) -> DbErr {
    let DbErr::Conn(RuntimeErr::SqlxError(error)) = error else {
        return error;
    };
    let error = match (Arc::try_unwrap(error), url.parse()) {
        (Ok(error), Ok(options)) => explained(&options, error).into(),
        (Ok(error), Err(_)) => error.into(),
        // As it was: what is shared cannot be taken apart.
        (Err(error), _) => error,
    };
    DbErr::Conn(RuntimeErr::SqlxError(error))
}

fn is_cannot_open(error: &dyn DatabaseError) -> bool {
    let is_sqlites = error.try_downcast_ref::<SqlxSqliteError>().is_some();
    let code = error.code().and_then(|code| code.parse::<i32>().ok());
    is_sqlites && code.is_some_and(|code| code & 0xff == CANNOT_OPEN)
}

/// Returns what is to be done; `None` if the file is there, or is no file.
fn remedy(options: &SqliteConnectOptions) -> Option<String> {
    let url = options.to_url_lossy();
    let parameter = |name| {
        let mut parameters = url.query_pairs();
        parameters.find_map(|(key, value)| (key == name).then_some(value))
    };
    let file = options.get_filename();
    // A VFS of one's own may keep its databases anywhere, and SQLite reads more
    // into a name of this kind.
    if parameter("vfs").is_some() || file.to_string_lossy().starts_with("file:") {
        return None;
    }
    // Whole: a relative path depends on where the service was started.
    let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    // Only what is known to be missing: without the right to look, it may be
    // there.
    let is_missing = |path: &Path| path.try_exists().is_ok_and(|is_there| !is_there);
    let directory = file.parent().filter(|directory| is_missing(directory));
    if let Some(directory) = directory {
        let directory = directory.display();
        return Some(format!("there is no directory `{directory}`: create it"));
    }
    if !is_missing(&file) {
        return None;
    }
    let file = file.display();
    match parameter("mode").as_deref() {
        // It was to be created, and its directory says more than this could.
        Some("rwc") => None,
        Some("ro") => Some(format!(
            "`{file}` does not exist, and `mode=ro` creates no file"
        )),
        _ => Some(format!(
            "`{file}` does not exist: to have it created, write `mode=rwc` into the URL (`sqlite://…?mode=rwc`)"
        )),
    }
}

/// SQLite's error, with what to do about it.
#[derive(Debug)]
struct MissingFile {
    error: Box<dyn DatabaseError>,
    message: String,
}

impl MissingFile {
    fn new(error: Box<dyn DatabaseError>, remedy: &str) -> Self {
        let message = format!("{}; {remedy}", error.message());
        Self { error, message }
    }
}

impl fmt::Display for MissingFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // As sqlx shows SQLite's own.
        let code = self.error.code().unwrap_or_default();
        write!(f, "(code: {code}) {}", self.message)
    }
}

impl StdError for MissingFile {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(self.error.as_error())
    }
}

// Code that looks for SQLite's error finds it: only the text is another.
impl DatabaseError for MissingFile {
    fn message(&self) -> &str {
        &self.message
    }

    fn code(&self) -> Option<Cow<'_, str>> {
        self.error.code()
    }

    fn as_error(&self) -> &(dyn StdError + Send + Sync + 'static) {
        self.error.as_error()
    }

    fn as_error_mut(&mut self) -> &mut (dyn StdError + Send + Sync + 'static) {
        self.error.as_error_mut()
    }

    fn into_error(self: Box<Self>) -> Box<dyn StdError + Send + Sync + 'static> {
        self.error.into_error()
    }

    fn kind(&self) -> ErrorKind {
        self.error.kind()
    }
}
