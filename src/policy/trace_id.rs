//! [`trace_id`]: the trace that a request belongs to.

use http::request::Parts;

/// Returns the trace that a request belongs to, by its header `traceparent`
/// (<https://www.w3.org/TR/trace-context/>): 32 hexadecimal digits. For
/// [`DbSessionLayer::application_name`](crate::DbSessionLayer::application_name).
///
/// Returns `None` if the header is missing, malformed, repeated or all zeros.
///
/// ```
/// use tower_sea_orm::trace_id;
///
/// let parts = |value| http::Request::get("/").header("traceparent", value).body(()).unwrap().into_parts().0;
/// let sent = parts("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
/// assert_eq!(trace_id(&sent), Some("0af7651916cd43dd8448eb211c80319c"));
/// assert_eq!(trace_id(&parts("00-none")), None);
/// ```
pub fn trace_id(parts: &Parts) -> Option<&str> {
    let mut values = parts.headers.get_all("traceparent").iter();
    // Of two, none, as the specification's own tests have it
    // (`test_traceparent_duplicated` in
    // <https://github.com/w3c/trace-context/blob/main/test/test.py>).
    let (Some(value), None) = (values.next(), values.next()) else {
        return None;
    };
    let mut fields = value.to_str().ok()?.split('-');
    let version = fields.next().filter(|version| is_hex(version, 2))?;
    let trace = fields.next().filter(|trace| is_id(trace, 32))?;
    fields.next().filter(|parent| is_id(parent, 16))?;
    fields.next().filter(|flags| is_hex(flags, 2))?;
    // Version 00 has these fields, and later ones may have more behind them.
    // There will be no version ff.
    match version {
        "ff" => None,
        "00" if fields.next().is_some() => None,
        _ => Some(trace),
    }
}

/// Returns whether `field` has this many digits, which are lower case.
fn is_hex(field: &str, digits: usize) -> bool {
    // Lower case only:
    // <https://www.w3.org/TR/trace-context/#traceparent-header-field-values>.
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    field.len() == digits && field.bytes().all(is_digit)
}

/// Returns whether `field` names something.
fn is_id(field: &str, digits: usize) -> bool {
    // All zeros stand for an ID that is invalid, there as well.
    is_hex(field, digits) && field.bytes().any(|byte| byte != b'0')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[&str]) -> Option<String> {
        let (mut parts, ()) = http::Request::new(()).into_parts();
        for value in values {
            let value = http::HeaderValue::from_str(value).ok()?;
            parts.headers.append("traceparent", value);
        }
        trace_id(&parts).map(str::to_owned)
    }

    #[test]
    fn a_malformed_traceparent_is_ignored() {
        const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
        const PARENT: &str = "b7ad6b7169203331";
        let good = format!("00-{TRACE}-{PARENT}-01");
        assert_eq!(of(&[&good]).as_deref(), Some(TRACE));
        for later in [
            format!("cc-{TRACE}-{PARENT}-01"),
            format!("01-{TRACE}-{PARENT}-01-what-comes-later"),
        ] {
            assert_eq!(of(&[&later]).as_deref(), Some(TRACE), "{later}");
        }
        let zeros = "0".repeat(32);
        for bad in [
            String::new(),
            "-".repeat(55),
            good[1..].to_owned(),
            good[..good.len() - 1].to_owned(),
            format!("{good}-more"),
            format!("{good} "),
            good.to_uppercase(),
            good.replace('-', "_"),
            format!("ff-{TRACE}-{PARENT}-01"),
            format!("00-{zeros}-{PARENT}-01"),
            format!("00-{TRACE}-{}-01", &zeros[..16]),
            format!("00-{TRACE}-{PARENT}-0x"),
            format!("00-{}z-{PARENT}-01", &TRACE[1..]),
            format!("01-{TRACE}-{PARENT}-01.more"),
        ] {
            assert_eq!(of(&[&bad]), None, "{bad}");
        }
        assert_eq!(of(&[&good, &good]), None);
        assert_eq!(of(&[]), None);
    }
}
