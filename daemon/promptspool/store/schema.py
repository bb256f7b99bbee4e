"""The tables, and how an older database becomes a newer one. Pure text."""

from __future__ import annotations

SCHEMA = (
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;

    CREATE TABLE providers (
        id TEXT PRIMARY KEY,
        status TEXT NOT NULL CHECK (status IN ('recalling', 'ready')),
        version INTEGER NOT NULL,
        due_at REAL,
        failures INTEGER NOT NULL,
        sweeps INTEGER NOT NULL,
        struck TEXT NOT NULL,
        pauses INTEGER NOT NULL,
        paused_until REAL,
        paused_at REAL,
        why TEXT
    ) STRICT;

    CREATE TABLE jobs (
        id TEXT PRIMARY KEY,
        name BLOB NOT NULL,
        stem BLOB NOT NULL,
        profile TEXT NOT NULL,
        provider TEXT,
        base_url TEXT,
        status TEXT NOT NULL CHECK (status IN (
            'claimed', 'planned', 'settled', 'delivered', 'done', 'unusable', 'rejected')),
        version INTEGER NOT NULL,
        due_at REAL,
        failures INTEGER NOT NULL,
        claimed_at REAL NOT NULL,
        planned_at REAL,
        delivered_at REAL,
        size_bytes INTEGER NOT NULL,
        sha256 TEXT,
        requests INTEGER,
        why TEXT
    ) STRICT;

    CREATE INDEX jobs_due ON jobs (status, due_at) WHERE due_at IS NOT NULL;
    CREATE INDEX jobs_deadline ON jobs (due_at) WHERE due_at IS NOT NULL;
    CREATE INDEX jobs_live ON jobs (status) WHERE status NOT IN ('done', 'rejected');
    CREATE INDEX jobs_content ON jobs (sha256) WHERE sha256 IS NOT NULL;

    CREATE TABLE batches (
        id TEXT PRIMARY KEY,
        job TEXT NOT NULL REFERENCES jobs (id),
        parent TEXT,
        provider TEXT NOT NULL,
        base_url TEXT NOT NULL,
        endpoint TEXT NOT NULL,
        model TEXT NOT NULL,
        status TEXT NOT NULL CHECK (status IN (
            'planned', 'uploaded', 'creating', 'unclear', 'created', 'ended', 'downloaded',
            'closed')),
        version INTEGER NOT NULL,
        due_at REAL,
        failures INTEGER NOT NULL,
        requests INTEGER NOT NULL,
        size_bytes INTEGER NOT NULL,
        sha256 TEXT NOT NULL,
        attempt INTEGER NOT NULL,
        waits INTEGER NOT NULL,
        reuploads INTEGER NOT NULL,
        halvings INTEGER NOT NULL,
        give_up_at REAL NOT NULL,
        input_file TEXT,
        uploaded_at REAL,
        intended_at REAL,
        unclear_at REAL,
        looks INTEGER NOT NULL,
        remote_id TEXT,
        remote_status TEXT CHECK (remote_status IN (
            'validating', 'in_progress', 'finalizing', 'cancelling', 'completed', 'failed',
            'expired', 'cancelled', 'unknown', 'refused', 'lost')),
        created_at REAL,
        ended_at REAL,
        polls INTEGER NOT NULL,
        missed INTEGER NOT NULL,
        missed_at REAL,
        total INTEGER NOT NULL,
        completed INTEGER NOT NULL,
        failed INTEGER NOT NULL,
        output_file TEXT,
        error_file TEXT,
        errors TEXT,
        why TEXT
    ) STRICT;

    CREATE INDEX batches_due ON batches (provider, status, due_at) WHERE due_at IS NOT NULL;
    CREATE INDEX batches_deadline ON batches (due_at) WHERE due_at IS NOT NULL;
    CREATE INDEX batches_job ON batches (job);

    CREATE TABLE history (
        row TEXT NOT NULL,
        at REAL NOT NULL,
        was TEXT,
        became TEXT NOT NULL,
        why TEXT
    ) STRICT;

    CREATE INDEX history_row ON history (row);
    """,
    """
    ALTER TABLE jobs ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE batches ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;

    CREATE INDEX jobs_queue ON jobs (status, priority DESC, due_at) WHERE due_at IS NOT NULL;
    CREATE INDEX batches_queue ON batches (provider, status, priority DESC, due_at)
        WHERE due_at IS NOT NULL;
    """,
    """
    ALTER TABLE providers ADD COLUMN paused_work TEXT NOT NULL DEFAULT 'all'
        CHECK (paused_work IN ('all', 'uploads', 'creations', 'downloads'));
    ALTER TABLE batches ADD COLUMN progressed_at REAL;
    ALTER TABLE batches ADD COLUMN stalls INTEGER NOT NULL DEFAULT 0;

    CREATE INDEX batches_intended ON batches (provider, intended_at) WHERE intended_at IS NOT NULL;
    CREATE INDEX batches_doubted ON batches (status) WHERE status IN ('creating', 'unclear');
    """,
    """
    CREATE TABLE jobs_4 (
        id TEXT PRIMARY KEY,
        name BLOB NOT NULL,
        stem BLOB NOT NULL,
        profile TEXT NOT NULL,
        provider TEXT,
        base_url TEXT,
        status TEXT NOT NULL CHECK (status IN (
            'claimed', 'planned', 'held', 'settled', 'delivered', 'done', 'unusable', 'rejected')),
        version INTEGER NOT NULL,
        due_at REAL,
        failures INTEGER NOT NULL,
        failed_at REAL,
        priority INTEGER NOT NULL,
        claimed_at REAL NOT NULL,
        planned_at REAL,
        delivered_at REAL,
        size_bytes INTEGER NOT NULL,
        sha256 TEXT,
        requests INTEGER,
        bad_rows INTEGER NOT NULL DEFAULT 0,
        estimated_usd REAL,
        released_at REAL,
        cancelled_at REAL,
        retry_of TEXT,
        results INTEGER,
        errors INTEGER,
        cost_usd REAL,
        standard_usd REAL,
        why TEXT
    ) STRICT;

    INSERT INTO jobs_4 (
        id, name, stem, profile, provider, base_url, status, version, due_at, failures, priority,
        claimed_at, planned_at, delivered_at, size_bytes, sha256, requests, why
    ) SELECT
        id, name, stem, profile, provider, base_url, status, version, due_at, failures, priority,
        claimed_at, planned_at, delivered_at, size_bytes, sha256, requests, why
    FROM jobs;

    DROP TABLE jobs;
    ALTER TABLE jobs_4 RENAME TO jobs;

    CREATE INDEX jobs_due ON jobs (status, due_at) WHERE due_at IS NOT NULL;
    CREATE INDEX jobs_deadline ON jobs (due_at) WHERE due_at IS NOT NULL;
    CREATE INDEX jobs_queue ON jobs (status, priority DESC, due_at) WHERE due_at IS NOT NULL;
    CREATE INDEX jobs_live ON jobs (status) WHERE status NOT IN ('done', 'rejected');
    CREATE INDEX jobs_content ON jobs (sha256) WHERE sha256 IS NOT NULL;

    ALTER TABLE batches ADD COLUMN failed_at REAL;
    ALTER TABLE batches ADD COLUMN cancelled_at REAL;
    ALTER TABLE batches ADD COLUMN estimated_input INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE batches ADD COLUMN estimated_output INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE batches ADD COLUMN estimated_usd REAL;
    ALTER TABLE batches ADD COLUMN crowded_at REAL;
    ALTER TABLE batches ADD COLUMN held_at REAL;
    ALTER TABLE batches ADD COLUMN answered INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE batches ADD COLUMN unanswered INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE batches ADD COLUMN input_tokens INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE batches ADD COLUMN cached_tokens INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE batches ADD COLUMN output_tokens INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE batches ADD COLUMN reasoning_tokens INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE batches ADD COLUMN cost_usd REAL;
    ALTER TABLE batches ADD COLUMN standard_usd REAL;

    CREATE INDEX batches_live ON batches (status) WHERE status != 'closed';
    DROP INDEX batches_intended;
    CREATE INDEX batches_spent ON batches (provider, intended_at, cost_usd, estimated_usd)
        WHERE intended_at IS NOT NULL;
    CREATE INDEX batches_enqueued ON batches (provider, model, status)
        WHERE status IN ('creating', 'unclear', 'created');

    CREATE INDEX history_ended ON history (at, row)
        WHERE became IN ('delivered', 'rejected', 'dropped');

    ALTER TABLE providers ADD COLUMN failed_at REAL;
    ALTER TABLE providers ADD COLUMN halted_at REAL;

    CREATE TABLE notices (
        id TEXT PRIMARY KEY,
        job TEXT NOT NULL,
        event TEXT NOT NULL,
        target TEXT NOT NULL,
        status TEXT NOT NULL CHECK (status IN ('pending', 'sent', 'dropped')),
        version INTEGER NOT NULL,
        due_at REAL,
        failures INTEGER NOT NULL,
        failed_at REAL,
        made_at REAL NOT NULL,
        why TEXT
    ) STRICT;

    CREATE INDEX notices_due ON notices (status, due_at) WHERE due_at IS NOT NULL;
    CREATE INDEX notices_job ON notices (job);

    CREATE TABLE spent (
        provider TEXT NOT NULL,
        day INTEGER NOT NULL,
        usd REAL NOT NULL,
        standard_usd REAL NOT NULL,
        input_tokens INTEGER NOT NULL,
        output_tokens INTEGER NOT NULL,
        PRIMARY KEY (provider, day)
    ) STRICT;
    """,
    """
    ALTER TABLE jobs RENAME COLUMN sha256 TO digest;
    ALTER TABLE batches RENAME COLUMN sha256 TO digest;

    CREATE INDEX jobs_earlier ON jobs (size_bytes) WHERE digest NOT LIKE 'b3-%';
    """,
    """
    CREATE INDEX batches_open ON batches (job) WHERE status != 'closed';
    CREATE INDEX jobs_finished ON jobs (coalesce(delivered_at, claimed_at), id)
        WHERE status IN ('done', 'rejected');
    DROP INDEX batches_doubted;
    """,
)
"""Numbered migrations: entry n takes a database from `user_version` n to n + 1."""
