-- Names and keys sort by their bytes. Times are microseconds since the epoch.
CREATE TABLE functions (
    name    text COLLATE "C" PRIMARY KEY,
    -- NULL once the function was deleted; the row stays so that versions go on counting.
    current bigint,
    last    bigint NOT NULL
);

CREATE TABLE versions (
    function   text COLLATE "C" NOT NULL,
    version    bigint NOT NULL,
    digest     bytea,
    spec       text NOT NULL,
    created_at bigint NOT NULL,
    PRIMARY KEY (function, version)
);

-- What is filtered or ordered by has a column; the rest of the record is JSON. It is text and not jsonb: nothing looks into it.
CREATE TABLE executions (
    id         uuid PRIMARY KEY,
    function   text COLLATE "C" NOT NULL,
    -- 0 not terminal, 1 success, 2 failed, 3 cancelled
    status     smallint NOT NULL,
    queued_at  bigint NOT NULL,
    status_at  bigint NOT NULL,
    record     text NOT NULL,
    output     bytea,
    invocation text
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.02);

CREATE INDEX executions_of_function ON executions (function, id);
CREATE INDEX executions_of_function_by_status ON executions (function, status, id);
CREATE INDEX executions_open ON executions (id, status_at) WHERE status = 0;
CREATE INDEX executions_ended ON executions (status, id) WHERE status <> 0;
CREATE INDEX executions_ended_at ON executions (status_at, id) WHERE status <> 0;

CREATE TABLE idempotency (
    function   text COLLATE "C" NOT NULL,
    key        text COLLATE "C" NOT NULL,
    execution  uuid NOT NULL,
    body       bytea NOT NULL,
    at         bigint NOT NULL,
    expires_at bigint NOT NULL,
    PRIMARY KEY (function, key)
);

CREATE INDEX idempotency_expiry ON idempotency (expires_at);

-- A released lease keeps its row, and so its token.
CREATE TABLE leases (
    name   text PRIMARY KEY,
    holder text NOT NULL,
    token  bigint NOT NULL,
    until  bigint NOT NULL
);

-- When a key was used is apart from its record: every gateway writes it, and the later one stays.
CREATE TABLE api_keys (
    id           text PRIMARY KEY,
    record       text NOT NULL,
    last_used_at bigint
);

CREATE TABLE audit (
    seq   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at    bigint NOT NULL,
    entry text NOT NULL
);

CREATE INDEX audit_at ON audit (at);

-- What gateways share and nobody else knows. The first that is written stays.
CREATE TABLE shared_keys (
    name  text PRIMARY KEY,
    value bytea NOT NULL
);

CREATE TABLE secrets (
    name       text COLLATE "C" PRIMARY KEY,
    version    bigint NOT NULL,
    key        text NOT NULL,
    sealed     bytea NOT NULL,
    created_at bigint NOT NULL,
    updated_at bigint NOT NULL
);

-- Which agent was given the secrets of an attempt.
CREATE TABLE secret_claims (
    execution uuid NOT NULL,
    attempt   bigint NOT NULL,
    agent     text NOT NULL,
    nonce     bytea NOT NULL,
    at        bigint NOT NULL,
    PRIMARY KEY (execution, attempt)
);

CREATE INDEX secret_claims_at ON secret_claims (at);
