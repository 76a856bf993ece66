-- What the reconciler asks ("open, and not heard of since") is answered by this index alone: `status`, though the same
-- in each entry, is in it because SQLite looks up the row for it otherwise.
DROP INDEX executions_open;
CREATE INDEX executions_open ON executions (id, status_at, status) WHERE status = 0;
