-- When a key was used is apart from its record: every gateway writes it, and the later one stays.
CREATE TABLE api_keys (
    id           TEXT PRIMARY KEY NOT NULL,
    record       TEXT NOT NULL,
    last_used_at INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE audit (
    seq   INTEGER PRIMARY KEY AUTOINCREMENT,
    at    INTEGER NOT NULL,
    entry TEXT NOT NULL
) STRICT;

CREATE INDEX audit_at ON audit (at);

-- What gateways share and nobody else knows. The first that is written stays.
CREATE TABLE shared_keys (
    name  TEXT PRIMARY KEY NOT NULL,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE secrets (
    name       TEXT PRIMARY KEY NOT NULL,
    version    INTEGER NOT NULL,
    key        TEXT NOT NULL,
    sealed     BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Which agent was given the secrets of an attempt.
CREATE TABLE secret_claims (
    execution BLOB NOT NULL,
    attempt   INTEGER NOT NULL,
    agent     TEXT NOT NULL,
    nonce     BLOB NOT NULL,
    at        INTEGER NOT NULL,
    PRIMARY KEY (execution, attempt)
) STRICT, WITHOUT ROWID;

CREATE INDEX secret_claims_at ON secret_claims (at);
