-- A small shop. Keys are UUIDs, which no two nodes choose alike.
CREATE SCHEMA shop;

CREATE TABLE shop.accounts (
    id         uuid PRIMARY KEY,
    owner      text NOT NULL,
    city       text NOT NULL,
    changed_on text NOT NULL,                 -- the node of the last change
    opened_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX ON shop.accounts (opened_at);

CREATE TABLE shop.orders (
    id        uuid PRIMARY KEY,
    account   uuid NOT NULL REFERENCES shop.accounts,
    placed_on text NOT NULL,
    placed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    lines     int  NOT NULL                   -- how many order_lines its transaction wrote
);
CREATE INDEX ON shop.orders (placed_at);

CREATE TABLE shop.order_lines (
    order_id uuid NOT NULL REFERENCES shop.orders ON DELETE CASCADE,
    line     int  NOT NULL,
    article  text NOT NULL,
    price    numeric(10, 2) NOT NULL,
    PRIMARY KEY (order_id, line)
);

CREATE TABLE shop.notes (
    id     uuid PRIMARY KEY,
    author text NOT NULL,
    body   text NOT NULL,
    edits  int  NOT NULL DEFAULT 0
);

-- Written behind everything else: where it has arrived, so has all that was committed before it.
CREATE TABLE shop.checkpoints (
    node  text PRIMARY KEY,
    round int NOT NULL
);
