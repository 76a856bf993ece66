//! A request to a function's own URL as the event that the function reads.

use std::collections::BTreeMap;

use axum::http::{HeaderMap, HeaderName, Method, Uri, header};
use bytes::Bytes;
use flux_protocol::event::HttpEvent;

use super::super::{api_key::KeyHeaders, query::RawQuery};

/// About one connection and not the message: they never pass in either direction. `Connection` may name more.
pub(super) const HOP_BY_HOP: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// `keys` is where the caller showed keys of the gateway: a function is never handed those.
pub(super) fn event(
    method: &Method,
    uri: &Uri,
    query: &RawQuery,
    headers: &HeaderMap,
    keys: KeyHeaders,
    body: &Bytes,
) -> HttpEvent {
    HttpEvent {
        method: method.to_string(),
        path: path_below(uri.path()).to_owned(),
        query: joined(query.any(), ","),
        raw_query: query.as_str().to_owned(),
        headers: joined(headers_for(headers, keys), ", "),
        body: String::new(),
        is_base64_encoded: false,
    }
    .with_body(body)
}

/// What follows `/fn/{name}`, as it was sent; at least `/`.
fn path_below(path: &str) -> &str {
    let after_name = path.strip_prefix("/fn/").and_then(|rest| rest.find('/').map(|at| &rest[at..]));
    after_name.unwrap_or("/")
}

fn headers_for(headers: &HeaderMap, keys: KeyHeaders) -> Vec<(String, String)> {
    let named_by_connection: Vec<String> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    let passes = |name: &HeaderName| {
        !HOP_BY_HOP.contains(&name.as_str())
            && !named_by_connection.iter().any(|named| named == name.as_str())
            && !keys.has_name(name)
    };
    headers
        .iter()
        .filter(|(name, _)| passes(name))
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect()
}

/// One value for each name: what came more than once is joined, in the order in which it came.
fn joined(pairs: Vec<(String, String)>, separator: &str) -> BTreeMap<String, String> {
    let mut all = BTreeMap::<String, String>::new();
    for (name, value) in pairs {
        match all.entry(name) {
            std::collections::btree_map::Entry::Vacant(free) => {
                free.insert(value);
            }
            std::collections::btree_map::Entry::Occupied(mut taken) => {
                taken.get_mut().push_str(separator);
                taken.get_mut().push_str(&value);
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::{super::super::api_key::KeyHeader, *};

    #[test]
    fn a_path_is_what_follows_the_name() {
        assert_eq!(path_below("/fn/hello"), "/");
        assert_eq!(path_below("/fn/hello/"), "/");
        assert_eq!(path_below("/fn/hello/a%20b/c"), "/a%20b/c");
        assert_eq!(path_below("/fn/hello//x"), "//x");
    }

    #[test]
    fn the_gateways_key_and_the_connections_headers_stay_behind() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-api-key", "s3cret"),
            ("authorization", "Bearer its-own"),
            ("connection", "close, X-Hop"),
            ("x-hop", "1"),
            ("te", "trailers"),
            ("accept", "a"),
            ("cookie", "c"),
        ] {
            headers.append(name, value.parse().expect("a header"));
        }
        headers.append("accept", "b".parse().expect("a header"));
        let mut keys = KeyHeaders::default();
        keys.add(KeyHeader::XApiKey);
        let names: BTreeMap<_, _> = joined(headers_for(&headers, keys), ", ");
        assert_eq!(names["accept"], "a, b");
        assert_eq!(names["authorization"], "Bearer its-own");
        assert_eq!(names.keys().collect::<Vec<_>>(), ["accept", "authorization", "cookie"]);
    }
}
