//! [`PositionCarrier`]: how a client's position gets to the client and back.

use std::{borrow::Cow, fmt, time::Duration};

use http::{HeaderName, HeaderValue, header, request, response};

use crate::position::Position;

/// Takes a client's [`Position`] to the client with a response, and back with
/// its next request (feature `replicas`).
///
/// [`PositionCookie`] and [`PositionHeader`] are for browsers and for services.
/// A position is not secret and need not be signed: a forged one makes its
/// request read on the primary, and no other.
///
/// One of your own may keep positions by user, in a session store for example.
/// Neither [`load`](Self::load) nor [`store`](Self::store) may block: leave I/O
/// to a middleware outside the session's layer, which passes the position on in
/// the extensions.
///
/// ```
/// use http::{request, response};
/// use tower_sea_orm::{Position, PositionCarrier};
///
/// /// For a middleware that puts the user's position into the request's extensions, and keeps the later of that and the
/// /// one that it finds in the response's: the layer puts it there.
/// struct InExtensions;
///
/// impl PositionCarrier for InExtensions {
///     fn load(&self, request: &request::Parts) -> Option<Position> {
///         request.extensions.get().copied()
///     }
///
///     fn store(&self, _: Position, _: &mut response::Parts) {}
/// }
///
/// let kept: Position = "1-0/3000060".parse().unwrap();
/// let (parts, ()) = http::Request::get("/").extension(kept).body(()).unwrap().into_parts();
/// assert_eq!(InExtensions.load(&parts), Some(kept));
/// ```
///
/// Where the store cannot be read, the middleware passes [`Position::PRIMARY`]
/// on.
pub trait PositionCarrier: Send + Sync {
    /// Returns the position that a request brings along; `None` if its client
    /// has written nothing lately. [`Position::PRIMARY`] for one that cannot be
    /// read: then the primary serves the request. It must not block.
    fn load(&self, request: &request::Parts) -> Option<Position>;

    /// Stores the position that the request has made in its response. It must
    /// not block.
    fn store(&self, position: Position, response: &mut response::Parts);
}

/// Carries positions in a cookie, for browsers: `HttpOnly`, `SameSite=Lax`,
/// `Path=/` (feature `replicas`).
///
/// ```
/// use std::time::Duration;
///
/// use tower_sea_orm::{PositionCarrier, PositionCookie};
///
/// let carrier = PositionCookie::new().secure().max_age(Duration::from_secs(60));
/// let (mut head, ()) = http::Response::new(()).into_parts();
/// carrier.store("1-0/3000060".parse().unwrap(), &mut head);
/// assert_eq!(
///     head.headers["set-cookie"],
///     "db-position=1-0/3000060; Max-Age=60; Path=/; HttpOnly; SameSite=Lax; Secure"
/// );
/// let request = http::Request::get("/").header("cookie", "theme=dark; db-position=1-0/3000060");
/// let (parts, ()) = request.body(()).unwrap().into_parts();
/// assert_eq!(carrier.load(&parts).unwrap().to_string(), "1-0/3000060");
/// ```
#[derive(Clone, Debug)]
pub struct PositionCookie {
    name: Cow<'static, str>,
    max_age: Duration,
    is_secure: bool,
}

impl PositionCookie {
    /// Returns a carrier with the cookie `db-position`, which lives for 30 s.
    pub fn new() -> Self {
        Self {
            name: Cow::Borrowed("db-position"),
            // Three times `max_lag`'s default: after that, each replica in use
            // has the write.
            max_age: Duration::from_secs(30),
            // With it, a client over plain HTTP would never send the cookie
            // back (<https://www.rfc-editor.org/rfc/rfc6265#section-4.1.2.5>),
            // and miss its own writes without a word.
            is_secure: false,
        }
    }

    /// Sets the cookie's name.
    ///
    /// # Panics
    ///
    /// If `name` is not a token ([RFC 6265,
    /// 4.1.1](https://www.rfc-editor.org/rfc/rfc6265#section-4.1.1)).
    #[must_use]
    #[track_caller]
    pub fn name(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.name = name.into();
        // Header names are tokens as well.
        assert!(
            HeaderName::try_from(&*self.name).is_ok(),
            "a cookie's name is made of letters, digits and !#$%&'*+-.^_`|~: {:?}",
            self.name
        );
        self
    }

    /// Sets for how long a client that has written keeps its position. Default:
    /// 30 s. It has to be longer than [`max_lag`](crate::Replicas::max_lag):
    /// without a position, a client may read on any replica in use.
    #[must_use]
    pub fn max_age(mut self, age: Duration) -> Self {
        self.max_age = age;
        self
    }

    /// Adds `Secure`: browsers send the cookie over TLS only.
    #[must_use]
    pub fn secure(mut self) -> Self {
        self.is_secure = true;
        self
    }
}

impl Default for PositionCookie {
    fn default() -> Self {
        Self::new()
    }
}

impl PositionCarrier for PositionCookie {
    fn load(&self, request: &request::Parts) -> Option<Position> {
        // All of them: HTTP/2 may split the header
        // (<https://www.rfc-editor.org/rfc/rfc9113#section-8.2.3>).
        let values = request.headers.get_all(header::COOKIE).iter();
        // As bytes, since another program's cookie may be no UTF-8, and must
        // not hide this one.
        let pairs = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b';'));
        let own = pairs.filter_map(|pair| {
            let pair = pair.trim_ascii();
            let rest = pair.strip_prefix(self.name.as_bytes())?;
            rest.strip_prefix(b"=")
        });
        // A cookie of the same name for another path or domain may hide the
        // later one.
        own.map(parse).reduce(Position::and)
    }

    fn store(&self, position: Position, response: &mut response::Parts) {
        let secure = if self.is_secure { "; Secure" } else { "" };
        let cookie = format!(
            "{}={position}; Max-Age={}; Path=/; HttpOnly; SameSite=Lax{secure}",
            self.name,
            self.max_age.as_secs()
        );
        // Never an error: the name is a token, and positions have nothing but
        // digits, letters and signs.
        if let Ok(cookie) = HeaderValue::try_from(cookie) {
            // Beside the handler's: cookies are not combined into one field
            // (<https://www.rfc-editor.org/rfc/rfc9110#section-5.3>).
            response.headers.append(header::SET_COOKIE, cookie);
        }
    }
}

/// Carries positions in a header of requests and responses, for services, and
/// as gRPC metadata: a client sends back the latest one that it received
/// (feature `replicas`).
///
/// ```
/// use tower_sea_orm::{PositionCarrier, PositionHeader};
///
/// let carrier = PositionHeader::new("db-position");
/// let request = http::Request::get("/").header("db-position", "1-0/3000060");
/// let (parts, ()) = request.body(()).unwrap().into_parts();
/// assert_eq!(carrier.load(&parts).unwrap().to_string(), "1-0/3000060");
/// ```
#[derive(Clone, Debug)]
pub struct PositionHeader(HeaderName);

impl PositionHeader {
    /// Returns a carrier with the header of this name.
    ///
    /// # Panics
    ///
    /// If `name` is not a lower-case header name.
    #[track_caller]
    pub fn new(name: &'static str) -> Self {
        Self(HeaderName::from_static(name))
    }
}

impl PositionCarrier for PositionHeader {
    fn load(&self, request: &request::Parts) -> Option<Position> {
        let values = request.headers.get_all(&self.0).iter();
        values
            .map(|value| parse(value.as_bytes()))
            .reduce(Position::and)
    }

    fn store(&self, position: Position, response: &mut response::Parts) {
        if let Ok(value) = HeaderValue::try_from(position.to_string()) {
            // In place of one that an inner service has passed through: its
            // position is of another cluster, or an older one.
            response.headers.insert(&self.0, value);
        }
    }
}

/// What cannot be read was a position once, perhaps: the primary has all of
/// them.
fn parse(value: &[u8]) -> Position {
    let text = str::from_utf8(value.trim_ascii()).ok();
    let position = text.and_then(|text| text.parse().ok());
    position.unwrap_or(Position::PRIMARY)
}

impl fmt::Debug for dyn PositionCarrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PositionCarrier")
    }
}
