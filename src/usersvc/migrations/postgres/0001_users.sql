-- Users, the log of their changes, and the answers to named requests. Moments are microseconds since 1970, UTC.

CREATE TABLE users (
  id        text COLLATE "C" PRIMARY KEY,  -- listed in the order of bytes
  name      text NOT NULL,
  email     text NOT NULL,
  email_key text COLLATE "C" NOT NULL UNIQUE,  -- folded: one user per email, whatever the case of its letters
  created   bigint NOT NULL,
  updated   bigint NOT NULL,
  etag      text NOT NULL
);

CREATE TABLE changes (
  sequence bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,  -- drawn under a lock: grows in the order of commits
  at       bigint NOT NULL,
  happened smallint NOT NULL,
  state    bytea NOT NULL  -- users.v1.User, serialized
);
CREATE INDEX changes_at ON changes (at);

CREATE TABLE requests (
  request_id  text COLLATE "C" PRIMARY KEY,
  method      text NOT NULL,
  fingerprint bytea NOT NULL,
  answer      bytea NOT NULL,  -- serialized
  expires     bigint NOT NULL
);
CREATE INDEX requests_expires ON requests (expires);

-- One row.
CREATE TABLE service (
  token_key bytea NOT NULL,
  forgotten bigint NOT NULL  -- sequence of the last change that was pruned
);
INSERT INTO service
VALUES (decode(replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''), 'hex'), 0);
