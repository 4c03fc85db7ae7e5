package rowkey

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/integration/pgtest"
	"github.com/pgbridge/pgbridge/wire"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// schema has types of all kinds.
const schema = `
CREATE EXTENSION citext; CREATE EXTENSION hstore; CREATE EXTENSION ltree; CREATE EXTENSION isn;
CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
CREATE TYPE mood AS ENUM ('sad', 'happy');
CREATE DOMAIN d_num AS numeric; CREATE DOMAIN d_two AS d_num; CREATE DOMAIN d_citext AS citext;
CREATE DOMAIN d_nocase AS text COLLATE nocase;
CREATE TYPE pair AS (n numeric, t text, c citext); CREATE DOMAIN d_pair AS pair;
CREATE TYPE nocase_pair AS (t text COLLATE nocase, n int);
CREATE TYPE nocase_range AS RANGE (subtype = text, collation = nocase);
CREATE TYPE alias;
CREATE FUNCTION alias_in(cstring) RETURNS alias IMMUTABLE STRICT LANGUAGE internal AS 'textin';
CREATE FUNCTION alias_out(alias) RETURNS cstring IMMUTABLE STRICT LANGUAGE internal AS 'textout';
CREATE TYPE alias (INPUT = alias_in, OUTPUT = alias_out, LIKE = text, COLLATABLE = true);
CREATE CAST (alias AS text) WITHOUT FUNCTION AS IMPLICIT`

// samples are values of one type; which of them are equal is for the server to say.
var samples = []struct {
	typ      string // with a collation if that matters
	served   bool
	literals []string
}{
	{"int2", false, []string{"0", "-1", "7"}},
	{"int4", false, []string{"0", "-1", "7"}},
	{"int8", false, []string{"0", "-1", "7"}},
	{"bool", false, []string{"t", "f"}},
	{"oid", false, []string{"0", "7"}},
	{"regclass", false, []string{"pg_class", "pg_type", "1259"}},
	{"uuid", false, []string{"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "b0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"}},
	{"text", false, []string{"", "a", "A", "a ", "é", "é"}},
	{"varchar(9)", false, []string{"", "a", "A", "a "}},
	{"name", false, []string{"a", "A"}},
	{`"char"`, false, []string{"a", "b", ""}},
	{"char(3)", false, []string{"a", "a ", "A", " a", ""}},
	{"bpchar", false, []string{"a", "a ", "a  ", "A", ""}},
	{"bytea", false, []string{`\x`, `\x00`, `\x0000`}},
	{"date", false, []string{"2020-01-01", "20200101", "infinity", "-infinity"}},
	{"time", false, []string{"00:00", "24:00", "12:00"}},
	{"timetz", false, []string{"12:00+00", "13:00+01", "12:00+01"}},
	{"timestamp", false, []string{"2020-01-01", "2020-01-01 00:00", "infinity"}},
	{"timestamptz", false, []string{"2020-01-01 00:00+00", "2020-01-01 01:00+01", "infinity"}},
	{"macaddr", false, []string{"08:00:2b:01:02:03", "0800.2b01.0203", "08:00:2b:01:02:04"}},
	{"macaddr8", false, []string{"08:00:2b:01:02:03:04:05", "08:00:2b:01:02:03"}},
	{"inet", false, []string{"10.0.0.1", "10.0.0.1/32", "10.0.0.1/8", "::1", "::ffff:10.0.0.1"}},
	{"cidr", false, []string{"10.0.0.0/8", "10/8", "10.0.0.0/16"}},
	{"bit(3)", false, []string{"101", "100"}},
	{"varbit", false, []string{"", "0", "00", "101"}},
	{"money", false, []string{"1.00", "1", "-1"}},
	{"mood", false, []string{"sad", "happy"}},
	{"pg_lsn", false, []string{"0/0", "0/10", "00/10"}},
	{"xid8", false, []string{"1", "2"}},
	{"tid", false, []string{"(0,1)", "(1,0)"}},
	{"tsvector", false, []string{"a b", "b a", "a:1 b", "a:1A b", ""}},
	{"oidvector", false, []string{"", "1 2", "2 1"}},
	{"ltree", false, []string{"a.b", "a.c", "A.b", ""}},
	{"isbn", false, []string{"0-393-04002-X", "039304002X", "0-901690-54-6"}},
	{"ean13", false, []string{"0220356483481", "977-1436-45200-8"}},
	{"float4", false, []string{"0", "-0", "1", "1.0", "NaN", "Infinity", "1e-45"}},
	{"float8", false, []string{"0", "-0", "1", "1.0", "NaN", "Infinity", "-Infinity", "5e-324"}},
	{"numeric", false, []string{"0", "-0.00", "1", "1.0", "1.000", "10000.0", "-1", "1e-10", "NaN", "Infinity", "-Infinity", "100000000.50"}},
	{"d_two", false, []string{"1", "1.0", "-1"}},
	{"interval", false, []string{"1 day", "24:00", "1 month", "30 days", "1 month -30 days", "0", "178000000 years", "-178000000 years", "1 day -24:00", "-1 day", "-24:00"}},
	{"jsonb", false, []string{"1", "1.0", "-1", "[1]", "[1.00]", "[[1],2]", "[[1,2]]", `{"a": 1.10, "b": 2}`, `{"b": 2, "a": 1.1}`, `"1.0"`, `"1"`, `"\"1.0"`, `{"1.0": 1}`,
		`{"1": 1}`, `{"a": ["b"]}`, `["a", "b"]`, "100", "1e2", "0.0", "-0.0", "true", `"true"`, "null", "10", "[]", "{}", "0.10e-3"}},
	{"int4[]", false, []string{"{}", "{1,2}", "[0:1]={1,2}", "{{1},{2}}", "{{1,2}}", "{1,NULL}", "{NULL,1}"}},
	{"numeric[]", false, []string{"{1.0,2}", "{1,2.00}", "{1,-2}", "{}"}},
	{"citext[]", true, []string{"{a,b}", "{A,B}", "{ab}", "{a,NULL}", "{{a},{b}}", "{{A},{b}}"}},
	{"int4range", false, []string{"[1,3)", "[1,2]", "(0,2]", "empty", "(3,3)", "(,)"}},
	{"numrange", false, []string{"[1,2)", "[1.0,2.00)", "[-1,2)", "[1,2]", "(1,2]", "empty", "(,)", "[1,)", "(,1]"}},
	{"nummultirange", false, []string{"{}", "{[1,2)}", "{[1.0,1.5),[1.5,2.0)}", "{[1,2),[3,4)}", "{[1.0,2),[3,4.00)}", "{(,)}"}},
	{"tstzrange[]", false, []string{`{"[2020-01-01 00:00+00,)"}`, `{"[2020-01-01 01:00+01,)"}`, `{empty}`}},
	{"pair", true, []string{"(1.0,a,b)", "(1,a,B)", "(1,A,b)", "(,,)", "(1,,b)", "(-1,a,b)"}},
	{"d_pair", true, []string{"(1.0,a,b)", "(1,a,B)", "(1,A,b)"}},
	{"pair[]", true, []string{`{"(1.0,a,b)"}`, `{"(1,a,B)"}`, `{"(1,A,b)"}`}},
	{"nocase_pair", true, []string{"(a,1)", "(A,1)", "(a,2)"}},
	{"nocase_range", true, []string{"[a,b)", "[A,B)", "[a,B]"}},
	{"citext", true, []string{"a", "A", "b", "", "Ä", "ä", `"`, `\`, "NULL", "a,b"}},
	{"d_citext", true, []string{"a", "A", "b"}},
	{"text COLLATE nocase", true, []string{"a", "A", "b", "", "Ä", "ä", "é", "é"}},
	{"d_nocase", true, []string{"a", "A", "b"}},
	{"varchar(5) COLLATE nocase", true, []string{"a", "A", "b"}},
	{"bpchar COLLATE nocase", true, []string{"a", "A ", "b", "A"}},
	{"text[] COLLATE nocase", true, []string{"{a,b}", "{A,B}", "{ab}"}},
	{"hstore", true, []string{"a=>1", "a=>1.0", "a=>1,b=>2", "b=>2,a=>1", "A=>1", ""}},
	{"alias", false, []string{"a", "A", ""}},
	{"alias COLLATE nocase", true, []string{`a`, `A`, `"`, `\`, `"\,{}`, "", "NULL", " "}},
}

// TestEqualKeysHashAlike: the server says which values are equal, by their type's default operator; those and
// no others hash alike, in the form in which the server sends them. The values of a type that is served are
// learned at once, then asked for one by one.
func TestEqualKeysHashAlike(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		db := s.NewDatabase(t)
		db.Exec(t, schema)
		for i, c := range samples {
			t.Run(c.typ, func(t *testing.T) {
				conn := pgtest.Connect(t, db.DSN)
				table := fmt.Sprintf("t%d", i)
				exec(t, conn, fmt.Sprintf("CREATE TABLE %s (k %s)", table, c.typ))
				for _, l := range c.literals {
					exec(t, conn, fmt.Sprintf("INSERT INTO %s VALUES ($1)", table), l)
				}
				k := keyType(t, conn, table)
				if k.Served() != c.served {
					t.Errorf("served %t", k.Served())
				}
				hashes := hashAll(t, conn, k, table)
				for i, a := range c.literals {
					for j, b := range c.literals {
						var equal bool
						sql := fmt.Sprintf("SELECT a.k = b.k FROM %s a, %s b WHERE a.ctid = '(0,%d)' AND b.ctid = '(0,%d)'", table, table, i+1, j+1)
						if err := conn.QueryRow(t.Context(), sql).Scan(&equal); err != nil {
							t.Fatal(err)
						}
						if (hashes[i] == hashes[j]) != equal {
							t.Errorf("%q and %q: equal %t, hashes %x and %x", a, b, equal, hashes[i], hashes[j])
						}
					}
				}
			})
		}
	})
}

func exec(t *testing.T, conn *pgx.Conn, sql string, args ...any) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql, append([]any{pgx.QueryExecModeExec}, args...)...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func keyType(t *testing.T, conn *pgx.Conn, table string) *wire.KeyType {
	t.Helper()
	var oid, collation uint32
	err := conn.QueryRow(t.Context(), `SELECT atttypid, attcollation FROM pg_attribute WHERE attrelid = $1::text::regclass AND attname = 'k'`, table).Scan(&oid, &collation)
	if err != nil {
		t.Fatal(err)
	}
	k, err := NewTypes(conn).Key(t.Context(), oid, collation)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// values reads a table's keys as pgoutput sends them: in binary where the type can be sent so.
func values(t *testing.T, conn *pgx.Conn, table string) []wire.Value {
	t.Helper()
	var sent bool
	err := conn.QueryRow(t.Context(), `SELECT t.typsend <> 0 FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
		WHERE attrelid = $1::text::regclass AND attname = 'k'`, table).Scan(&sent)
	if err != nil {
		t.Fatal(err)
	}
	code, format := int16(0), wire.Text
	if sent {
		code, format = 1, wire.Binary
	}
	r := conn.PgConn().ExecParams(t.Context(), "SELECT k FROM "+table+" ORDER BY ctid", nil, nil, nil, []int16{code}).Read()
	if r.Err != nil {
		t.Fatal(r.Err)
	}
	var all []wire.Value
	for _, row := range r.Rows {
		all = append(all, wire.Value{Format: format, Data: row[0]})
	}
	return all
}

func hashAll(t *testing.T, conn *pgx.Conn, k *wire.KeyType, table string) []wire.KeyHash {
	t.Helper()
	h := wire.NewKeyHasher("public", table, []*wire.KeyType{k})
	all := values(t, conn, table)
	asked := 0
	ask := func(ctx context.Context, f func(context.Context, *pgx.Conn) error) error {
		asked++
		return f(ctx, conn)
	}
	together, singly := NewDigests(ask), NewDigests(ask)
	for _, v := range all {
		together.Want(h, []wire.Value{v})
	}
	if err := together.Learn(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := min(1, asked); asked != n || (n == 1) != k.Served() {
		t.Errorf("%d questions", asked)
	}
	var hashes []wire.KeyHash
	for i, v := range all {
		key := []wire.Value{v}
		before := asked
		a, err := together.Hash(t.Context(), h, key)
		if err != nil || asked != before {
			t.Fatalf("value %d was learned: %v, %d questions", i, err, asked-before)
		}
		b, err := singly.Hash(t.Context(), h, key)
		if err != nil {
			t.Fatal(err)
		}
		if a != b {
			t.Errorf("value %d: %x with others, %x alone", i, a, b)
		}
		hashes = append(hashes, a)
	}
	return hashes
}

// TestTypesWithoutHash are refused, wherever in a type they are.
func TestTypesWithoutHash(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		db := s.NewDatabase(t)
		db.Exec(t, `CREATE EXTENSION cube; CREATE TYPE two AS (n int, c cube); CREATE DOMAIN d_two AS two;
			CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
			CREATE TABLE t (a tsquery, b cube, c cube[], d d_two, e name COLLATE nocase)`)
		conn := pgtest.Connect(t, db.DSN)
		types := NewTypes(conn)
		for column, name := range map[string]string{"a": "pg_catalog.tsquery", "b": "public.cube", "c": "public.cube", "d": "public.cube", "e": "pg_catalog.name"} {
			var oid, collation uint32
			if err := conn.QueryRow(t.Context(), `SELECT atttypid, attcollation FROM pg_attribute WHERE attrelid = 't'::regclass AND attname = $1`, column).Scan(&oid, &collation); err != nil {
				t.Fatal(err)
			}
			_, err := types.Key(t.Context(), oid, collation)
			var no *NoHash
			if !errors.As(err, &no) || no.Type != name || !strings.Contains(no.Mend(), name) {
				t.Errorf("column %s: %v, want a refusal of %s", column, err, name)
			}
		}
		// What the mend says helps.
		exec(t, conn, `ALTER OPERATOR FAMILY cube_ops USING btree ADD FUNCTION 4 (cube) btequalimage(oid)`)
		var oid uint32
		if err := conn.QueryRow(t.Context(), `SELECT 'cube'::regtype::oid`).Scan(&oid); err != nil {
			t.Fatal(err)
		}
		if k, err := NewTypes(conn).Key(t.Context(), oid, 0); k != nil || err != nil {
			t.Errorf("after the mend: %v, %v", k, err)
		}
	})
}

// served returns a hasher of citext, and keys of it.
func served(t *testing.T) (conn *pgx.Conn, h *wire.KeyHasher, key func(string) []wire.Value) {
	db := pgtest.New(t)
	db.Exec(t, `CREATE EXTENSION citext; CREATE TABLE t (k citext)`)
	conn = pgtest.Connect(t, db.DSN)
	h = wire.NewKeyHasher("public", "t", []*wire.KeyType{keyType(t, conn, "t")})
	return conn, h, func(s string) []wire.Value { return []wire.Value{{Format: wire.Binary, Data: []byte(s)}} }
}

// TestRefusedValues: one value that the server cannot read does not hide the others, and has an error of its
// own.
func TestRefusedValues(t *testing.T) {
	conn, h, key := served(t)
	var asked int
	d := NewDigests(func(ctx context.Context, f func(context.Context, *pgx.Conn) error) error {
		asked++
		return f(ctx, conn)
	})
	for _, s := range []string{"a", "\xff", "b"} {
		d.Want(h, key(s))
	}
	if err := d.Learn(t.Context()); err != nil {
		t.Fatal(err)
	}
	asked = 0
	for _, s := range []string{"a", "b"} {
		if _, err := d.Hash(t.Context(), h, key(s)); err != nil || asked != 0 {
			t.Errorf("%q: %v, %d questions", s, err, asked)
		}
	}
	if _, err := d.Hash(t.Context(), h, key("\xff")); !Refused(err) {
		t.Errorf("a value that is no text: %v", err)
	}
	if _, err := d.Hash(t.Context(), h, key("c")); err != nil {
		t.Errorf("after a refusal: %v", err)
	}
	lost := errors.New("lost")
	d = NewDigests(func(context.Context, func(context.Context, *pgx.Conn) error) error { return lost })
	d.Want(h, key("a"))
	if err := d.Learn(t.Context()); !errors.Is(err, lost) {
		t.Errorf("learn without a connection: %v", err)
	}
	if _, err := d.Hash(t.Context(), h, key("a")); !errors.Is(err, lost) {
		t.Errorf("hash without a connection: %v", err)
	}
}

// TestCacheIsBounded: hot keys stay, the others make room.
func TestCacheIsBounded(t *testing.T) {
	conn, h, key := served(t)
	var asked atomic.Int64
	d := NewDigests(func(ctx context.Context, f func(context.Context, *pgx.Conn) error) error {
		asked.Add(1)
		return f(ctx, conn)
	})
	hot := key("hot")
	if _, err := d.Hash(t.Context(), h, hot); err != nil {
		t.Fatal(err)
	}
	for i := range 4 * remembered {
		if !d.Want(h, key(fmt.Sprint("key ", i))) {
			continue
		}
		if err := d.Learn(t.Context()); err != nil {
			t.Fatal(err)
		}
		before := asked.Load()
		if _, err := d.Hash(t.Context(), h, hot); err != nil || asked.Load() != before {
			t.Fatalf("after %d keys: %v, %d questions for a hot one", i, err, asked.Load()-before)
		}
	}
	if n := len(d.young) + len(d.old); n > 2*(remembered+1<<10) {
		t.Errorf("%d digests are remembered", n)
	}
	if _, err := d.Hash(t.Context(), h, key("key 0")); err != nil {
		t.Fatal(err)
	}
}
