//! Mistakes in URLs, and what to write instead: in the scheme that the URL has.

use sea_orm::DbBackend;
use url::Url;

use super::scheme::meant;

const SEVERAL_HOSTS: &str = "it names several hosts, and sqlx connects to one: write one host name that follows the primary";

/// Returns what is wrong with a text that cannot be parsed.
pub(super) fn ill_formed(text: &str) -> String {
    // By hand, since it cannot be parsed: only the likeliest mistakes are
    // looked for.
    let (scheme, rest) = text.split_once(':').unwrap_or_default();
    let rest = rest.strip_prefix("//").unwrap_or(rest);
    match meant(scheme) {
        Some((_, DbBackend::Sqlite)) => in_file(rest).to_owned(),
        Some((scheme, _)) => in_server(scheme, rest),
        None => {
            "not a URL: write `postgres://user:password@host/database`, `mysql://…` or `sqlite://…`"
                .to_owned()
        }
    }
}

/// Returns what is wrong with the URL of an SQLite file.
fn in_file(path: &str) -> &'static str {
    if path.starts_with(":memory:") {
        "a database in memory has no `//`: write `sqlite::memory:`"
    } else if path.starts_with("file:") {
        "SQLite's own `file:` does not belong in it: write `sqlite://name?mode=memory` for a database in memory, \
         `sqlite://directory/file.db` for a file"
    } else {
        "not a URL: write `sqlite://directory/file.db`, with ` `, `#`, `%`, `:` and `?` in names as `%20`, `%23`, `%25`, \
         `%3A` and `%3F`"
    }
}

/// Returns what is wrong with the URL of a server.
fn in_server(scheme: &str, rest: &str) -> String {
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, behind) = rest.split_at(end);
    let hosts = authority
        .rsplit_once('@')
        .map_or(authority, |(_, hosts)| hosts);
    let port = hosts.rsplit_once(':').map_or("", |(_, port)| port);
    // With an `@` behind it, it is a part of the user and the password.
    let is_host = !behind.contains('@');
    if is_host && hosts.contains(',') {
        SEVERAL_HOSTS.to_owned()
    } else if is_host && hosts.matches(':').count() > 1 && !hosts.contains('[') {
        let usual = if scheme == "mysql" { 3306 } else { 5432 };
        format!(
            "an IPv6 address needs brackets in a URL: write `{scheme}://user:password@[::1]:{usual}/database`"
        )
    } else if is_host && !port.is_empty() && port.bytes().all(|sign| sign.is_ascii_digit()) {
        "its port is no port: the last one is 65535".to_owned()
    } else {
        format!(
            "not a URL: write `{scheme}://user:password@host/database`, with `/`, `?`, `#`, `@` and `%` in user and \
             password as `%2F`, `%3F`, `%23`, `%40` and `%25`"
        )
    }
}

/// Returns what is wrong with the URL of a server that can be parsed.
pub(super) fn misplaced(url: &Url) -> Option<String> {
    // `postgres:user@host/shop` is a URL, with all of it for a path.
    if url.cannot_be_a_base() {
        let scheme = url.scheme();
        Some(format!(
            "`//` is missing after the scheme: write `{scheme}://user:password@host/database`"
        ))
    } else if has_stray_sign(url) {
        Some(
            "there is an `@` or `#` where none is allowed: write `/`, `?`, `#` and `@` in user, password, database and \
             parameters as `%2F`, `%3F`, `%23` and `%40`"
                .to_owned(),
        )
    } else {
        // `url` takes `a,b` for one name. libpq would try them in turn.
        let names_several = url.host_str().is_some_and(|host| host.contains(','));
        names_several.then(|| SEVERAL_HOSTS.to_owned())
    }
}

/// Returns whether the URL has a sign that only a password can have brought
/// there: an unescaped `/`, `?` or `#` in it ends the host early, and the `@`
/// that should follow comes later.
pub(super) fn has_stray_sign(url: &Url) -> bool {
    url.fragment().is_some()
        // No database and no parameter has one as a rule, and one that has can
        // escape it.
        || url.path().contains('@')
        || url.query().is_some_and(|query| query.contains('@'))
}
