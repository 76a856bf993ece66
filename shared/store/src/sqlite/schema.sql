CREATE TABLE functions (
    name    TEXT PRIMARY KEY NOT NULL,
    -- NULL once the function was deleted; the row stays so that versions go on counting.
    current INTEGER,
    last    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE versions (
    function   TEXT NOT NULL,
    version    INTEGER NOT NULL,
    digest     BLOB,
    spec       TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (function, version)
) STRICT, WITHOUT ROWID;

-- Times are microseconds since the epoch. What is filtered or ordered by has a column; the rest of the
-- record is JSON. Output and invocation come last and apart, so that lists never read them.
CREATE TABLE executions (
    id         BLOB PRIMARY KEY NOT NULL,
    function   TEXT NOT NULL,
    -- 0 not terminal, 1 success, 2 failed, 3 cancelled
    status     INTEGER NOT NULL,
    queued_at  INTEGER NOT NULL,
    status_at  INTEGER NOT NULL,
    record     TEXT NOT NULL,
    output     BLOB,
    invocation TEXT
) STRICT, WITHOUT ROWID;

CREATE INDEX executions_of_function ON executions (function, id);
CREATE INDEX executions_of_function_by_status ON executions (function, status, id);
CREATE INDEX executions_open ON executions (id, status_at) WHERE status = 0;
CREATE INDEX executions_ended ON executions (status, id) WHERE status <> 0;
CREATE INDEX executions_ended_at ON executions (status_at, id) WHERE status <> 0;

CREATE TABLE idempotency (
    function   TEXT NOT NULL,
    key        TEXT NOT NULL,
    execution  BLOB NOT NULL,
    body       BLOB NOT NULL,
    at         INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (function, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX idempotency_expiry ON idempotency (expires_at);

-- A released lease keeps its row, and so its token.
CREATE TABLE leases (
    name   TEXT PRIMARY KEY NOT NULL,
    holder TEXT NOT NULL,
    token  INTEGER NOT NULL,
    until  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
