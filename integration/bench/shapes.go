package main

import (
	"context"
	"fmt"
	"strings"
)

// Lines about the shape of rows: wide ones, large ones, documents, and transactions over many tables.

const (
	// wideChunk is how many rows one transaction of the wide line updates.
	wideChunk = 1000
	// toastBytes is the length of a large value. It is bytes without a pattern, which do not get smaller when they are
	// compressed, and so is stored apart from its row.
	toastBytes = 8192
	tenTables  = 10
)

// wideColumns returns the columns beside the key, with types in turn, and an expression over i that fills each of them.
func wideColumns() (columns, values []string) {
	kinds := []struct{ sqlType, value string }{
		{"int", "i %% 100000 + %d"}, {"text", "md5((i + %d)::text)"}, {"bigint", "i * 1000000007 + %d"},
		{"numeric(20,4)", "(i * 7919 + %d) / 10000.0"}, {"timestamptz", "timestamptz '2026-01-01Z' + (i + %d) * interval '1 second'"},
		{"boolean", "(i + %d) %% 2 = 0"}, {"float8", "sqrt(i + %d)"}, {"uuid", "md5((i * 3 + %d)::text)::uuid"},
		{"date", "date '2026-01-01' + ((i + %d) %% 1000)::int"}, {"varchar(60)", "nullif('street ' || (i + %d) %% 50, 'street 0')"},
	}
	for c := range 39 {
		k := kinds[c%len(kinds)]
		columns = append(columns, fmt.Sprintf("c%d %s", c, k.sqlType))
		values = append(values, fmt.Sprintf(k.value, c))
	}
	return columns, values
}

func prepareWide(ctx context.Context, s *server, n int) error {
	columns, values := wideColumns()
	if err := s.exec(ctx, "CREATE TABLE bench_wide (id bigint PRIMARY KEY, "+strings.Join(columns, ", ")+")"); err != nil {
		return err
	}
	return s.exec(ctx, fmt.Sprintf("INSERT INTO bench_wide SELECT i, %s FROM generate_series(1, %d::bigint) i", strings.Join(values, ", "), n))
}

// writeWide changes one column of each type in every row.
func writeWide(ctx context.Context, s *server, n int) error {
	return s.exec(ctx, fmt.Sprintf(`DO $$ BEGIN
		FOR i IN 1..%d BY %d LOOP
			UPDATE bench_wide SET c0 = c0 + 1, c1 = md5(c1), c2 = c2 + 1, c3 = c3 + 0.5, c4 = c4 + interval '1 day',
				c5 = NOT c5, c6 = c6 / 2, c7 = md5(c7::text)::uuid, c8 = c8 + 1, c9 = c1
			WHERE id BETWEEN i AND i + %d;
			COMMIT;
		END LOOP;
	END $$`, n, wideChunk, wideChunk-1))
}

// toastSQL is a value of toastBytes that only i decides.
const toastSQL = "(SELECT decode(string_agg(md5(i || '.' || j), ''), 'hex') FROM generate_series(1, %d) j)"

func prepareToast(ctx context.Context, s *server, n int) error {
	const table = "CREATE TABLE bench_toast (id bigint PRIMARY KEY, n int NOT NULL, body bytea NOT NULL)"
	if err := s.exec(ctx, table); err != nil {
		return err
	}
	return s.exec(ctx, fmt.Sprintf("INSERT INTO bench_toast SELECT i, 0, "+toastSQL+" FROM generate_series(1, %d) i", toastBytes/16, n))
}

// writeToast updates each large row beside its large value, one in a transaction; every tenth adds one more row.
func writeToast(ctx context.Context, s *server, n int) error {
	return s.exec(ctx, fmt.Sprintf(`DO $$ BEGIN
		SET synchronous_commit = off;
		FOR i IN 1..%d LOOP
			UPDATE bench_toast SET n = n + 1 WHERE id = i;
			IF i %% 10 = 0 THEN INSERT INTO bench_toast SELECT %d + i, 0, %s; END IF;
			COMMIT;
		END LOOP;
		RESET synchronous_commit;
	END $$`, n, n, fmt.Sprintf(toastSQL, toastBytes/16)))
}

// documentSQL is a document of about 700 bytes that only i decides.
const documentSQL = `jsonb_build_object('id', i, 'name', md5(i::text), 'active', i %% 2 = 0, 'score', i / 8.0, 'visits', 0,
	'address', jsonb_build_object('street', 'street ' || i %% 500, 'city', md5((i %% 100)::text), 'zip', i %% 90000),
	'tags', (SELECT jsonb_agg(md5((i + t)::text)) FROM generate_series(1, 8) t),
	'history', (SELECT jsonb_agg(jsonb_build_object('at', t * 3600, 'by', i %% 37)) FROM generate_series(1, 8) t))`

func prepareDocuments(ctx context.Context, s *server, n int) error {
	if err := s.exec(ctx, "CREATE TABLE bench_documents (id bigint PRIMARY KEY, body jsonb NOT NULL)"); err != nil {
		return err
	}
	return s.exec(ctx, fmt.Sprintf("INSERT INTO bench_documents SELECT i, "+documentSQL+" FROM generate_series(1, %d) i", n))
}

// writeDocuments inserts a document and updates another one in each transaction.
func writeDocuments(ctx context.Context, s *server, n int) error {
	return s.exec(ctx, fmt.Sprintf(`DO $$ BEGIN
		SET synchronous_commit = off;
		FOR k IN 1..%d LOOP
			INSERT INTO bench_documents SELECT i, `+documentSQL+` FROM (SELECT k + %d) d(i);
			UPDATE bench_documents SET body = jsonb_set(body, '{visits}', to_jsonb((body ->> 'visits')::int + k)) WHERE id = k;
			COMMIT;
		END LOOP;
		RESET synchronous_commit;
	END $$`, n, n))
}

func prepareTenTables(ctx context.Context, s *server, n int) error {
	for t := range tenTables {
		table := fmt.Sprintf("bench_ten_%d", t)
		err := s.exec(ctx, "CREATE TABLE "+table+" (id bigint PRIMARY KEY, n int NOT NULL, note text NOT NULL)")
		if err == nil {
			err = s.exec(ctx, fmt.Sprintf("INSERT INTO %s SELECT i, 0, md5(i::text) FROM generate_series(1, %d) i", table, n))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// writeTenTables updates a row of each even table and inserts one into each odd table, in every transaction.
func writeTenTables(ctx context.Context, s *server, n int) error {
	var body strings.Builder
	for t := range tenTables {
		if t%2 == 0 {
			fmt.Fprintf(&body, "UPDATE bench_ten_%d SET n = n + 1 WHERE id = i;\n", t)
		} else {
			fmt.Fprintf(&body, "INSERT INTO bench_ten_%d VALUES (%d + i, 0, md5(i::text));\n", t, n)
		}
	}
	return s.exec(ctx, fmt.Sprintf(`DO $$ BEGIN
		SET synchronous_commit = off;
		FOR i IN 1..%d LOOP %s COMMIT; END LOOP;
		RESET synchronous_commit;
	END $$`, n, &body))
}
