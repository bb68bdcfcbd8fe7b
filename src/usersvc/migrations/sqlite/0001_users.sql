-- Users, the log of their changes, and the answers to named requests. Moments are microseconds since 1970, UTC.

CREATE TABLE users (
  id        TEXT PRIMARY KEY,
  name      TEXT NOT NULL,
  email     TEXT NOT NULL,
  email_key TEXT NOT NULL UNIQUE,  -- folded: one user per email, whatever the case of its letters
  created   INTEGER NOT NULL,
  updated   INTEGER NOT NULL,
  etag      TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE changes (
  sequence INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used twice, even when the table was emptied
  at       INTEGER NOT NULL,
  happened INTEGER NOT NULL,
  state    BLOB NOT NULL  -- users.v1.User, serialized
);
CREATE INDEX changes_at ON changes (at);

CREATE TABLE requests (
  request_id  TEXT PRIMARY KEY,
  method      TEXT NOT NULL,
  fingerprint BLOB NOT NULL,
  answer      BLOB NOT NULL,  -- serialized
  expires     INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX requests_expires ON requests (expires);

-- One row.
CREATE TABLE service (
  token_key BLOB NOT NULL,
  forgotten INTEGER NOT NULL  -- sequence of the last change that was pruned
);
INSERT INTO service VALUES (randomblob(32), 0);
