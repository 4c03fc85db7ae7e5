-- A calendar that several devices edit.
CREATE SCHEMA calendar;

CREATE TABLE calendar.appointments (
    id     uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    title  text NOT NULL,
    at     time NOT NULL,
    room   text NOT NULL DEFAULT '',
    guests text[] NOT NULL DEFAULT '{}',
    notes  text NOT NULL DEFAULT ''
);
-- What several people do to one row is merged, which takes the old values.
ALTER TABLE calendar.appointments REPLICA IDENTITY FULL;

CREATE TABLE calendar.checkpoints (
    node  text PRIMARY KEY,
    round int NOT NULL
);
