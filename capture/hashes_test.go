package capture

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbridge/pgbridge/integration/pgtest"
	"github.com/pgbridge/pgbridge/rowkey"
	"github.com/pgbridge/pgbridge/wire"
)

// TestServedKeys: keys that the server hashes, in transactions of all kinds, are told once each, under one
// hash for all spellings, and under the same when the stream is read back.
func TestServedKeys(t *testing.T) {
	t.Parallel()
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		t.Parallel()
		b := newBench(t, s.NewDatabase(t), `CREATE EXTENSION citext;
CREATE DOMAIN d AS citext;
CREATE TABLE t (k d PRIMARY KEY, x text);
CREATE TABLE n (k int PRIMARY KEY);
CREATE TABLE f (k citext PRIMARY KEY, x text);
ALTER TABLE f REPLICA IDENTITY FULL`)
		smallMemory(b)
		b.opts.FrameBytes = MinFrameBytes
		b.start(nil)
		b.exec(`INSERT INTO t SELECT 'k' || i, 'x' FROM generate_series(1, 4000) i;
INSERT INTO f VALUES ('a', 'x'), ('b', repeat('x', 2000000));
UPDATE t SET k = 'K1' WHERE k = 'k1';
UPDATE t SET k = 'k2' WHERE k = 'k2';
UPDATE t SET k = 'moved' WHERE k = 'K3';
UPDATE f SET k = 'A', x = 'y' WHERE k = 'a';
UPDATE f SET k = 'B' WHERE k = 'b';
DELETE FROM t WHERE k = 'k1';
INSERT INTO t VALUES ('k1', 'x');
DELETE FROM t WHERE k = 'K1';
BEGIN;
SAVEPOINT a;
DELETE FROM t WHERE k = 'k5';
ROLLBACK TO a;
INSERT INTO n VALUES (1);
DELETE FROM n;
DELETE FROM t WHERE k = 'K6';
COMMIT;
DELETE FROM f;
DELETE FROM t WHERE substr(k, 2)::int > 1000 AND k LIKE 'k%';
DELETE FROM t WHERE substr(k, 2)::int BETWEEN 11 AND 15 AND k LIKE 'k%'`)
		b.sentinel()
		b.end()
		var lines []string
		hashes := map[string]wire.KeyHash{}
		for i, line := range b.deletes.lines {
			if strings.Contains(line, "sentinel") {
				continue
			}
			_, line, _ = strings.Cut(line, " ")
			lines = append(lines, line)
			lower := strings.ToLower(line)
			if h, ok := hashes[lower]; ok && h != b.deletes.hashes[i] {
				t.Errorf("%s has two hashes", line)
			}
			hashes[lower] = b.deletes.hashes[i]
		}
		for _, want := range []string{"delete public.t k=k3", "delete public.t k=K1", "delete public.t k=k1", "delete public.t k=k6",
			"delete public.f k=A", "delete public.f k=B", "delete public.n k=1", "delete public.t k=k2345"} {
			if !slices.Contains(lines, want) {
				t.Errorf("%q was not told", want)
			}
		}
		if want := 1 + 2 + 1 + 1 + 2 + 3000 + 5; len(lines) != want {
			t.Errorf("%d deletes, want %d", len(lines), want)
		}
		distinct := map[wire.KeyHash]bool{}
		for _, h := range hashes {
			distinct[h] = true
		}
		if len(distinct) != len(hashes) {
			t.Errorf("%d hashes of %d keys", len(distinct), len(hashes))
		}
		b.checkRestore()
	})
}

// TestCatalogIsLostWhileHashing: a transaction whose keys could not be hashed is captured anew, and told once.
func TestCatalogIsLostWhileHashing(t *testing.T) {
	t.Parallel()
	b := newBench(t, pgtest.New(t), `CREATE EXTENSION citext;
CREATE TABLE t (k citext PRIMARY KEY)`)
	smallMemory(b)
	b.opts.FrameBytes = MinFrameBytes
	c, err := New(b.opts, b.pub, b.deletes, nil)
	b.must(err)
	h, asked, lost := c.tagger.hashes, 0, 0
	h.digests = rowkey.NewDigests(func(ctx context.Context, f func(context.Context, *pgx.Conn) error) error {
		if asked++; asked%2 == 0 {
			return h.ask(ctx, f)
		}
		lost++
		return h.ask(ctx, func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, `SELECT pg_terminate_backend(pg_backend_pid())`)
			return err
		})
	})
	b.launch(c)
	b.exec(`INSERT INTO t SELECT i::text FROM generate_series(1, 3000) i;
DELETE FROM t WHERE k = '1';
BEGIN;
DELETE FROM t WHERE k::text IN ('2', '3');
UPDATE t SET k = 'x4' WHERE k = '4';
COMMIT;
DELETE FROM t`)
	frames := b.sentinel()
	b.end()
	checkFrames(t, frames)
	if n := len(openRuns(t, b.pub)); n > 0 {
		t.Errorf("%d runs were left open", n)
	}
	for i, x := range b.transactions(frames) {
		if x.Seq != uint64(i+1) {
			t.Errorf("transaction %d has seq %d", i+1, x.Seq)
		}
	}
	told := slices.DeleteFunc(b.deletes.told(), func(s string) bool { return strings.Contains(s, "sentinel") })
	count := map[string]int{}
	for _, line := range told {
		count[line]++
	}
	if len(told) != 3001 || len(count) != len(told) || lost < 3 {
		t.Errorf("%d deletes, %d different ones, connection lost %d times", len(told), len(count), lost)
	}
}

// TestRefusedKeysCountByTheirBytes: a type may be gone when the rows that had it are read.
func TestRefusedKeysCountByTheirBytes(t *testing.T) {
	rel := wire.Relation{ID: 5, Schema: "public", Name: "t", ReplicaIdentity: 'd', Columns: []wire.Column{{Name: "k", TypeOID: 99999, Key: true}}}
	key := []wire.Value{{Format: wire.Binary, Data: []byte("a")}}
	var answer error
	h := newHashes(slog.New(slog.DiscardHandler))
	h.ask = func(context.Context, func(context.Context, *pgx.Conn) error) error { return answer }
	table := newTable(&rel, []keyColumn{{name: "k", typ: 99999, hashed: &wire.KeyType{Form: wire.FormServed}}}, h)
	answer = &pgconn.PgError{Code: "42704"}
	if got, err := table.hash(t.Context(), key); err != nil || got != wire.NewKeyHasher("public", "t", nil).Hash(key, nil) {
		t.Errorf("type is gone: %v", err)
	}
	answer = &pgconn.PgError{Code: "57P01"}
	if _, err := table.hash(t.Context(), key); !isLost(err) {
		t.Errorf("server stops: %v", err)
	}
	answer = errors.New("cut")
	if _, err := table.hash(t.Context(), key); !isLost(err) {
		t.Errorf("connection is cut: %v", err)
	}
	// A column that has another type now than the rows in the WAL.
	table = newTable(&rel, []keyColumn{{name: "k", typ: 88888, hashed: &wire.KeyType{Form: wire.FormServed}}}, h)
	if _, err := table.hash(t.Context(), key); err != nil {
		t.Error(err)
	}
}

// TestWrittenServedKeys: those of a lifted transaction wait to be hashed together with what it deletes.
func TestWrittenServedKeys(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(t, `CREATE EXTENSION citext; CREATE TABLE t (k citext PRIMARY KEY)`)
	conn := pgtest.Connect(t, db.DSN)
	h := newHashes(slog.New(slog.DiscardHandler))
	h.ask = func(ctx context.Context, f func(context.Context, *pgx.Conn) error) error { return f(ctx, conn) }
	var oid uint32
	b := &bench{t: t}
	b.must(conn.QueryRow(t.Context(), `SELECT 't'::regclass::oid`).Scan(&oid))
	keys, err := readKeys(t.Context(), conn, []uint32{oid})
	b.must(err)
	rel := wire.Relation{ID: oid, Schema: "public", Name: "t", ReplicaIdentity: 'd', Columns: []wire.Column{{Name: "k", TypeOID: keys[oid][0].typ, Key: true}}}
	table := newTable(&rel, keys[oid], h)
	key := func(s string) []wire.Value { return []wire.Value{{Format: wire.Binary, Data: []byte(s)}} }
	for n, many := range map[int]bool{3: false, liftedKeys: false, liftedKeys + 1: true} {
		k := touched{lifted: true}
		for i := range n {
			b.must(k.row(t.Context(), table, wire.KindInsert, 0, appendTuple([]byte{'N'}, key(strings.Repeat("k", i+1)))))
		}
		b.must(k.row(t.Context(), table, wire.KindDelete, 0, appendTuple([]byte{'K'}, key("gone"))))
		b.must(k.settle(t.Context()))
		if k.many != many || len(k.keys) != min(n, liftedKeys) || k.graves.count != 1 || k.waiting != 0 {
			t.Fatalf("%d keys: many %t, %d keys, %d deletes, %d wait", n, k.many, len(k.keys), k.graves.count, k.waiting)
		}
		if want, err := table.hash(t.Context(), key("KKK")); err != nil || k.keys[2] != want {
			t.Errorf("hash of a written key: %v", err)
		}
	}
}
