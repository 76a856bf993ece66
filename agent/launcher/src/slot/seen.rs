//! What of the machine a function sees: by name, so that what is not here is not there.

/// Programs and libraries. Links (a merged `/usr`) stay links.
pub(crate) const SYSTEM: [&str; 7] = ["usr", "bin", "sbin", "lib", "lib32", "libx32", "lib64"];
/// What resolving names, checking certificates and telling the time need; nothing here is a secret.
pub(crate) const ETC: [&str; 12] = [
    "resolv.conf",
    "hosts",
    "nsswitch.conf",
    "localtime",
    "timezone",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "alternatives",
    "ca-certificates",
    "ca-certificates.conf",
    "mime.types",
];
/// Certificates live in `ssl/certs`; `ssl/private` beside it must stay out.
pub(crate) const ETC_NESTED: [(&str, &[&str]); 2] =
    [("ssl", &["ssl/certs", "ssl/openssl.cnf"]), ("pki", &["pki/tls", "pki/ca-trust"])];
pub(crate) const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];
