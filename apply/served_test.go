package apply

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/integration/pgtest"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/rowkey"
	"github.com/pgbridge/pgbridge/wire"
)

const served = `CREATE EXTENSION citext; CREATE TYPE pair AS (n int, c citext);
	CREATE TABLE t (k citext PRIMARY KEY, v int); CREATE TABLE p (k pair PRIMARY KEY, v int); CREATE TABLE n (k int PRIMARY KEY)`

// hashOf hashes a key of table t, as apply does.
func (p *pair) hashOf(k string) wire.KeyHash {
	p.t.Helper()
	tab, err := p.a.catalog.table(p.t.Context(), "public", "t")
	if err != nil {
		p.t.Fatal(err)
	}
	got, err := rowkey.NewDigests(p.a.catalog.ask).Hash(p.t.Context(), tab.hasher, []wire.Value{{Format: wire.Binary, Data: []byte(k)}})
	if err != nil {
		p.t.Fatal(err)
	}
	return got
}

// TestServedKeysAreHashedTogether: the server is asked for many keys at once, on every path.
func TestServedKeysAreHashedTogether(t *testing.T) {
	t.Parallel()
	const rows = 4500
	for name, c := range map[string]struct {
		disturb string
		large   bool
	}{
		"optimistic": {},
		"large":      {large: true},
		"careful":    {disturb: `UPDATE t SET v = 7 WHERE k = 'k9'`},
	} {
		t.Run(name, func(t *testing.T) {
			s := pgtest.SharedServer(t, pgtest.Newest(t))
			p := newPairOf(t, s, s, served, `CREATE TYPE other AS ENUM (); `+served) // object ids differ
			p.done(`INSERT INTO t SELECT 'k' || i, 0 FROM generate_series(1, 4500) i; INSERT INTO p SELECT ROW(i, 'k' || i)::pair, 0 FROM generate_series(1, 200) i;
				INSERT INTO n SELECT generate_series(1, 2000)`)
			if c.disturb != "" {
				p.disturb(c.disturb)
			}
			var asked atomic.Int64
			p.a.workers[0].digests = rowkey.NewDigests(func(ctx context.Context, f func(context.Context, *pgx.Conn) error) error {
				asked.Add(1)
				return p.a.catalog.ask(ctx, f)
			})
			p.from.Exec(t, `DELETE FROM n; UPDATE t SET v = 1; UPDATE t SET k = upper(k) WHERE k LIKE '%2'; DELETE FROM p WHERE (k).n < 100; DELETE FROM t WHERE v = 1 AND k LIKE '%7'`)
			p.ship(nil, c.large)
			p.await()
			p.same(`SELECT k, v FROM t ORDER BY k`)
			p.same(`SELECT k, v FROM p ORDER BY k`)
			if n := asked.Load(); n < 1 || n > rows/200 {
				t.Errorf("%d questions about %d keys", n, rows)
			}
			if got := p.status().Careful; (got > 0) != (c.disturb != "") {
				t.Errorf("%d on the careful path", got)
			}
		})
	}
}

// TestTombstonesOfServedKeysOutlastARestart: they are in the database by hash, and meet the key in another
// spelling after it.
func TestTombstonesOfServedKeysOutlastARestart(t *testing.T) {
	t.Parallel()
	p := newPair(t, pgtest.SharedServer(t, pgtest.Newest(t)), served)
	p.do(`INSERT INTO t VALUES ('Gone', 1), ('there', 1)`)
	p.do(`DELETE FROM t WHERE k = 'GONE'`)
	if err := p.stop(); err != nil && !strings.Contains(err.Error(), "canceled") {
		t.Fatal(err)
	}
	p.start()
	if d, ok := p.a.absence.tombstone(tableName{"public", "t"}, p.hashOf("gonE")); !ok || d.seq != p.seq {
		t.Errorf("tombstone %+v, %t", d, ok)
	}
	if _, ok := p.a.absence.tombstone(tableName{"public", "t"}, p.hashOf("there")); ok {
		t.Error("a tombstone of a row that is there")
	}
	later := origin.Version{Stamp: origin.Stamp(1 << 60), Origin: origin.Origin{Node: "b", Epoch: 1}}
	p.a.LocalDelete("public", "t", []wire.Value{{Format: wire.Binary, Data: []byte("NEW")}}, p.hashOf("NEW"), later, 1, 500)
	p.done(`INSERT INTO t VALUES ('new', 2)`)
	if got := p.to.Value(t, `SELECT string_agg(k::text, ' ') FROM t`); got != "there" {
		t.Errorf("rows %q: an insert came through a later delete of its key", got)
	}
}

// TestKeyWithoutHash: its origin waits, and says why.
func TestKeyWithoutHash(t *testing.T) {
	p := newest(t, `CREATE TABLE q (k tsquery PRIMARY KEY)`)
	p.from.Exec(t, `INSERT INTO q VALUES ('a')`)
	p.ship(nil, false)
	awaitTrue(t, func() bool {
		w := p.status().Waiting
		return strings.Contains(w, `"public"."q" has column "k" in its key`) && strings.Contains(w, "type pg_catalog.tsquery") && strings.Contains(w, "give the table a key of another type")
	})
}

// TestKeyThatTheServerRefuses: the origin waits, and goes on when the server takes the key.
func TestKeyThatTheServerRefuses(t *testing.T) {
	t.Parallel()
	schema := `CREATE TYPE odd; CREATE FUNCTION odd_in(cstring) RETURNS odd IMMUTABLE STRICT LANGUAGE internal AS 'textin';
		CREATE FUNCTION odd_out(odd) RETURNS cstring IMMUTABLE STRICT LANGUAGE internal AS 'textout'; CREATE TYPE odd (INPUT = odd_in, OUTPUT = odd_out, LIKE = text);
		CREATE CAST (odd AS text) WITHOUT FUNCTION; CREATE TABLE refuse (yes bool); INSERT INTO refuse VALUES (false);
		CREATE FUNCTION odd_cmp(odd, odd) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT bttextcmp(lower($1::text), lower($2::text))';
		CREATE FUNCTION odd_eq(odd, odd) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT lower($1::text) = lower($2::text)';
		CREATE FUNCTION odd_lt(odd, odd) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT lower($1::text) < lower($2::text)';
		CREATE FUNCTION odd_hash(odd) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT hashtext(lower($1::text))';
		CREATE FUNCTION odd_hash64(odd, int8) RETURNS int8 IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN
			IF (SELECT yes FROM public.refuse) THEN RAISE 'not now'; END IF; RETURN hashtextextended(lower($1::text), $2); END $$;
		CREATE OPERATOR = (PROCEDURE = odd_eq, LEFTARG = odd, RIGHTARG = odd, HASHES, MERGES, COMMUTATOR = =);
		CREATE OPERATOR < (PROCEDURE = odd_lt, LEFTARG = odd, RIGHTARG = odd);
		CREATE OPERATOR CLASS odd_btree DEFAULT FOR TYPE odd USING btree AS OPERATOR 1 <, OPERATOR 3 =, FUNCTION 1 odd_cmp(odd, odd);
		CREATE OPERATOR CLASS odd_hash DEFAULT FOR TYPE odd USING hash AS OPERATOR 1 =, FUNCTION 1 odd_hash(odd), FUNCTION 2 odd_hash64(odd, int8);
		CREATE TABLE t (k odd PRIMARY KEY, v int)`
	p := newest(t, schema)
	p.do(`INSERT INTO t VALUES ('a', 1), ('b', 1)`)
	p.to.Exec(t, `UPDATE refuse SET yes = true`)
	p.from.Exec(t, `INSERT INTO t VALUES ('c', 1)`)
	p.ship(nil, false)
	awaitTrue(t, func() bool {
		return strings.Contains(p.status().Waiting, `key of table "public"."t" cannot be hashed here`) && strings.Contains(p.status().Waiting, "not now")
	})
	p.to.Exec(t, `UPDATE refuse SET yes = false`)
	p.await()
	p.do(`UPDATE t SET k = 'B' WHERE v = 1 AND k::text = 'b'; DELETE FROM t WHERE k::text = 'a'`)
	p.same(`SELECT k::text, v FROM t ORDER BY 1`)
}
